import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.oialr import LowRankLinear, StackedLowRankLinear, low_rank_linear
from workers.oialr.decomposition import Factors
from workers.oialr.products import dense_is_cheaper

SHAPES = [(7, 5, 3), (5, 7, 3), (6, 6, 6), (4, 9, 1)]  # m, n, r


def random_factors(m: int, n: int, r: int, dtype: torch.dtype = torch.float64) -> Factors:
    basis = torch.linalg.qr(torch.randn(m, r, dtype=dtype))[0]
    cobasis = torch.linalg.qr(torch.randn(n, r, dtype=dtype))[0].mT.contiguous()
    return Factors(basis, torch.randn(r, r, dtype=dtype), cobasis)


def slow_reference(x: Tensor, factors: Factors, bias: Tensor | None) -> Tensor:
    return F.linear(x, factors.basis @ factors.sigma @ factors.cobasis, bias)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("leading", [(), (1,), (50,), (2, 3, 4)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_agrees_with_the_dense_product(
    shape: tuple[int, int, int], leading: tuple[int, ...], with_bias: bool
) -> None:
    m, n, _ = shape
    factors = random_factors(*shape)
    x = torch.randn(*leading, n, dtype=torch.float64)
    bias = torch.randn(m, dtype=torch.float64) if with_bias else None
    y = low_rank_linear(x, *factors, bias)
    assert y.shape == (*leading, m)
    torch.testing.assert_close(y, slow_reference(x, factors, bias))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_tokens", [2, 60])
def test_gradcheck(shape: tuple[int, int, int], num_tokens: int) -> None:
    m, n, _ = shape
    basis, sigma, cobasis = random_factors(*shape)
    x = torch.randn(num_tokens, n, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(m, dtype=torch.float64, requires_grad=True)
    sigma.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, sigma, bias: low_rank_linear(x, basis, sigma, cobasis, bias), (x, sigma, bias)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_dense_layer(shape: tuple[int, int, int]) -> None:
    m, n, _ = shape
    factors = random_factors(*shape)
    low_rank = LowRankLinear(factors, nn.Parameter(torch.randn(m, dtype=torch.float64)))
    dense = nn.Linear(n, m, dtype=torch.float64)
    dense.load_state_dict({"weight": low_rank.weight.detach(), "bias": low_rank.bias})
    x = torch.randn(11, n, dtype=torch.float64)
    inputs = {layer: x.clone().requires_grad_() for layer in (low_rank, dense)}
    for layer, layer_input in inputs.items():
        layer(layer_input).sin().square().sum().backward()
    torch.testing.assert_close(
        low_rank.sigma.grad, factors.basis.mT @ dense.weight.grad @ factors.cobasis.mT
    )  # ∂L/∂Σ = Uᵀ (∂L/∂W) V
    torch.testing.assert_close(inputs[low_rank].grad, inputs[dense].grad)
    torch.testing.assert_close(low_rank.bias.grad, dense.bias.grad)


def test_stacked_layer_is_its_blocks_above_one_another() -> None:
    blocks = [random_factors(4, 4, r) for r in (4, 2, 1)]
    bias = nn.Parameter(torch.randn(12, dtype=torch.float64))
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    stacked = StackedLowRankLinear(blocks, bias)
    expected = torch.cat([slow_reference(x, block, None) for block in blocks], dim=-1) + bias
    torch.testing.assert_close(stacked(x), expected)
    torch.testing.assert_close(F.linear(x, stacked.weight, bias), expected)


def count_multiplications(t: int, m: int, n: int, r: int, dense: bool) -> int:
    def product(a: int, b: int, c: int) -> int:
        return a * b * c

    if dense:
        q, p = min(m, n), max(m, n)
        build = product(q, r, r) + product(p, r, q)
        # forward, input gradient, weight gradient; then Σ's gradient out of the weight's
        return build + 3 * product(t, n, m) + product(p, q, r) + product(r, q, r)
    forward = product(t, n, r) + product(t, r, r) + product(t, r, m)
    sigma_gradient = product(r, t, r)
    return 2 * forward + sigma_gradient


@pytest.mark.parametrize(("m", "n"), [(768, 768), (3072, 768), (768, 3072), (12, 40)])
@pytest.mark.parametrize("t", [1, 64, 4352])
def test_the_cheaper_order_is_chosen(t: int, m: int, n: int) -> None:
    for r in range(1, min(m, n) + 1, 7):
        expected = count_multiplications(t, m, n, r, True) < count_multiplications(
            t, m, n, r, False
        )
        assert dense_is_cheaper(t, m, n, r) == expected


def test_a_small_inner_rank_never_builds_the_weight() -> None:
    factors = random_factors(300, 300, 3)
    x = torch.randn(400, 300, dtype=torch.float64)
    with torch.profiler.profile(record_shapes=True) as profile:
        low_rank_linear(x, *factors)
    shapes = [event.input_shapes for event in profile.events() if event.name == "aten::mm"]
    assert len(shapes) == 3
    assert [400, 300] not in [shape[1] for shape in shapes]


@pytest.mark.parametrize("r", [3, 16])  # below and above the inner rank where dense is cheaper
def test_autocast(r: int) -> None:
    factors = random_factors(16, 16, r, torch.float32)
    layer = LowRankLinear(factors, nn.Parameter(torch.zeros(16)))
    x = torch.randn(200, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.sigma.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), slow_reference(x, factors, None), atol=0.2, rtol=0.1)
