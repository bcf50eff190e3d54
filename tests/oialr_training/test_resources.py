"""What a training uses: counted where there are counters, unknown where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from oialr_training.protocol import Completed, Epoch
from oialr_training.resources import CpuEnergy, Meter, gpu_energy, peak_host_memory, whole_gpu

from .process import digits
from .test_data import make_images
from .test_worker_process import cifar10
from .trained import train_here

RANGE_UJ = 262_143_328_850
NAMES = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "core",
    "intel-rapl:1": "package-1",
    "intel-rapl:1:0": "dram",
    "intel-rapl:2": "psys",
}


class Powercap:
    """A tree of files as the kernel shows it, of a machine with two packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 0.0
        (folder / "intel-rapl").mkdir(parents=True)
        for zone, name in NAMES.items():
            (folder / zone).mkdir()
            (folder / zone / "name").write_text(f"{name}\n")
            (folder / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
            self.show(zone, 1_000_000)

    def show(self, zone: str, energy_uj: int) -> None:
        (self.folder / zone / "energy_uj").write_text(f"{energy_uj}\n")

    def energy(self) -> CpuEnergy:
        return CpuEnergy(self.folder, clock=lambda: self.now)


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    return Powercap(tmp_path / "powercap")


def test_the_packages_are_added_up_and_nothing_else(powercap: Powercap) -> None:
    energy = powercap.energy()
    assert energy.look() == 0.0
    powercap.show("intel-rapl:0", 3_500_000)
    powercap.show("intel-rapl:1", 1_250_000)
    for zone in ("intel-rapl:0:0", "intel-rapl:1:0", "intel-rapl:2"):
        powercap.show(zone, 900_000_000)
    assert energy.look() == pytest.approx(2.75)


def test_a_counter_that_begins_again(powercap: Powercap) -> None:
    energy = powercap.energy()
    for _ in range(3):  # looked at in time, however often
        powercap.now += 200
        powercap.show("intel-rapl:0", RANGE_UJ - 1_000_000)
        energy.look()
        powercap.now += 200
        powercap.show("intel-rapl:0", 1_000_000)
        energy.look()
    assert energy.look() == pytest.approx(3 * RANGE_UJ * 1e-6)


def test_a_counter_not_looked_at_for_too_long_tells_nothing(powercap: Powercap) -> None:
    energy = powercap.energy()
    powercap.now += 300
    assert energy.look() is None
    assert energy.look() is None


@pytest.mark.parametrize("name", ["energy_uj", "max_energy_range_uj", "name"])
def test_half_of_the_energy_is_no_answer(powercap: Powercap, name: str) -> None:
    (powercap.folder / "intel-rapl:1" / name).unlink()
    assert powercap.energy().look() is None


@pytest.mark.parametrize("content", [None, "", "x\n"], ids=["missing", "empty", "text"])
def test_a_counter_that_is_no_longer_there(powercap: Powercap, content: str | None) -> None:
    energy = powercap.energy()
    path = powercap.folder / "intel-rapl:1" / "energy_uj"
    path.unlink()
    if content is not None:
        path.write_text(content)
    powercap.show("intel-rapl:0", 2_000_000)
    assert energy.look() is None
    powercap.show("intel-rapl:1", 2_000_000)
    assert energy.look() is None


def test_without_counters_nothing_is_known(tmp_path: Path) -> None:
    assert CpuEnergy(tmp_path / "nowhere").look() is None
    assert CpuEnergy(tmp_path).look() is None
    assert whole_gpu("there-is-no-such-gpu") is None
    used = Meter(tmp_path).read()
    assert (used.gpu_energy_j, used.cpu_energy_j, used.samples_per_s) == (None, None, None)


def test_what_a_training_uses(powercap: Powercap) -> None:
    config = digits(data__validation_fraction=0.5, batch_size=16)

    def use(_: object) -> bool:
        powercap.show("intel-rapl:0", 5_000_000)
        return False

    events, _ = train_here(config, stop=use, meter=Meter(powercap.folder))
    completed = events[-1]
    assert isinstance(completed, Completed)
    used = completed.resources
    assert used.cpu_energy_j == pytest.approx(4.0)
    assert (used.gpu_energy_j, used.peak_gpu_memory_bytes) == (None, None)
    epochs = [event for event in events if isinstance(event, Epoch)]
    assert used.samples_per_s is not None
    seconds = 250 * len(epochs) / used.samples_per_s
    assert 0 < seconds < sum(epoch.metrics["epoch_s"] for epoch in epochs)
    assert used.peak_host_memory_bytes is not None
    assert 100 << 20 < used.peak_host_memory_bytes < psutil.virtual_memory().total


def test_an_attempt_measures_what_it_trained_itself(tmp_path: Path) -> None:
    class Counting(Meter):
        def add(self, samples: int, seconds: float) -> None:
            added.append(samples)
            super().add(samples, seconds)

    config, state, added = digits(epochs=3), tmp_path / "state", list[int]()
    train_here(config, state=state, stop=lambda events: len(events) == 3)
    events, _ = train_here(config, state=state, meter=Counting())
    assert len([event for event in events if isinstance(event, Epoch)]) == 3
    assert added == [400]


def test_loader_processes_hold_memory_too(tmp_path: Path) -> None:
    alone = peak_host_memory()
    config = cifar10(epochs="1")
    events, _ = train_here(config, make_images(tmp_path / "images"))
    completed = events[-1]
    assert isinstance(completed, Completed)
    with_loaders = completed.resources.peak_host_memory_bytes
    assert alone is not None
    assert with_loaders is not None
    own = psutil.Process(os.getpid()).memory_info().rss
    assert max(alone, own) < with_loaders < 2 * max(alone, own)  # what is shared counts once


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_a_training_uses_of_a_gpu() -> None:
    events, trained = train_here(digits(device="cuda", epochs=10))
    completed = events[-1]
    assert isinstance(completed, Completed)
    assert trained is not None
    memory = completed.resources.peak_gpu_memory_bytes
    assert memory is not None
    weights = sum(p.numel() * p.element_size() for p in trained.model.parameters())
    assert weights < memory < torch.cuda.get_device_properties(0).total_memory
    known = gpu_energy(torch.device("cuda"))() is not None
    assert (completed.resources.gpu_energy_j is not None) == known
    if known:
        assert 0 < completed.resources.gpu_energy_j < 1500 * completed.duration_s + 1500  # type: ignore[operator]
