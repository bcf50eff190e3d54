"""Two real processes with gloo; run as a program, this file is one of them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from oialr import OIALR, OIALRError, OIALRSettings

NUM_PROCESSES = 2
NUM_STEPS = 20
BATCH_SIZE = 8

SETTINGS = {
    "delay_steps": 0,
    "update_frequency": 4,
    "cutoff_fraction": 0.4,
    "layer_fraction": 0.5,
    "fused_projections": "apart",
}
SCENARIOS: dict[str, dict[str, object]] = {
    "low_rank_from_the_start": {},
    "no_full_rank_warmup": {"delay_steps": 6, "full_rank_warmup": False},
    "converted_under_way": {"delay_steps": 6},
    "momentum": {"delay_steps": 6, "optimizer": "sgd"},
}

Wrap = Callable[[nn.Module], nn.Module]


class CountedSvd:
    """torch's SVD; with signs that another machine's library might give, if asked for."""

    def __init__(self, signs: float) -> None:
        self.num_svds = 0
        self.signs = signs
        self.svd = torch.linalg.svd

    def __call__(self, matrices: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        self.num_svds += matrices.shape[:-2].numel()
        left, singular_values, right = self.svd(matrices, **options)
        return self.signs * left, singular_values, self.signs * right


def make_model() -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(6, 16), encoder, nn.Linear(16, 8)).double()


def train(
    scenario: str, process: int, num_processes: int, wrap: Wrap, rewrap: bool = True, **options: Any
) -> dict[str, Any]:
    """Each process takes its share of every batch; the whole batch, if it is alone."""
    changes = dict(SCENARIOS[scenario])
    sgd = changes.pop("optimizer", "adamw") == "sgd"
    model = make_model()
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        if sgd
        else torch.optim.AdamW(model.parameters(), lr=3e-3)
    )
    oialr = OIALR(model, optimizer, OIALRSettings(**(SETTINGS | changes)), **options)
    wrapped = wrap(model)
    updates = []
    for step in range(NUM_STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH_SIZE, 3, 6, generator=generator, dtype=torch.float64)
        x = x.chunk(num_processes)[process]
        optimizer.zero_grad()
        wrapped(x).sin().square().mean().backward()
        optimizer.step()
        if found := oialr.step():
            updates += found
            if rewrap:
                wrapped = wrap(model)
    weights = {
        f"{name}.{i}": weight.dense().detach()
        for name, layer in oialr.low_rank_layers.items()
        for i, weight in enumerate(layer.weights)
    }
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "oialr": oialr.state_dict(),
        "weights": weights,
        "updates": [
            (update.step, update.layer, update.inner_rank, update.stability) for update in updates
        ],
    }


def do_not_wrap(model: nn.Module) -> nn.Module:
    return model


def main(folder: Path, process: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(str(folder / "store"), NUM_PROCESSES),
        rank=process,
        world_size=NUM_PROCESSES,
    )
    torch.linalg.svd = CountedSvd(signs=1.0 if process == 0 else -1.0)
    group = torch.distributed.group.WORLD

    def wrap(model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, broadcast_buffers=False)

    def wrap_for_unused(model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, find_unused_parameters=True)

    results: dict[str, Any] = {}
    for scenario in SCENARIOS:
        torch.linalg.svd.num_svds = 0
        results[scenario] = train(scenario, process, NUM_PROCESSES, wrap, process_group=group)
        results[scenario]["num_svds"] = torch.linalg.svd.num_svds

    model = wrap(make_model())
    with pytest.raises(OIALRError) as wrapper_refusal:
        OIALR(model, torch.optim.SGD(model.parameters()), OIALRSettings(**SETTINGS))
    results["wrapper"] = str(wrapper_refusal.value)
    for name, wrap_once, scenario in (
        ("forgotten", wrap, "converted_under_way"),
        ("forgotten_and_told_to_accept_it", wrap_for_unused, "converted_under_way"),
        ("never_wrapped", do_not_wrap, "converted_under_way"),
        ("never_wrapped_from_the_start", do_not_wrap, "low_rank_from_the_start"),
    ):
        with pytest.raises((OIALRError, RuntimeError)) as refusal:
            train(scenario, process, NUM_PROCESSES, wrap_once, rewrap=False, process_group=group)
        results[name] = refusal.typename, str(refusal.value)
    torch.save(results, folder / f"{process}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes came to; they run all scenarios, so that they start once."""
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(NUM_PROCESSES)
    ]
    try:
        for child in started:
            output, _ = child.communicate(timeout=120)
            assert child.returncode == 0, output
    finally:
        for child in started:
            child.kill()
    return [
        torch.load(folder / f"{process}.pt", weights_only=True) for process in range(NUM_PROCESSES)
    ]


@pytest.fixture(params=SCENARIOS, scope="module")
def alone(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], int]:
    """A scenario, what one process makes of it with the whole batch, and with how many SVDs."""
    with pytest.MonkeyPatch.context() as patch:
        svd = CountedSvd(signs=1.0)
        patch.setattr(torch.linalg, "svd", svd)
        result = train(request.param, 0, 1, do_not_wrap)
    return request.param, result, svd.num_svds


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_same(*pair)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_processes_agree_bit_for_bit(processes: list[dict[str, Any]], scenario: str) -> None:
    first, second = (results[scenario] for results in processes)
    for part in ("model", "optimizer", "oialr", "updates"):
        assert_same(first[part], second[part])


def test_two_halves_of_a_batch_do_as_the_whole(
    processes: list[dict[str, Any]], alone: tuple[str, dict[str, Any], int]
) -> None:
    scenario, expected, _ = alone
    found = processes[0][scenario]
    assert found["oialr"] == expected["oialr"]
    assert min(min(ranks) for ranks in found["oialr"]["inner_ranks"].values()) < 6
    assert list(found["weights"]) == list(expected["weights"])
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, atol=1e-6, rtol=0)
    for name, tensor in expected["model"].items():
        if "basis" not in name and "sigma" not in name:  # the signs of U, Σ and V are free
            torch.testing.assert_close(found["model"][name], tensor, atol=1e-6, rtol=0)
    for (*update, stability), (*expected_update, expected_stability) in zip(
        found["updates"], expected["updates"], strict=True
    ):
        assert update == expected_update
        assert stability == pytest.approx(expected_stability, abs=1e-6)


def test_each_svd_is_taken_by_one_process(
    processes: list[dict[str, Any]], alone: tuple[str, dict[str, Any], int]
) -> None:
    scenario, _, num_svds = alone
    shares = [results[scenario]["num_svds"] for results in processes]
    assert sum(shares) == num_svds
    assert max(shares) < 0.7 * num_svds


def test_a_wrapped_model_is_refused(processes: list[dict[str, Any]]) -> None:
    for results in processes:
        assert "wrap it in DistributedDataParallel afterwards" in results["wrapper"]


def test_a_forgotten_wrap_does_not_pass_unnoticed(processes: list[dict[str, Any]]) -> None:
    for results in processes:
        kind, message = results["forgotten"]
        assert kind == "RuntimeError"
        assert "parameters that were not used" in message


@pytest.mark.parametrize(
    "name",
    ["forgotten_and_told_to_accept_it", "never_wrapped", "never_wrapped_from_the_start"],
)
def test_processes_that_train_apart_are_refused(processes: list[dict[str, Any]], name: str) -> None:
    for results in processes:
        kind, message = results[name]
        assert kind == OIALRError.__name__
        assert "wrap the model in DistributedDataParallel, and anew" in message


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
