import copy
import io

import pytest
import torch
from torch import Tensor, nn

from oialr import OIALR, LowRankConv, OIALRSettings
from oialr.basis_update import update_bases
from oialr.decomposition import Factors, decompose
from oialr.layers import Convolution

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

# 4 -> 6 channels; sizes so that an order of dimensions mixed up shows
CONVOLUTIONS = {
    "1d": (nn.Conv1d, {"kernel_size": 3}, (9,)),
    "1d_pointwise": (nn.Conv1d, {"kernel_size": 1}, (9,)),
    "1d_circular": (nn.Conv1d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (9,)),
    "1d_same": (nn.Conv1d, {"kernel_size": 4, "padding": "same", "dilation": 2}, (9,)),
    "1d_no_bias": (nn.Conv1d, {"kernel_size": 3, "stride": 2, "bias": False}, (9,)),
    "1d_groups": (nn.Conv1d, {"kernel_size": 3, "padding": 2, "groups": 2}, (9,)),
    "2d": (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (7, 9)),
    "2d_pointwise": (nn.Conv2d, {"kernel_size": 1, "stride": 2}, (7, 9)),
    "2d_patches": (nn.Conv2d, {"kernel_size": (2, 3), "stride": (2, 3)}, (8, 9)),
    "2d_uneven": (
        nn.Conv2d,
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": (2, 3)},
        (7, 9),
    ),
    "2d_valid": (
        nn.Conv2d,
        {"kernel_size": 3, "padding": "valid", "padding_mode": "zeros"},
        (7, 9),
    ),
    "2d_same": (nn.Conv2d, {"kernel_size": (4, 3), "padding": "same", "bias": False}, (7, 9)),
    "2d_same_reflect": (
        nn.Conv2d,
        {"kernel_size": (4, 3), "padding": "same", "padding_mode": "reflect"},
        (7, 9),
    ),
    "2d_replicate": (
        nn.Conv2d,
        {"kernel_size": 3, "stride": (2, 1), "padding": (1, 3), "padding_mode": "replicate"},
        (7, 9),
    ),
    "2d_valid_circular": (
        nn.Conv2d,
        {"kernel_size": 3, "padding": "valid", "padding_mode": "circular"},
        (7, 9),
    ),
    "2d_groups": (
        nn.Conv2d,
        {"kernel_size": 2, "padding": 1, "padding_mode": "circular", "groups": 2},
        (7, 9),
    ),
    "3d": (nn.Conv3d, {"kernel_size": (1, 2, 3), "stride": (1, 2, 1)}, (3, 4, 5)),
    "3d_circular": (
        nn.Conv3d,
        {"kernel_size": 3, "padding": (1, 2, 0), "padding_mode": "circular"},
        (3, 4, 5),
    ),
    "3d_same": (nn.Conv3d, {"kernel_size": 2, "padding": "same"}, (3, 4, 5)),
}


def make(name: str) -> tuple[Convolution, Tensor]:
    kind, options, size = CONVOLUTIONS[name]
    return kind(4, 6, **options).double(), torch.randn(3, 4, *size, dtype=torch.float64)


def truncate(conv: Convolution, inner_rank: int) -> LowRankConv:
    """The first of the singular values, and the bases turned so that Σ is not diagonal."""
    basis, sigma, cobasis = decompose(conv.weight.detach().flatten(1))
    left, right = (
        torch.linalg.qr(torch.randn(inner_rank, inner_rank, dtype=sigma.dtype))[0] for _ in "UV"
    )
    return LowRankConv(
        conv,
        Factors(
            basis[:, :inner_rank] @ left,
            left.mT @ sigma[:inner_rank, :inner_rank] @ right,
            right.mT @ cobasis[:inner_rank],
        ),
    )


def slow_reference(dense: Convolution, low_rank: LowRankConv) -> Convolution:
    """The dense layer with W_oi... = sum over a, b of U_oa Σ_ab V_i...b as its weight."""
    dense = copy.deepcopy(dense)
    with torch.no_grad():
        cobasis = low_rank.cobasis.reshape(-1, *dense.weight.shape[1:])
        dense.weight.copy_(
            torch.einsum("oa,ab,bi...->oi...", low_rank.basis, low_rank.sigma, cobasis)
        )
    return dense


def start(model: nn.Module, optimizer: torch.optim.Optimizer, **changes: object) -> OIALR:
    values = {
        "delay_steps": 0,
        "update_frequency": 1,
        "cutoff_fraction": 0.0,
        "layer_fraction": 1.0,
        "max_aspect_ratio": 20.0,
    }
    return OIALR(model, optimizer, OIALRSettings(**(values | changes)))


def count_convolutions(layer: nn.Module, x: Tensor) -> int:
    with torch.profiler.profile() as profile:
        layer(x)
    return sum(event.name == "aten::convolution" for event in profile.events())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_output_stays_at_conversion(name: str) -> None:
    conv, x = make(name)
    model = nn.Sequential(conv)
    expected = model(x)
    start(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert isinstance(model[0], LowRankConv)
    torch.testing.assert_close(model(x), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(model[0].weight, conv.weight, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("inner_rank", [4, 2, 1])
def test_output_and_gradients_are_those_of_the_dense_layer(name: str, inner_rank: int) -> None:
    conv, x = make(name)
    low_rank = truncate(conv, inner_rank)
    dense = slow_reference(conv, low_rank)
    inputs = {layer: x.clone().requires_grad_() for layer in (low_rank, dense)}
    outputs = {layer: layer(layer_input) for layer, layer_input in inputs.items()}
    for y in outputs.values():
        y.sin().square().sum().backward()
    torch.testing.assert_close(outputs[low_rank], outputs[dense], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(inputs[low_rank].grad, inputs[dense].grad)
    torch.testing.assert_close(
        low_rank.sigma.grad, low_rank.basis.mT @ dense.weight.grad.flatten(1) @ low_rank.cobasis.mT
    )  # ∂L/∂Σ = Uᵀ (∂L/∂W) V
    if conv.bias is not None:
        assert low_rank.bias is conv.bias
        torch.testing.assert_close(low_rank.bias.grad, dense.bias.grad)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_tokens_are_the_output_positions(name: str) -> None:
    conv, x = make(name)
    for images in (x, x[0]):  # with and without the batch
        y = conv(images)
        assert truncate(conv, 2)._num_tokens(images) == y.numel() // 6
        torch.testing.assert_close(truncate(conv, 4)(images).shape, y.shape)


@pytest.mark.parametrize("shape", [(3, 4, 9, 9), (4, 9, 9)])
@pytest.mark.parametrize("inner_rank", [6, 1])
def test_both_orders_of_products_are_taken(shape: tuple[int, ...], inner_rank: int) -> None:
    conv = nn.Conv2d(4, 6, (1, 2)).double()  # a matrix of 6x8
    low_rank, x = truncate(conv, inner_rank), torch.randn(shape, dtype=torch.float64)
    assert count_convolutions(low_rank, x) == (1 if inner_rank == 6 else 3)
    torch.testing.assert_close(low_rank(x), slow_reference(conv, low_rank)(x))


def test_few_output_positions_never_build_the_kernel() -> None:
    low_rank = truncate(nn.Conv1d(20, 20, 2).double(), 15)  # a matrix of 20x40
    x = torch.randn(1, 20, 5000, dtype=torch.float64)
    assert count_convolutions(low_rank, x) == 1
    assert count_convolutions(low_rank, x[..., :5]) == 3


def test_groups_build_the_kernel_at_every_inner_rank() -> None:
    conv, x = make("2d_groups")
    assert count_convolutions(truncate(conv, 1), x) == 1


@pytest.mark.parametrize("inner_rank", [6, 1])
def test_single_precision_autocast_and_channels_last(inner_rank: int) -> None:
    conv = nn.Conv2d(4, 6, (1, 2)).to(memory_format=torch.channels_last)
    low_rank = truncate(conv, inner_rank)
    x = torch.randn(3, 4, 9, 9).to(memory_format=torch.channels_last)
    expected = slow_reference(conv, low_rank)(x)
    y = low_rank(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = low_rank(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert low_rank.sigma.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.05)


def test_a_converted_convolution_copies_saves_and_loads() -> None:
    def make_model() -> nn.Module:
        model = nn.Sequential(nn.Conv1d(32, 48, 3, padding=1, padding_mode="circular"))
        start(model, torch.optim.SGD(model.parameters(), lr=0.1))
        return model

    model, other = make_model(), make_model()
    x = torch.randn(2, 32, 20)
    assert list(model.state_dict()) == ["0.sigma", "0.bias", "0.basis", "0.cobasis"]
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), model(x))


def test_print_tells_shape_inner_rank_and_how_the_kernel_moves() -> None:
    conv = nn.Conv1d(32, 48, 3, padding=1, padding_mode="circular")
    assert repr(truncate(conv, 5)) == (
        "LowRankConv(48x96, inner_rank=5, kernel_size=(3,), stride=(1,), padding=(1,),"
        " dilation=(1,), groups=1, padding_mode=circular)"
    )


class Network(nn.Module):
    """An embedding of a series and a patchwork of images, as forecasters and classifiers have."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Conv1d(32, 48, 3, padding=1, padding_mode="circular", bias=False)
        self.images = nn.Sequential(
            nn.Unflatten(1, (3, 16)),
            nn.Conv2d(3, 12, 3, stride=2, padding=1),
            nn.BatchNorm2d(12),
            nn.GELU(),
            nn.Conv2d(12, 12, 3, padding="same", groups=3),
            nn.Conv2d(12, 10, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 32, 12) -> (batch, 10)"""
        return self.images(self.embedding(x)).mean(dim=(2, 3))


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
}


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    x = torch.randn(16, 32, 12, generator=torch.Generator().manual_seed(step))
    target = x[:, :10].mean(dim=2)
    loss = nn.functional.mse_loss(model(x.to(next(model.parameters()).dtype)), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_cuts_the_inner_rank_and_learns(name: str) -> None:
    model = Network()
    optimizer = OPTIMIZERS[name](model.parameters())
    oialr = start(model, optimizer, delay_steps=10, update_frequency=10, cutoff_fraction=0.7)
    losses, updates = [], []
    for _ in range(30):
        losses.append(train_step(model, optimizer, 0))
        updates.append(oialr.step())
    assert [len(found) for found in updates if found] == [4, 4, 4]
    assert [update.layer for update in updates[9]] == [
        "embedding",
        "images.1",
        "images.4",
        "images.5",
    ]
    assert updates[29][0].full_inner_rank == 48
    assert updates[29][0].inner_rank <= 24
    assert model.embedding.inner_rank == updates[29][0].inner_rank
    for first in (0, 10, 20):  # dense, and after each cut but the last
        assert losses[first + 9] < losses[first]
    assert set(optimizer.param_groups[0]["params"]) == set(model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_without_truncation_leaves_the_network_as_it_is(name: str) -> None:
    model = Network().double()
    optimizer = OPTIMIZERS[name](model.parameters())
    oialr = start(model, optimizer)
    for step in range(3):
        train_step(model, optimizer, step)
    x = torch.randn(2, 32, 12, dtype=torch.float64)
    model.eval()
    before, kernels = model(x), [layer.weight for layer in oialr.low_rank_layers.values()]
    assert len(oialr.step()) == 4
    torch.testing.assert_close(model(x), before, atol=1e-12, rtol=1e-10)
    for layer, kernel in zip(oialr.low_rank_layers.values(), kernels, strict=True):
        torch.testing.assert_close(layer.weight, kernel)
        assert torch.equal(layer.sigma, layer.sigma.diag().diag())


def test_momentum_runs_on_through_conversion_and_updates() -> None:
    dense = nn.Sequential(nn.Conv2d(4, 16, 2, padding=1, padding_mode="circular"))
    model = copy.deepcopy(dense.double())  # 16x16: U and V span everything, Σ can become any W
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9) for m in (dense, model)]
    oialr = start(model, optimizers[1], delay_steps=3, update_frequency=2)
    for _ in range(9):
        x = torch.randn(5, 4, 6, 6, dtype=torch.float64)
        for trained, optimizer in zip((dense, model), optimizers, strict=True):
            optimizer.zero_grad()
            trained(x).sin().square().mean().backward()
            optimizer.step()
        oialr.step()
    assert isinstance(model[0], LowRankConv)
    torch.testing.assert_close(model[0].weight, dense[0].weight)
    torch.testing.assert_close(model[0].bias, dense[0].bias)


def test_truncation_keeps_the_best_kernel_of_its_inner_rank() -> None:
    conv, _ = make("2d")
    low_rank = truncate(conv, 6)
    optimizer = torch.optim.SGD(low_rank.parameters(), lr=0.1)
    update_bases(
        [low_rank],
        optimizer,
        OIALRSettings(delay_steps=0, update_frequency=1, cutoff_fraction=0.99),
    )
    left, singular_values, right = torch.linalg.svd(conv.weight.flatten(1), full_matrices=False)
    best = left[:, :3] @ singular_values[:3].diag() @ right[:3]
    torch.testing.assert_close(low_rank.weight, best.reshape(conv.weight.shape))
