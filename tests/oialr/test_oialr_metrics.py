import copy
import gc
import io

import pytest
import torch
from torch import Tensor, nn

from oialr import (
    OIALR,
    NotFiniteError,
    Observation,
    Observer,
    OIALRError,
    OIALRSettings,
    mixing_similarity,
    relative_mixing_similarity,
    stability,
    weight_stability,
)
from oialr.decomposition import decompose

from .algorithm_2 import stability as slow_stability


def bases(m: int, n: int) -> tuple[Tensor, Tensor]:
    factors = decompose(torch.randn(m, n, dtype=torch.float64))
    return factors.basis, factors.cobasis


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_stability_of_equal_bases_is_one(shape: tuple[int, int]) -> None:
    basis, cobasis = bases(*shape)
    assert stability(basis, cobasis, basis, cobasis) == pytest.approx(1)
    assert stability(basis, cobasis, -basis, cobasis) == pytest.approx(-1)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("kept", [5, 3, 1])
def test_stability_agrees_with_the_dense_definition(shape: tuple[int, int], kept: int) -> None:
    old, new = bases(*shape), bases(*shape)
    new = (new[0][:, :kept], new[1][:kept])
    assert stability(*old, *new) == pytest.approx(slow_stability(old, new))
    assert abs(stability(*old, *new)) < 1


def test_stability_does_not_know_how_a_basis_is_turned() -> None:
    old, new = bases(7, 4), bases(7, 4)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    turned = (new[0] @ turn, turn.mT @ new[1])
    assert stability(*old, *turned) == pytest.approx(stability(*old, *new))


def test_dropped_directions_do_not_count_as_unstable() -> None:
    basis, cobasis = bases(8, 6)
    assert stability(basis, cobasis, basis[:, :2], cobasis[:2]) == pytest.approx(1)


def test_percentages_by_hand() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 1))
    model[3].bias.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    oialr = OIALR(
        model,
        optimizer,
        OIALRSettings(
            delay_steps=1,
            update_frequency=1,
            cutoff_fraction=0.99,
            max_cut_fraction=0.5,
            layer_fraction=0.5,
        ),
    )
    total = (48 + 8) + 16 + (64 + 8) + (8 + 1)
    dense_only = 8 + 16 + 8 + 8  # biases, batch norm and the head's weight
    assert (oialr.trainable_percent, oialr.compression_percent) == (100, 100)
    oialr.step()  # only the last low-rank layer is cut: 8 -> 4
    assert oialr.trainable_percent == pytest.approx(100 * (36 + 16 + dense_only) / (total - 1))
    low_rank = 6 * (6 + 8 + 6) + 4 * (8 + 8 + 4)
    assert oialr.compression_percent == pytest.approx(100 * (low_rank + dense_only + 1) / total)
    assert oialr.compression_percent > 100


def test_a_convolution_counts_as_its_matrix() -> None:
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.Conv1d(5, 4, 2, bias=False))
    settings = OIALRSettings(
        delay_steps=0, update_frequency=1, cutoff_fraction=0.99, layer_fraction=1.0
    )
    oialr = OIALR(model, torch.optim.SGD(model.parameters(), lr=0.1), settings)
    oialr.step()  # 20 -> 10 and 4 -> 2
    total = (20 * 27 + 20) + 40 + 4 * 10
    low_rank = (10 * (20 + 27 + 10) + 20) + 40 + 2 * (4 + 10 + 2)
    assert oialr.compression_percent == pytest.approx(100 * low_rank / total)
    assert oialr.trainable_percent == pytest.approx(100 * (100 + 20 + 40 + 4) / total)


def test_weights_of_many_dimensions_count_as_their_matrices() -> None:
    old, new = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    matrices = old.reshape(5, 6), new.reshape(5, 6)
    assert weight_stability(old, new) == pytest.approx(weight_stability(*matrices))
    for similarity in (mixing_similarity, relative_mixing_similarity):
        assert similarity(old, new) == pytest.approx(similarity(*matrices))


def test_mixing_by_hand() -> None:
    old, new = torch.tensor([[3.0, 0], [0, -4]]), torch.tensor([[0.0, 4], [3, 0]])
    # R is diag(3, 4) of the one, where the sign goes to Q, and diag(3, 4) of the other: turned only
    assert mixing_similarity(old, new) == relative_mixing_similarity(old, new) == 1
    new = torch.tensor([[3.0, 0], [0, 1]])
    assert mixing_similarity(old, new) == pytest.approx(1 - (3**2 / 4) ** 0.5)
    assert relative_mixing_similarity(old, new) == pytest.approx(1 - 3 / (5 + 10**0.5))
    old, new = torch.tensor([[0.0], [-3], [4]]), torch.tensor([[8.0], [0], [0]])  # R: 5 and 8
    assert mixing_similarity(old, new) == pytest.approx(1 - (3**2 / 3) ** 0.5)


class Network(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.convolution(self.linear(x).mT).mT)
        return self.attention(x, x, x)[0]


NAMES = ["linear", "convolution", "attention", "attention.out_proj"]


def dense_weights(model: Network) -> dict[str, Tensor]:
    attention = model.attention
    weights = (model.linear.weight, model.convolution.weight, attention.in_proj_weight)
    weights += (attention.out_proj.weight,)
    return {
        name: weight.detach().clone().flatten(1)
        for name, weight in zip(NAMES, weights, strict=True)
    }


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 5, 6)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("delay_steps", [None, 0, 5])  # full rank, low rank, first one, then other
def test_observations_are_those_of_the_weights(delay_steps: int | None) -> None:
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    oialr = None
    if delay_steps is not None:
        settings = OIALRSettings(
            delay_steps=delay_steps, update_frequency=3, cutoff_fraction=0.0, layer_fraction=1.0
        )
        oialr = OIALR(model, optimizer, settings)
    observer = Observer(model, interval=2, lags=(1, 3))
    instants, observed = {0: dense_weights(model)}, []
    for step in range(1, 12):
        train_step(model, optimizer)
        if oialr:
            oialr.step()
        found = observer.step()
        instants[step] = dense_weights(model)
        earlier = [step - 2 * lag for lag in (1, 3) if step - 2 * lag >= 0]
        expected = [(name, e) for name in NAMES for e in earlier] if step % 2 == 0 else []
        assert [(o.layer, o.earlier_step) for o in found] == expected
        assert all(o.step == step for o in found)
        observed += found
    for observation in observed:
        old, new = (
            instants[s][observation.layer] for s in (observation.earlier_step, observation.step)
        )
        assert observation.stability == pytest.approx(weight_stability(old, new), abs=1e-4)
        assert observation.mixing_similarity == pytest.approx(mixing_similarity(old, new), abs=1e-4)
        expected = relative_mixing_similarity(old, new)
        assert observation.relative_mixing_similarity == pytest.approx(expected, abs=1e-4)
        assert 0 < observation.relative_mixing_similarity < observation.mixing_similarity < 1
        assert observation.stability < 1


def test_observing_a_cut_weight_compares_what_was_kept() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False))
    settings = OIALRSettings(delay_steps=0, update_frequency=1, cutoff_fraction=0.99)
    oialr = OIALR(model, torch.optim.SGD(model.parameters(), lr=0.1), settings)
    before, observer = model[0].weight.detach(), Observer(model, interval=1)
    oialr.step()
    (observation,) = observer.step()
    assert model[0].inner_rank == 3
    assert observation.stability == pytest.approx(1, abs=1e-5)
    after = model[0].weight.detach()
    expected = mixing_similarity(before, after), relative_mixing_similarity(before, after)
    found = observation.mixing_similarity, observation.relative_mixing_similarity
    assert found == pytest.approx(expected, abs=1e-5)
    assert expected[1] < 0.95


def test_nothing_happens_to_a_weight_that_nobody_trains() -> None:
    observer = Observer(Network(), interval=3, lags=(2,))
    found = [observation for _ in range(6) for observation in observer.step()]
    assert [(o.step, o.earlier_step, o.layer) for o in found] == [(6, 0, name) for name in NAMES]
    assert [o.stability for o in found] == pytest.approx([1] * 4)
    assert [o.mixing_similarity for o in found] == pytest.approx([1] * 4)
    assert [o.relative_mixing_similarity for o in found] == pytest.approx([1] * 4)


def test_a_weight_taken_apart_starts_anew() -> None:
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    settings = OIALRSettings(
        delay_steps=2, update_frequency=9, cutoff_fraction=0.1, fused_projections="apart"
    )
    oialr, observer, layers = OIALR(model, optimizer, settings), Observer(model, interval=1), []
    for _ in range(3):
        train_step(model, optimizer)
        oialr.step()
        layers.append([observation.layer for observation in observer.step()])
    others = ["linear", "convolution", "attention.out_proj"]
    apart = ["linear", "convolution", *(f"attention[{i}]" for i in range(3)), "attention.out_proj"]
    assert layers == [NAMES, others, apart]


def test_observing_changes_nothing() -> None:
    models = [Network()]
    models.append(copy.deepcopy(models[0]))
    for i, model in enumerate(models):
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        settings = OIALRSettings(delay_steps=2, update_frequency=2, cutoff_fraction=0.4)
        oialr = OIALR(model, optimizer, settings)
        observer = Observer(model, interval=1) if i else None
        for _ in range(4):
            train_step(model, optimizer)
            oialr.step()
            assert observer is None or all(isinstance(o, Observation) for o in observer.step())
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_only_the_last_instants_are_kept() -> None:
    observer, numbers = Observer(nn.Sequential(nn.Linear(51, 53)), interval=1, lags=(2,)), []
    for _ in range(5):
        observer.step()
        gc.collect()
        tensors = (thing for thing in gc.get_objects() if type(thing) is Tensor)
        numbers.append(sum(tensor.shape == (53, 51) for tensor in tensors))
    assert numbers == [2] * 5  # U of the last two instants


def test_a_wrong_observer_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(OIALRError, match=r"`interval >= 1` must hold, got interval=0"):
        Observer(model, interval=0)
    for lags in ((), (1, 0)):
        with pytest.raises(OIALRError, match=r"got lags="):
            Observer(model, interval=1, lags=lags)


def test_observing_what_is_not_finite_names_layer_and_step() -> None:
    model = Network()
    observer = Observer(model, interval=1)
    observer.step()
    model.convolution.weight.data[0, 1, 2] = float("inf")
    with pytest.raises(NotFiniteError, match=r"layer 'convolution' is not finite at step 2\b"):
        observer.step()


def test_an_observer_goes_on_from_its_saved_state() -> None:
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    settings = OIALRSettings(delay_steps=4, update_frequency=3, cutoff_fraction=0.4)
    oialr, observer = OIALR(model, optimizer, settings), Observer(model, interval=2, lags=(1, 3))
    for step in range(1, 15):
        train_step(model, optimizer)
        oialr.step()
        file = io.BytesIO()
        torch.save(observer.state_dict(), file)
        file.seek(0)
        resumed = Observer(model, interval=2, lags=(1, 3))
        resumed.load_state_dict(torch.load(file, weights_only=True))
        found = observer.step()
        assert resumed.step() == found
        assert bool(found) == (step % 2 == 0)
        observer = resumed
