"""The equations of OIALR against plain transcriptions in float64, on matrices of all kinds."""

import copy
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oialr import (
    OIALR,
    LowRankLinear,
    NotFiniteError,
    OIALRSettings,
    mixing_similarity,
    relative_mixing_similarity,
    stability,
    weight_stability,
)
from oialr.basis_update import update_bases
from oialr.decomposition import decompose
from oialr.optimizer_state import rotate_first, rotate_second

from .algorithm_2 import Weight

torch.set_num_threads(1)

on_many = settings(max_examples=40, deadline=None, derandomize=True)
on_a_few = settings(max_examples=6, deadline=None, derandomize=True)

sides = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)


def make_settings(**changes: object) -> OIALRSettings:
    values = {
        "delay_steps": 0,
        "update_frequency": 1,
        "cutoff_fraction": 0.0,
        "layer_fraction": 1.0,
        "max_cut_fraction": 1.0,
        "min_inner_rank_fraction": 0.0,
        "min_dim": 1,
        "max_aspect_ratio": 1e6,
    }
    return OIALRSettings(**(values | changes))


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Full rank, rank-deficient or zero; wide, high, square, a row or a column; large or small."""
    m, n, seed = draw(sides), draw(sides), draw(seeds)
    true_rank = draw(st.integers(0, min(m, n)))
    scale = 10.0 ** draw(st.integers(-6, 6))
    return scale * normal(seed, m, true_rank) @ normal(seed + 1, true_rank, n)


def make_layer(weight: Tensor) -> LowRankLinear:
    return LowRankLinear(decompose(weight), None)


def perturb(layer: LowRankLinear, seed: int) -> None:
    """Move Σ off the diagonal as training would."""
    with torch.no_grad():
        noise = normal(seed, *layer.sigma.shape).to(layer.sigma)
        layer.sigma += 0.3 * layer.sigma.norm() / layer.inner_rank * noise


def update(layer: LowRankLinear, changed: OIALRSettings) -> float:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    return update_bases([layer], optimizer, changed)[0]


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def deviation(layer: LowRankLinear) -> float:
    """How far the bases are from orthonormal, in the worst entry."""
    eye = np.eye(layer.inner_rank)
    basis, cobasis = array(layer.basis), array(layer.cobasis)
    return max(abs(basis.T @ basis - eye).max(), abs(cobasis @ cobasis.T - eye).max())


@on_many
@given(weights())
def test_conversion(weight: Tensor) -> None:
    layer = make_layer(weight)
    m, n = weight.shape
    assert layer.basis.shape == (m, min(m, n))
    assert layer.sigma.shape == (min(m, n), min(m, n))
    assert layer.cobasis.shape == (min(m, n), n)
    assert deviation(layer) < 1e-12
    expected = np.diag(np.linalg.svd(array(weight), compute_uv=False))
    np.testing.assert_allclose(array(layer.sigma), expected, atol=1e-12 * float(weight.norm()))
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-12 * float(weight.norm()))


@on_many
@given(weights(), seeds)
def test_update_without_truncation_keeps_the_product(weight: Tensor, seed: int) -> None:
    layer = make_layer(weight)
    perturb(layer, seed)
    before = layer.weight.detach()
    update(layer, make_settings())
    assert layer.inner_rank == min(weight.shape)
    assert deviation(layer) < 1e-12
    torch.testing.assert_close(layer.weight, before, rtol=0, atol=1e-12 * float(before.norm()))


@on_many
@given(weights(), seeds, st.floats(0.0, 0.99))
def test_update_with_truncation(weight: Tensor, seed: int, cutoff_fraction: float) -> None:
    layer, changed = make_layer(weight), make_settings(cutoff_fraction=cutoff_fraction)
    perturb(layer, seed)
    before = layer.weight.detach()
    size = float(before.norm())
    singular_values = torch.linalg.svdvals(layer.sigma.detach())
    expected = Weight(layer.sigma.detach(), layer.basis, layer.cobasis)
    expected.update(changed)
    assume(expected.toss_up > 1e-9)
    found_stability = update(layer, changed)
    kept = layer.inner_rank
    assert kept == len(expected.sigma) >= 1
    assert layer.basis.shape == (len(weight), kept)
    assert layer.cobasis.shape == (kept, weight.shape[1])
    torch.testing.assert_close(layer.weight.detach(), expected.dense(), rtol=0, atol=1e-11 * size)
    error = float((layer.weight.detach() - before).norm())
    dropped = float(singular_values[kept:].norm())
    assert error == pytest.approx(dropped, rel=1e-9, abs=1e-11 * size)
    if size > 0 and singular_values[-1] > 1e-9 * size:  # else the SVD may choose the bases
        assert found_stability == pytest.approx(expected.stability, abs=1e-9)


def train_and_update(layer: LowRankLinear, num_updates: int, cutoff_fraction: float) -> float:
    """Train and update in turn; the largest error of a product under an update, relatively."""
    changed = make_settings(cutoff_fraction=cutoff_fraction)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    worst = 0.0
    for seed in range(num_updates):
        x = normal(seed, 8, layer.in_features, dtype=torch.float32)
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).sin().square().sum().backward()
            optimizer.step()
        before, inner_rank = layer.weight.detach(), layer.inner_rank
        update_bases([layer], optimizer, changed)
        if layer.inner_rank == inner_rank:
            error = (layer.weight.detach() - before).norm() / before.norm()
            worst = max(worst, error.item())
    return worst


@on_a_few
@given(sides, sides, seeds, st.sampled_from([0.0, 0.02]))
def test_bases_stay_orthonormal_while_training(m: int, n: int, seed: int, cutoff: float) -> None:
    layer = make_layer(normal(seed, m, n, dtype=torch.float32))
    assert train_and_update(layer, 50, cutoff) < 1e-5
    assert deviation(layer) < 1e-5


def test_large_bases_stay_orthonormal_while_training() -> None:
    layer = make_layer(normal(0, 240, 200, dtype=torch.float32))
    assert train_and_update(layer, 50, 0.0) < 1e-5
    assert deviation(layer) < 1e-5


@pytest.mark.parametrize("shape", [(5, 3), (1, 6), (6, 1), (1, 1)])
def test_a_zero_weight_converts_updates_and_trains(shape: tuple[int, int]) -> None:
    layer = make_layer(torch.zeros(shape))
    for cutoff_fraction in (0.0, 0.9):
        update(layer, make_settings(cutoff_fraction=cutoff_fraction))
        assert layer.inner_rank == min(shape)  # nothing is below β · 0
        assert not layer.weight.any()
        assert deviation(layer) < 1e-6
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(2, shape[1])).sum().backward()
    optimizer.step()
    assert layer.weight.norm() > 0.05


@on_many
@given(weights(), st.floats(1e-6, 0.5))
def test_missing_directions_go_at_the_first_truncation(weight: Tensor, cutoff: float) -> None:
    layer = make_layer(weight)
    true_rank = np.linalg.matrix_rank(array(weight))
    update(layer, make_settings(cutoff_fraction=cutoff))
    assert layer.inner_rank <= true_rank or true_rank == 0


NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


def make_training(**changes: object) -> tuple[nn.Module, torch.optim.Optimizer, OIALR]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 4), nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(3, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    oialr = OIALR(model, optimizer, make_settings(delay_steps=2, cutoff_fraction=0.1, **changes))
    return model, optimizer, oialr


def take_steps(training: tuple[nn.Module, torch.optim.Optimizer, OIALR], steps: int) -> None:
    model, optimizer, oialr = training
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 6)).square().sum().backward()
        optimizer.step()
        oialr.step()


def whole_state(training: tuple[nn.Module, torch.optim.Optimizer, OIALR]) -> list[object]:
    model, optimizer, oialr = training
    parts = [model.state_dict(), optimizer.state_dict(), oialr.state_dict()]
    return [*copy.deepcopy(parts), oialr.steps, [id(part) for part in model.modules()]]


def assert_same(found: object, expected: object) -> None:
    if isinstance(found, dict):
        assert list(found) == list(expected)
        for key, value in found.items():
            assert_same(value, expected[key])
    elif isinstance(found, list | tuple):
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    elif isinstance(found, Tensor):
        assert torch.equal(found.nan_to_num(1e9, 2e9, 3e9), expected.nan_to_num(1e9, 2e9, 3e9))
    else:
        assert found == expected


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("layer", ["0", "2", "4"])
@pytest.mark.parametrize("steps", [1, 2, 3])  # at the conversion, at the first and second update
def test_what_is_not_finite_is_refused_and_nothing_changes(
    bad: float, layer: str, steps: int
) -> None:
    training = make_training(full_rank_warmup=True, update_frequency=2 if steps == 3 else 1)
    take_steps(training, steps)
    model, _, oialr = training
    module = model.get_submodule(layer)
    trained = module.sigma if oialr.converted else module.weight
    good = trained.data.flatten()[-1].item()
    trained.data.view(-1)[-1] = bad
    before, parameters = whole_state(training), [id(p) for p in model.parameters()]
    for _ in range(2):
        with pytest.raises(NotFiniteError, match=rf"layer '{layer}' .*at step {steps + 1}\b"):
            oialr.step()
        assert_same(whole_state(training), before)
        assert [id(p) for p in model.parameters()] == parameters
    trained.data.view(-1)[-1] = good
    assert len(oialr.step()) == 3
    assert oialr.steps == steps + 1


@pytest.mark.parametrize("value", [*NOT_FINITE, 3e38])
def test_what_is_not_finite_is_refused_before_the_first_step(value: float) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.MultiheadAttention(4, 2))
    model[1].in_proj_weight.data[5:7] = value  # rows of the key's; two of 3e38 have no norm
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with pytest.raises(NotFiniteError, match=r"layer '1\[1\]' .*at step 0\b"):
        OIALR(model, optimizer, make_settings(fused_projections="apart"))
    assert type(model[0]) is nn.Linear
    assert set(optimizer.param_groups[0]["params"]) == set(model.parameters())


@on_many
@given(weights(), weights(), seeds)
def test_stability(weight: Tensor, other: Tensor, seed: int) -> None:
    assume(weight.shape == other.shape or seed % 2 == 0)
    other = other if weight.shape == other.shape else normal(seed, *weight.shape)
    found = weight_stability(weight, other)
    (u_i, _, v_i), (u_j, _, v_j) = (
        np.linalg.svd(array(w), full_matrices=False) for w in (weight, other)
    )
    if all(np.linalg.matrix_rank(array(w)) == min(weight.shape) for w in (weight, other)):
        expected = np.trace((u_i @ v_i) @ (u_j @ v_j).T) / min(weight.shape)  # Eq. (4)
        assert found == pytest.approx(expected, abs=1e-6)
    assert abs(found) <= 1 + 1e-9
    assert weight_stability(weight, weight) == pytest.approx(1)
    factors = decompose(weight), decompose(other)
    pair = [part for factor in factors for part in (factor.basis, factor.cobasis)]
    assert stability(*pair) == pytest.approx(found)


@on_many
@given(st.integers(1, 8), st.integers(0, 4), seeds, st.floats(0.0, 4.0))
def test_similarities_of_mixings(num_columns: int, more: int, seed: int, scale: float) -> None:
    old, new = (normal(seed + i, num_columns + more, num_columns) for i in range(2))
    upper_old, upper_new = (np.linalg.cholesky(array(w.mT @ w)).T for w in (old, new))  # WᵀW = RᵀR
    expected = 1 - sqrt(((upper_old - upper_new) ** 2).sum() / old.numel())  # Eq. (5)
    assert mixing_similarity(old, new) == pytest.approx(expected, abs=1e-6)
    reach = np.linalg.norm(upper_old) + np.linalg.norm(upper_new)
    expected = 1 - np.linalg.norm(upper_old - upper_new) / reach
    assert relative_mixing_similarity(old, new) == pytest.approx(expected, abs=1e-6)
    assert 0 <= expected <= 1
    relative = relative_mixing_similarity(old, scale * old)
    assert relative == pytest.approx(1 - abs(1 - scale) / (1 + scale))
    turn = torch.linalg.qr(normal(seed + 2, len(old), len(old)))[0]
    for similarity in (mixing_similarity, relative_mixing_similarity):
        found = similarity(old, new)
        assert found == pytest.approx(similarity(new, old))
        assert similarity(old, old) == 1
        assert similarity(turn @ old, new) == pytest.approx(found)


@on_many
@given(weights())
def test_similarities_of_mixings_of_all_kinds(weight: Tensor) -> None:
    zero, root = torch.zeros_like(weight), sqrt(weight.numel())
    assert mixing_similarity(weight, weight) == relative_mixing_similarity(weight, weight) == 1
    assert mixing_similarity(weight, zero) == pytest.approx(1 - float(weight.norm()) / root)
    assert relative_mixing_similarity(weight, zero) == (0 if weight.any() else 1)


@on_many
@given(sides, sides, st.integers(1, 6), seeds)
def test_moments(m: int, n: int, kept: int, seed: int) -> None:
    kept = min(kept, m, n)
    moment, left, right = normal(seed, m, n), normal(seed + 1, m, kept), normal(seed + 2, n, kept)
    first, second = np.zeros((kept, kept)), np.zeros((kept, kept))
    for a, b in np.ndindex(kept, kept):
        for i, j in np.ndindex(m, n):
            turn = left[i, a].item() * right[j, b].item()
            first[a, b] += turn * moment[i, j].item()  # m ← Lᵀ m R
            second[a, b] += turn**2 * moment[i, j].item() ** 2  # v ← (L∘L)ᵀ v (R∘R)
    np.testing.assert_allclose(array(rotate_first(moment, left, right)), first, atol=1e-9)
    second_found = rotate_second(moment.square(), left, right)
    np.testing.assert_allclose(array(second_found), second, atol=1e-9)
