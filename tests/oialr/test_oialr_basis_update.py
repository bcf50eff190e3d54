import copy

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from oialr import OIALR, LowRankLinear, OIALRError, OIALRSettings, stability
from oialr.basis_update import kept_inner_rank, update_bases
from oialr.decomposition import decompose


def make_settings(**changes: object) -> OIALRSettings:
    values = {
        "delay_steps": 0,
        "update_frequency": 1,
        "cutoff_fraction": 0.0,
        "layer_fraction": 1.0,
    }
    return OIALRSettings(**(values | changes))


def make_layer(
    m: int = 8, n: int = 6, singular_values: Tensor | None = None
) -> tuple[LowRankLinear, torch.optim.Optimizer]:
    weight = torch.randn(m, n, dtype=torch.float64)
    if singular_values is not None:
        basis, _, cobasis = decompose(weight)
        weight = basis @ singular_values.double().diag() @ cobasis
    layer = LowRankLinear(decompose(weight), None)
    return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, n: int, steps: int = 1) -> Tensor:
    for _ in range(steps):
        x = torch.randn(10, n, dtype=next(model.parameters()).dtype)
        loss = model(x).sin().square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss


@pytest.mark.parametrize(("m", "n"), [(8, 6), (6, 8), (7, 7)])
def test_without_truncation_the_product_stays(m: int, n: int) -> None:
    layer, optimizer = make_layer(m, n)
    train(layer, optimizer, n, steps=3)
    assert not torch.equal(layer.sigma, layer.sigma.diag().diag())
    before, old = layer.weight.detach(), (layer.basis, layer.cobasis)
    similarity = update_bases([layer], optimizer, make_settings())[0]
    torch.testing.assert_close(layer.weight, before)
    assert torch.equal(layer.sigma, layer.sigma.diag().diag())
    eye = torch.eye(layer.inner_rank, dtype=torch.float64)
    torch.testing.assert_close(layer.basis.mT @ layer.basis, eye)
    torch.testing.assert_close(layer.cobasis @ layer.cobasis.mT, eye)
    assert similarity == stability(*old, layer.basis, layer.cobasis)
    assert similarity < 1


def test_a_whole_model_is_unchanged_by_updates_without_truncation() -> None:
    model = nn.Sequential(
        nn.Linear(6, 9), nn.Tanh(), nn.TransformerEncoderLayer(9, 3, 12, dropout=0)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    oialr = OIALR(model, optimizer, make_settings(fused_projections="apart"))
    train(model, optimizer, 6, steps=3)
    x = torch.randn(4, 6)
    before = model(x)
    assert len(oialr.step()) == 7
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-4)


def test_truncation_drops_exactly_the_small_singular_values() -> None:
    singular_values = torch.tensor([10, 5, 1.01, 0.99, 0.5, 0.1])
    layer, optimizer = make_layer(8, 6, singular_values)
    left, _, right = decompose(layer.weight.detach())
    update_bases([layer], optimizer, make_settings(cutoff_fraction=0.1))
    torch.testing.assert_close(layer.sigma.detach(), singular_values[:3].double().diag())
    best = left[:, :3] @ singular_values[:3].double().diag() @ right[:3]
    torch.testing.assert_close(layer.weight.detach(), best)


@pytest.mark.parametrize(
    ("singular_values", "full", "changes", "kept"),
    [
        ([8.0, 4, 2, 1], 4, {"cutoff_fraction": 0.125}, 4),  # equal to the cut: stays
        ([8.0, 4, 2, 1], 4, {"cutoff_fraction": 0.126}, 3),
        ([8.0, 1, 1, 1], 4, {"cutoff_fraction": 0.5}, 2),  # at most half goes
        ([8.0, 1, 1, 1, 1], 5, {"cutoff_fraction": 0.5}, 3),
        ([8.0, 1, 1, 1], 4, {"cutoff_fraction": 0.5, "max_cut_fraction": 1.0}, 1),
        ([8.0] + [1.0] * 9, 10, {"cutoff_fraction": 0.5, "max_cut_fraction": 0.7}, 3),
        (
            [8.0, 1, 1, 1],
            60,
            {"cutoff_fraction": 0.5, "max_cut_fraction": 1.0, "min_inner_rank_fraction": 0.05},
            3,
        ),
        ([8.0, 1], 1000, {"cutoff_fraction": 0.5}, 2),  # never more than there are
        ([8.0], 10, {"cutoff_fraction": 0.9, "min_inner_rank_fraction": 0.0}, 1),
        ([0.0, 0, 0], 3, {"cutoff_fraction": 0.5, "max_cut_fraction": 1.0}, 3),
    ],
)
def test_cut_and_its_limits(
    singular_values: list[float], full: int, changes: dict[str, object], kept: int
) -> None:
    settings = make_settings(**changes)
    assert kept_inner_rank(torch.tensor(singular_values), full, settings) == kept


@pytest.mark.parametrize("inner_ranks", [(64, 20), (2, 1)])
def test_truncation_frees_memory(inner_ranks: tuple[int, int]) -> None:
    full, kept = inner_ranks
    singular_values = torch.ones(full)
    singular_values[kept:] = 1e-3
    layer, optimizer = make_layer(90, full, singular_values)
    train(layer, optimizer, full)
    layer.sigma.data = singular_values.double().diag()  # undo the step, keep the moments
    update_bases([layer], optimizer, make_settings(cutoff_fraction=0.1, max_cut_fraction=1.0))
    assert layer.inner_rank == kept
    assert layer.sigma.grad is None
    tensors = [layer.basis, layer.cobasis, layer.sigma.data, *optimizer.state[layer.sigma].values()]
    for tensor in tensors:
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert len(optimizer.state) == 1


def tensors_of(layers: list[LowRankLinear], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    factors = [part for w in layers for part in (w.basis, w.sigma.data, w.cobasis)]
    moments = [m for w in layers for m in optimizer.state[w.sigma].values() if m.ndim]
    return factors + moments


@pytest.mark.parametrize("optimizer_state", ["rotate", "cut", "reset"])
@pytest.mark.parametrize("cutoff_fraction", [0.0, 0.9])
def test_nothing_of_the_old_stays_in_memory(cutoff_fraction: float, optimizer_state: str) -> None:
    layers = [make_layer(m, n)[0] for m, n in [(40, 30), (30, 40), (30, 30), (20, 25)]]
    optimizer = torch.optim.AdamW(nn.ModuleList(layers).parameters(), lr=0.1, amsgrad=True)
    for layer in layers:
        layer(torch.randn(3, layer.in_features, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    old = [StorageWeakRef(t.untyped_storage()) for t in tensors_of(layers, optimizer)]
    assert len(old) == 4 * (3 + 3)
    assert not any(storage.expired() for storage in old)
    changes = {"cutoff_fraction": cutoff_fraction, "optimizer_state": optimizer_state}
    update_bases(layers, optimizer, make_settings(max_cut_fraction=1.0, **changes))
    assert all(storage.expired() for storage in old)
    new = tensors_of(layers, optimizer)
    assert len({tensor.untyped_storage().data_ptr() for tensor in new}) == len(new)
    for tensor in new:
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert len(optimizer.state) == 4


class SVDCounter(TorchDispatchMode):
    """Notes the shape of what is given to each SVD."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "svd" in func.name():
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_alike_sigmas_are_decomposed_in_one_call_and_as_if_alone() -> None:
    shapes = [(9, 6), (5, 5), (6, 9), (7, 6), (5, 8), (4, 4)]
    layers = [make_layer(m, n)[0] for m, n in shapes]
    layers.append(make_layer(6, 6)[0].float())
    together, alone = nn.ModuleList(layers), nn.ModuleList(copy.deepcopy(layers))
    with torch.no_grad():
        for one, other in zip(together, alone, strict=True):
            one.sigma += torch.randn_like(one.sigma)
            other.sigma.copy_(one.sigma)
    settings = make_settings(cutoff_fraction=0.4)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in (together, alone)]
    with SVDCounter() as counter:
        found = update_bases(list(together), optimizers[0], settings)
    assert counter.shapes == [(3, 6, 6), (2, 5, 5), (1, 4, 4), (1, 6, 6)]
    expected = [update_bases([layer], optimizers[1], settings)[0] for layer in alone]
    assert found == pytest.approx(expected)
    assert [layer.inner_rank for layer in together] == [layer.inner_rank for layer in alone]
    assert min(layer.inner_rank for layer in together) < 4
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.weight, other.weight)


def test_a_model_s_update_decomposes_only_what_it_reaches() -> None:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    oialr = OIALR(model, optimizer, make_settings(layer_fraction=0.5, update_frequency=2))
    shapes = []
    for _ in range(4):
        with SVDCounter() as counter:
            oialr.step()
        shapes.append(counter.shapes)
    assert shapes == [[], [(2, 6, 6)], [], [(4, 6, 6)]]


def test_a_refusal_comes_before_the_first_change() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    oialr = OIALR(model, optimizer, make_settings(cutoff_fraction=0.9))
    optimizer.state[model[1].sigma]["row_var"] = torch.zeros(6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OIALRError, match=r"AdamW cannot train with OIALR: .* 'row_var'"):
        oialr.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_training_goes_on_while_an_old_graph_is_alive() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    oialr = OIALR(model, optimizer, make_settings(cutoff_fraction=0.9))
    losses = []  # hold every step's graph, and with it the shapes of its parameters
    inner_ranks = []
    for _ in range(4):
        losses.append(train(model, optimizer, 6))
        inner_ranks += [update.inner_rank for update in oialr.step()]
    assert inner_ranks[:2] == [3, 3]
    assert inner_ranks[-1] < 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_many_updates_do_not_wear_orthogonality_away(dtype: torch.dtype) -> None:
    layer = LowRankLinear(decompose(torch.randn(24, 16, dtype=dtype)), None)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    for _ in range(50):
        with torch.no_grad():
            layer.sigma += 0.05 * torch.randn_like(layer.sigma)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            update_bases([layer], optimizer, make_settings())
    assert layer.basis.dtype == dtype
    deviation = (layer.basis.mT.double() @ layer.basis.double() - torch.eye(16)).abs().max()
    assert deviation < {torch.bfloat16: 0.1, torch.float32: 2e-5}[dtype]


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_momentum_trajectory_does_not_notice_updates_without_truncation(nesterov: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    models = {1000: model, 2: copy.deepcopy(model)}
    for frequency, trained in models.items():
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(
            trained.parameters(), lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.01
        )
        oialr = OIALR(trained, optimizer, make_settings(update_frequency=frequency))
        for _ in range(9):
            train(trained, optimizer, 6)
            oialr.step()
    for rarely, often in zip(models[1000], models[2], strict=True):
        if isinstance(rarely, LowRankLinear):
            assert not torch.allclose(rarely.sigma, often.sigma)
            torch.testing.assert_close(often.weight, rarely.weight)
            torch.testing.assert_close(often.bias, rarely.bias)
