"""Two real processes with gloo; run as a program, this file is one of them."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from oialr import OIALR, OIALRError, OIALRSettings, export

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

SHARDED = ("low_rank_from_the_start", "converted_under_way", "momentum")

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
    pieces = sum(
        (p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters()
    )
    with oialr.unsharded():
        weights = {
            f"{name}.{i}": weight.dense().detach()
            for name, layer in oialr.low_rank_layers.items()
            for i, weight in enumerate(layer.weights)
        }
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer_state = copy.deepcopy(optimizer.state_dict())
    return {
        "model": state,
        "optimizer": optimizer_state,
        "pieces": pieces,
        "oialr": oialr.state_dict(),
        "weights": weights,
        "updates": [
            (update.step, update.layer, update.inner_rank, update.stability) for update in updates
        ],
    }


def shard(model: nn.Module) -> None:
    fully_shard(model[1])
    fully_shard(model)


def do_not_wrap(model: nn.Module) -> nn.Module:
    return model


def main(folder: Path, process: int, how: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(str(folder / "store"), NUM_PROCESSES),
        rank=process,
        world_size=NUM_PROCESSES,
    )
    torch.linalg.svd = CountedSvd(signs=1.0 if process == 0 else -1.0)
    results = sharded(process) if how == "sharded" else copies(process)
    torch.save(results, folder / f"{process}.pt")
    torch.distributed.destroy_process_group()


def sharded(process: int) -> dict[str, Any]:
    results: dict[str, Any] = {
        scenario: train(scenario, process, NUM_PROCESSES, do_not_wrap, rewrap=False, shard=shard)
        for scenario in SHARDED
    }
    return results | {"resumed": resume_sharded(process)}


def resume_sharded(process: int) -> list[dict[str, Tensor]]:
    """The weights of a training, and of another that went on from its middle."""
    trainings = []
    for _ in range(2):
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        settings = OIALRSettings(**(SETTINGS | {"delay_steps": 6}))
        trainings.append((model, optimizer, OIALR(model, optimizer, settings, shard=shard)))

    def go(model: nn.Module, optimizer: torch.optim.Optimizer, oialr: OIALR, begin: int) -> None:
        for step in range(begin, begin + 11):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(BATCH_SIZE, 3, 6, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            model(x.chunk(NUM_PROCESSES)[process]).sin().square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            oialr.step()

    (model, optimizer, oialr), other = trainings
    go(model, optimizer, oialr, 0)
    options = StateDictOptions(full_state_dict=True)
    stored = copy.deepcopy(get_state_dict(model, optimizer, options=options))
    other[2].load_state_dict(oialr.state_dict())
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_state_dict(
        *other[:2], model_state_dict=stored[0], optim_state_dict=stored[1], options=options
    )
    weights = []
    for training in trainings:
        go(*training, 11)
        with training[2].unsharded():
            weights.append(export(training[0]).state_dict())
    return weights


def copies(process: int) -> dict[str, Any]:
    group = torch.distributed.group.WORLD

    def wrap(model: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(model)
        assert not [
            buffer
            for name, buffer in model.named_buffers()
            if name.endswith("basis") and any(buffer is sent for sent in wrapped.modules_buffers)
        ]
        return wrapped

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
    return results


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes came to; they run all scenarios, so that they start once."""
    return run_processes(tmp_path_factory.mktemp("processes"), "copies")


@pytest.fixture(scope="module")
def sharded_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The same where each holds a half of everything."""
    return run_processes(tmp_path_factory.mktemp("sharded"), "sharded")


def run_processes(folder: Path, how: str) -> list[dict[str, Any]]:
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(process), how],
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
    assert_they_agree(processes, scenario)


def assert_they_agree(processes: list[dict[str, Any]], scenario: str) -> None:
    first, second = (results[scenario] for results in processes)
    for part in ("model", "optimizer", "oialr", "updates"):
        assert_same(first[part], second[part])


def test_two_halves_of_a_batch_do_as_the_whole(
    processes: list[dict[str, Any]], alone: tuple[str, dict[str, Any], int]
) -> None:
    scenario, expected, _ = alone
    assert_it_did_as(expected, processes[0][scenario])


def assert_it_did_as(expected: dict[str, Any], found: dict[str, Any]) -> None:
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


@pytest.mark.slow
def test_sharded_halves_do_as_the_whole(
    sharded_processes: list[dict[str, Any]], alone: tuple[str, dict[str, Any], int]
) -> None:
    scenario, expected, _ = alone
    if scenario not in SHARDED:
        pytest.skip("copies show it")
    assert_they_agree(sharded_processes, scenario)
    assert_it_did_as(expected, sharded_processes[0][scenario])
    pieces = [results[scenario]["pieces"] for results in sharded_processes]
    total = sum(tensor.numel() for tensor in expected["model"].values())
    assert sum(pieces) == total
    assert max(pieces) < 0.55 * total


@pytest.mark.slow
def test_a_sharded_training_goes_on_from_its_state(
    sharded_processes: list[dict[str, Any]],
) -> None:
    for results in sharded_processes:
        first, second = results["resumed"]
        assert_same(first, second)
        assert_same(first, sharded_processes[0]["resumed"][0])


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_sharding_changes_nothing_of_a_training(alone: tuple[str, dict[str, Any], int]) -> None:
    scenario, expected, _ = alone
    if scenario != "converted_under_way":
        pytest.skip("slow tests have the others")
    found = train(scenario, 0, 1, do_not_wrap, rewrap=False, shard=shard)
    assert_it_did_as(expected, found)


@pytest.mark.usefixtures("one_process")
def test_what_cannot_be_sharded_by_oialr_is_refused() -> None:
    model = make_model()
    shard(model)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(OIALRError, match="what calls `fully_shard` on it as `shard`"):
        OIALR(model, optimizer, OIALRSettings(**SETTINGS))
    model = make_model()
    model[0].weight = nn.Parameter(
        distribute_tensor(model[0].weight, init_device_mesh("cpu", (1,)))
    )
    with pytest.raises(OIALRError, match="split over processes"):
        OIALR(model, torch.optim.SGD(model.parameters()), OIALRSettings(**SETTINGS))
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters())
    oialr = OIALR(model, optimizer, OIALRSettings(**SETTINGS), shard=shard)
    with pytest.raises(OIALRError, match="an average cannot follow a model that is sharded"):
        oialr.add_average(make_model())


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
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
