import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oialr import LowRankLinear, StackedLowRankLinear, low_rank_linear
from oialr.decomposition import Factors
from oialr.products import dense_is_cheaper

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

    def apply(x: Tensor, sigma: Tensor, bias: Tensor) -> Tensor:
        return low_rank_linear(x, basis, sigma, cobasis, bias)

    assert torch.autograd.gradcheck(apply, (x, sigma, bias))
    assert torch.autograd.gradgradcheck(apply, (x, sigma, bias))


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


def test_a_gradient_penalty_is_that_of_the_dense_layer() -> None:
    m, n, r = 30, 20, 2
    factors = random_factors(m, n, r)
    sigma = factors.sigma.requires_grad_()
    x = torch.randn(50, n, dtype=torch.float64, requires_grad=True)
    gradients = []
    for y in (low_rank_linear(x, *factors), slow_reference(x, factors, None)):
        parts = torch.autograd.grad(y.sin().sum(), (x, sigma), create_graph=True)
        penalty = sum(part.square().sum() for part in parts)
        gradients.append(torch.autograd.grad(penalty, (x, sigma)))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("leading", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_batch(
    shape: tuple[int, int, int], leading: tuple[int, ...], dtype: torch.dtype
) -> None:
    m, n, _ = shape
    layer = LowRankLinear(random_factors(*shape, dtype), nn.Parameter(torch.ones(m, dtype=dtype)))
    x = torch.randn(*leading, n, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.shape == (*leading, m)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not layer.sigma.grad.any()
    assert not layer.bias.grad.any()


def test_stacked_layer_is_its_blocks_above_one_another() -> None:
    blocks = [random_factors(4, 4, r) for r in (4, 2, 1)]
    bias = nn.Parameter(torch.randn(12, dtype=torch.float64))
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    stacked = StackedLowRankLinear(blocks, bias)
    expected = torch.cat([slow_reference(x, block, None) for block in blocks], dim=-1) + bias
    torch.testing.assert_close(stacked(x), expected)
    torch.testing.assert_close(F.linear(x, stacked.weight, bias), expected)


def count_multiplications(t: int, m: int, n: int, r: int, dense: bool, chain: bool) -> int:
    def product(a: int, b: int, c: int) -> int:
        return a * b * c

    if dense:
        q, p = min(m, n), max(m, n)
        build = product(q, r, r) + product(p, r, q)
        # forward, input gradient, weight gradient; then Σ's gradient out of the weight's
        return build + 3 * product(t, n, m) + product(p, q, r) + product(r, q, r)

    def mixed(b: int) -> int:
        """Σ between (t, r) and (r, b): taken to the side with fewer rows, or to the left."""
        return min(product(t, r, r), t * r * r if chain else product(b, r, r)) + product(t, r, b)

    forward = product(t, n, r) + mixed(m)
    sigma_gradient = product(r, t, r)
    return forward + product(t, m, r) + mixed(n) + sigma_gradient


@pytest.mark.parametrize(("m", "n"), [(768, 768), (3072, 768), (768, 3072), (12, 40)])
@pytest.mark.parametrize("t", [1, 64, 4352])
@pytest.mark.parametrize("chain", [False, True])
def test_the_cheaper_order_is_chosen(chain: bool, t: int, m: int, n: int) -> None:
    for r in range(1, min(m, n) + 1, 7):
        dense, factors = (count_multiplications(t, m, n, r, d, chain) for d in (True, False))
        assert dense_is_cheaper(t, m, n, r, chain=chain) == (dense < factors)


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


@pytest.mark.parametrize("num_tokens", [7, 150])  # few and many multiplications
def test_single_precision_on_a_cpu_is_the_dense_layer_too(num_tokens: int) -> None:
    m, n, r = 300, 200, 20
    factors = random_factors(m, n, r)
    bias, x = torch.randn(m, dtype=torch.float64), torch.randn(num_tokens, n, dtype=torch.float64)
    gradients, outputs = [], []
    for dtype in (torch.float64, torch.float32):
        layer = LowRankLinear(
            Factors(*(factor.to(dtype) for factor in factors)), nn.Parameter(bias.to(dtype))
        )
        inputs = x.detach().to(dtype, copy=True).requires_grad_()
        outputs.append(layer(inputs).double())
        outputs[-1].square().mean().backward()
        gradients.append([t.grad.double() for t in (inputs, layer.sigma, layer.bias)])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
