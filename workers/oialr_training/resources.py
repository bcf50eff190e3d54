"""What a training uses: energy, memory and samples per second, where the machine measures them.

What it does not measure is None: nothing here is estimated. The counters of energy belong to whole
devices, so other processes there count too.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pynvml

from oialr_training.protocol import Resources

if TYPE_CHECKING:
    import torch

POWERCAP = Path("/sys/class/powercap")
MAX_PACKAGE_W = 1000.0
"""No CPU package draws more: so long a counter surely takes to pass its range."""


class Meter:
    """Measures one attempt: from `start`, when its training starts, to each `read`."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._powercap = powercap
        self._gpu: torch.device | None = None
        self._cpu: CpuEnergy | None = None
        self._gpu_energy_j: Callable[[], float | None] = _unknown
        self._samples, self._seconds = 0, 0.0

    def start(self, device: torch.device) -> None:
        """The training begins on this device."""
        self._cpu = CpuEnergy(self._powercap)
        if device.type == "cuda":
            import torch

            self._gpu = device
            torch.cuda.reset_peak_memory_stats(device)
            self._gpu_energy_j = gpu_energy(device)

    def look(self) -> None:
        """The training moves: to be called every few seconds, before counters begin again."""
        if self._cpu:
            self._cpu.look()

    def add(self, samples: int, seconds: float) -> None:
        """An epoch's samples were trained (not validated) in so many seconds."""
        self._samples += samples
        self._seconds += seconds

    def read(self) -> Resources:
        """What is known by now."""
        return Resources(
            gpu_energy_j=self._gpu_energy_j(),
            cpu_energy_j=self._cpu.look() if self._cpu else None,
            peak_host_memory_bytes=peak_host_memory(),
            peak_gpu_memory_bytes=_peak_gpu_memory(self._gpu),
            samples_per_s=self._samples / self._seconds if self._samples else None,
        )


class CpuEnergy:
    """The energy of all CPU packages since this was made, from the kernel's RAPL counters.

    These begin again after some minutes of full load, so they are read in between. The files are
    often for root only.
    """

    def __init__(self, powercap: Path = POWERCAP, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._energy_j: float | None = None
        self._read_at = clock()
        with suppress(OSError, ValueError):
            self._packages = [
                _Package(zone)
                for zone in powercap.glob("intel-rapl:*")
                # The others are parts of a package, or the whole platform with the packages in it.
                if (zone / "name").read_text().startswith("package")
            ]
            self._energy_j = 0.0 if self._packages else None

    def look(self) -> float | None:
        """Joules by now; for ever None once a counter was not to be had."""
        if self._energy_j is None:
            return None
        now = self._clock()
        gap_s, self._read_at = now - self._read_at, now
        try:
            used = [package.used_j(gap_s) for package in self._packages]
        except (OSError, ValueError):
            used = [None]
        self._energy_j = None if None in used else self._energy_j + sum(u for u in used if u)
        return self._energy_j


class _Package:
    """The counter of one CPU package."""

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range_uj = int((zone / "max_energy_range_uj").read_text())
        self._last_uj = int(self._file.read_text())

    def used_j(self, gap_s: float) -> float | None:
        """Joules since the last time, `gap_s` ago; None if it may have begun again twice."""
        last_uj, self._last_uj = self._last_uj, int(self._file.read_text())
        if gap_s * MAX_PACKAGE_W > self._range_uj * 1e-6:
            return None
        used_uj = self._last_uj - last_uj
        return (used_uj if used_uj >= 0 else used_uj + self._range_uj) * 1e-6


def _peak_gpu_memory(device: torch.device | None) -> int | None:
    if device is None:
        return None
    import torch

    return torch.cuda.max_memory_allocated(device)


def visible_gpu_energy() -> Callable[[], float | None]:
    """The same as `gpu_energy` of the one visible GPU, for who does not import torch.

    None where it is not certain which one that is: CUDA and NVML number them differently.
    """
    name = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not name.startswith("GPU-") and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return _unknown
    try:
        pynvml.nvmlInit()
        if not name.startswith("GPU-"):
            name = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(int(name)))
    except (pynvml.NVMLError, ValueError):
        return _unknown
    return _since_now(whole_gpu(name.removeprefix("GPU-")))


def gpu_energy(device: torch.device) -> Callable[[], float | None]:
    """A function for the joules that a GPU has used by then, from now on."""
    import torch

    # Asked by its own name: CUDA and NVML number the GPUs of a machine differently.
    return _since_now(whole_gpu(str(torch.cuda.get_device_properties(device).uuid)))


@cache
def whole_gpu(uuid: str) -> Any:
    """NVML's handle of a whole GPU, which stays open; None without NVML or for a part of a GPU."""
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None
    return None if _in_slices(gpu) else gpu


def _in_slices(gpu: Any) -> bool:
    """Is the GPU cut by MIG? Its counter is that of all slices together then."""
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(gpu)
    except pynvml.NVMLError:  # a GPU that cannot be cut
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _since_now(gpu: Any) -> Callable[[], float | None]:
    if gpu is None:
        return _unknown
    before = _energy_mj(gpu)

    def used() -> float | None:
        now = _energy_mj(gpu)
        return None if before is None or now is None or now < before else (now - before) * 1e-3

    return used


def _energy_mj(gpu: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu))
    except pynvml.NVMLError:  # before Volta there is no such counter
        return None


def _unknown() -> None:
    return None


def peak_host_memory() -> int | None:
    """Bytes: the most this process ever held, and what its loader processes hold of their own.

    Not `getrusage`: a process inherits its starter's peak, and living children are left out. What
    loader processes share with this one is counted once.
    """
    own = _kilobytes(Path("/proc/self/status"), "VmHWM")
    if own is None:
        return None
    loaders = (
        _kilobytes(Path(f"/proc/{child.pid}/smaps_rollup"), "Private_Clean", "Private_Dirty")
        for child in multiprocessing.active_children()
    )
    return 1024 * (own + sum(held for held in loaders if held))


def _kilobytes(path: Path, *names: str) -> int | None:
    """The sum of these entries of a file of /proc; None when it has not all of them."""
    try:
        text = path.read_text()
    except OSError:
        return None
    found = re.findall(rf"^(?:{'|'.join(names)}):\s+(\d+) kB$", text, re.MULTILINE)
    return sum(map(int, found)) if len(found) == len(names) else None
