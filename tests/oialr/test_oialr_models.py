"""Architectures as they come; full size under the `slow` marker, else the same ones made small."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.vgg import VGG
from torch import Tensor, nn

from oialr import OIALR, OIALRError, OIALRSettings
from oialr_training.models import minivit
from oialr_training.models.autoformer import Autoformer
from oialr_training.sections import AutoformerModel, MiniViTModel

Case = tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], int]


def make_autoformer(d_model: int, d_ff: int) -> nn.Module:
    config = AutoformerModel(
        d_model=d_model, d_ff=d_ff, num_heads=8, encoder_layers=2, decoder_layers=1
    )
    return Autoformer(config, num_series=7, num_time_features=4, label_len=12, pred_len=24)


def make_mini_vit(embed_dim: int, depth: int) -> nn.Module:
    config = MiniViTModel(
        image_size=32, patch_size=8, embed_dim=embed_dim, depth=depth, num_heads=6
    )
    return minivit.build(config, num_classes=10)


def make_torchvision_vit(**changes: int) -> nn.Module:
    options = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072} | changes
    return torchvision.models.VisionTransformer(patch_size=16, **options)


def wake(model: nn.Module) -> nn.Module:
    """Give weight to the branches that initialisation lets do nothing: zero heads and scales."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            elif not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return model


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, **options)


BLOCKS = (1, 1, 1, 1)
CHANNELS = (16, 32, 64, 128)
SERIES = ((2, 24, 7), (2, 24, 4), (2, 36, 4))

# model, shapes of a batch, layers that convert
SMALL: dict[str, Case] = {
    "vit_base_patch16_224": (
        from_timm("vit_base_patch16_224", img_size=64, depth=2, embed_dim=96, num_classes=20),
        ((2, 3, 64, 64),),
        10,
    ),
    "resnet50": (
        from_timm("resnet50", layers=BLOCKS, channels=CHANNELS, num_classes=60),
        ((2, 3, 64, 64),),
        17,
    ),
    "resnetrs101": (
        from_timm("resnetrs101", layers=BLOCKS, channels=CHANNELS, num_classes=60),
        ((2, 3, 64, 64),),
        28,
    ),
    "vgg16_bn": (
        lambda: VGG([8, 8, "M", 16, "M", 32, "M"], 20, mlp_ratio=0.05, norm_layer=nn.BatchNorm2d),
        ((2, 3, 56, 56),),
        5,
    ),
    "convnext_tiny": (
        from_timm("convnext_tiny", depths=BLOCKS, dims=(24, 48, 96, 192), num_classes=20),
        ((2, 3, 64, 64),),
        17,
    ),
    "swin_tiny_patch4_window7_224": (
        from_timm(
            "swin_tiny_patch4_window7_224",
            img_size=56,
            depths=(2, 1, 1, 1),
            embed_dim=24,
            num_heads=(1, 2, 4, 8),
            num_classes=20,
        ),
        ((2, 3, 56, 56),),
        25,
    ),
    "torchvision_vit_b_16": (
        lambda: make_torchvision_vit(image_size=64, num_layers=2, hidden_dim=96, mlp_dim=384),
        ((2, 3, 64, 64),),
        9,
    ),
    "minivit": (lambda: make_mini_vit(embed_dim=96, depth=2), ((2, 3, 32, 32),), 10),
    "autoformer": (lambda: make_autoformer(d_model=32, d_ff=64), SERIES, 27),
}
FULL: dict[str, Case] = {
    "vit_base_patch16_224": (
        from_timm("vit_base_patch16_224", img_size=64),
        ((2, 3, 64, 64),),
        50,
    ),
    "resnet50": (from_timm("resnet50"), ((2, 3, 128, 128),), 54),
    "resnetrs101": (from_timm("resnetrs101"), ((2, 3, 64, 64),), 174),
    "convnext_tiny": (from_timm("convnext_tiny"), ((2, 3, 64, 64),), 56),
    "swin_tiny_patch4_window7_224": (
        from_timm("swin_tiny_patch4_window7_224"),
        ((2, 3, 224, 224),),
        53,
    ),
    "torchvision_vit_b_16": (lambda: make_torchvision_vit(image_size=64), ((2, 3, 64, 64),), 50),
    "minivit": (lambda: make_mini_vit(embed_dim=768, depth=6), ((2, 3, 32, 32),), 25),
    "autoformer": (lambda: make_autoformer(d_model=512, d_ff=2048), SERIES, 22),
}


@pytest.fixture(autouse=True)
def seeded_and_alone() -> Iterator[None]:
    torch.manual_seed(0)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def start(model: nn.Module, **changes: object) -> OIALR:
    values = {"delay_steps": 0, "update_frequency": 1, "cutoff_fraction": 0.1} | changes
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return OIALR(model, optimizer, OIALRSettings(**values))


def check(case: Case, **changes: object) -> None:
    """The same output just after conversion; then a step, an update and one more step."""
    make, shapes, num_layers = case
    model = wake(make()).eval()
    inputs = [torch.randn(shape) for shape in shapes]
    with torch.no_grad():
        expected = model(*inputs)
    oialr = start(model, **changes)
    assert len(oialr.low_rank_layers) == num_layers, oialr.dense_layers
    with torch.no_grad():
        scale = expected.std().item()
        torch.testing.assert_close(model(*inputs), expected, atol=1e-4 * scale, rtol=0)
    optimizer = oialr._optimizer
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(*inputs).square().mean().backward()
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert not torch.equal(parameter, before[name]), name
        assert oialr.step()
    assert model(*inputs).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_small(name: str) -> None:
    check(SMALL[name])


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "torchvision_vit_b_16"])
def test_small_with_projections_apart(name: str) -> None:
    check(SMALL[name], fused_projections="apart")


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size(name: str) -> None:
    check(FULL[name])


@pytest.mark.slow
def test_full_size_vgg16_bn_but_for_one_layer() -> None:
    # 4096x25088: its SVD alone takes many minutes on one core
    case = (from_timm("vgg16_bn"), ((2, 3, 32, 32),), 15)
    check(case, keep_dense=("pre_logits.fc1",))


class Tied(nn.Module):
    """A small language model: one weight embeds the words and tells them apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.block = nn.Linear(8, 8)
        self.blocks = nn.ModuleList([self.block, nn.Linear(8, 8), self.block])
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.head(x)


def test_tied_weights_stay_tied_and_shared_modules_shared() -> None:
    model, words = Tied(), torch.randint(12, (3, 5))
    expected = model(words)
    oialr = start(model, update_frequency=2)
    assert list(oialr.low_rank_layers) == ["block", "blocks.1"]
    assert oialr.dense_layers == {"head": "its weight is shared with another layer"}
    torch.testing.assert_close(model(words), expected)
    for _ in range(4):
        oialr._optimizer.zero_grad()
        nn.functional.cross_entropy(model(words).mT, words).backward()
        oialr._optimizer.step()
        oialr.step()
        assert model.head.weight is model.embedding.weight
        assert model.block is model.blocks[0] is model.blocks[2]
    assert len(oialr._optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


class SharedWeight(nn.Module):
    """Two layers of one weight, a bias each; a matrix beside them that is the other's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again.weight = self.up.weight
        self.down = nn.Linear(6, 4)
        self.memory = self.down.weight
        self.free = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.free(self.down(self.again(self.up(x)))) @ self.memory


def test_weights_with_two_owners_stay_dense() -> None:
    model, x = SharedWeight(), torch.randn(5, 6)
    expected = model(x)
    oialr = start(model)
    shared = "its weight is shared with another layer"
    assert oialr.dense_layers == {"up": shared, "again": shared, "down": shared}
    assert list(oialr.low_rank_layers) == ["free"]
    torch.testing.assert_close(model(x), expected)


def test_a_shared_bias_stays_shared() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].bias = model[0].bias
    oialr = start(model)
    assert len(oialr.low_rank_layers) == 2
    assert model[1].bias is model[0].bias


def test_a_forward_of_an_instance_s_own_stays() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    linear = model[0]
    linear.forward = lambda x: 2 * nn.Linear.forward(linear, x)
    x = torch.randn(3, 6)
    expected = model(x)
    assert start(model).dense_layers == {"0": "Linear has a forward of its own"}
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    "make", [lambda: nn.LazyLinear(4), lambda: nn.LazyConv1d(4, 1), nn.LazyBatchNorm1d]
)
def test_lazy_layers_must_have_seen_an_input(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 6), make())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = OIALRSettings(delay_steps=0, update_frequency=1, cutoff_fraction=0.1)
    with pytest.raises(OIALRError, match="has no shape yet: run the model on one batch"):
        OIALR(model, optimizer, settings)
    assert type(model[0]) is nn.Linear
    model(torch.randn(3, 6, 4))
    assert OIALR(model, optimizer, settings).converted
