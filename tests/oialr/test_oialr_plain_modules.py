"""Exported models: torch's own layers, the same outputs, the smaller form where asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from oialr import OIALR, OIALRSettings, export


class SelfAttention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        keys, values = x[..., : self.attention.kdim], x[..., -self.attention.vdim :]
        return self.attention(x, keys, values)[0]  # type: ignore[no-any-return]


def vit() -> nn.Module:
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=10
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8, bias=False)),
        (16,),
    ),
    "vit": (vit, (3, 16, 16)),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 12, 3, stride=2, padding=1, padding_mode="reflect"),
            nn.Conv2d(12, 12, (3, 1), dilation=2, padding="same", bias=False),
            nn.Conv2d(12, 24, 3, groups=3),
        ),
        (4, 9, 9),
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(7, 16, 3, padding=1, padding_mode="circular")),
        (7, 9),
    ),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 8, 2)), (2, 4, 4, 4)),
    "attention": (lambda: SelfAttention(add_bias_kv=True, add_zero_attn=True), (5, 12)),
    "attention_separate": (lambda: SelfAttention(kdim=8, vdim=10, bias=False), (5, 12)),
    "encoder": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)),
        (5, 12),
    ),
}


# Whose layers the smallest form leaves dense.
DENSE = ("attention", "attention_separate", "encoder")


def trained(name: str, fused: str, cutoff: float) -> tuple[nn.Module, nn.Module, Tensor]:
    """The model before and after two steps of OIALR with truncation, and an input."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model, x = build().double(), torch.randn(3, *shape, dtype=torch.float64)
    dense = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    settings = OIALRSettings(
        delay_steps=0,
        update_frequency=1,
        cutoff_fraction=cutoff,
        layer_fraction=1.0,
        fused_projections=fused,  # type: ignore[arg-type]
    )
    oialr = OIALR(model, optimizer, settings)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        oialr.step()
    return dense, model.eval(), x


@pytest.mark.parametrize("form", ["dense", "smallest"])
@pytest.mark.parametrize("fused", ["together", "apart"])
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_is_torch_s_own_and_gives_the_same(
    name: str, fused: str, form: str
) -> None:
    _, model, x = trained(name, fused, cutoff=0.5)
    random_state = torch.get_rng_state()
    exported = export(model, form)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not [m for m in exported.modules() if type(m).__module__.startswith("oialr.")]
    torch.testing.assert_close(exported(x), model(x))
    assert all(parameter.requires_grad for parameter in exported.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_dense_weights_load_into_the_model_as_it_was_built(name: str, tmp_path: Path) -> None:
    plain, model, x = trained(name, "together", cutoff=0.5)
    save_file(export(model).state_dict(), tmp_path / "dense.safetensors")
    plain.load_state_dict(load_file(tmp_path / "dense.safetensors"))
    torch.testing.assert_close(plain.eval()(x), model(x))


def test_two_factors_where_they_are_smaller(tmp_path: Path) -> None:
    _, model, x = trained("mlp", "together", cutoff=0.9)
    exported = export(model, "smallest")
    first = exported[0]  # type: ignore[index]
    assert isinstance(first, nn.Sequential)
    assert first[0].bias is None
    r = first[0].out_features
    assert r * (16 + 24) < 16 * 24
    save_file(exported.state_dict(), tmp_path / "factors.safetensors")
    # What somebody without this package would write:
    rebuilt = nn.Sequential(
        nn.Sequential(nn.Linear(16, r, bias=False), nn.Linear(r, 24)),
        nn.GELU(),
        copy.deepcopy(exported[2]),  # type: ignore[index]
    ).double()
    rebuilt.load_state_dict(load_file(tmp_path / "factors.safetensors"))
    torch.testing.assert_close(rebuilt(x), model(x))


def test_the_smallest_form_has_never_more_parameters_than_the_dense_one() -> None:
    for name in MODELS:
        for cutoff in (0.0, 0.9):
            plain, model, _ = trained(name, "together", cutoff)
            sizes = [
                sum(p.numel() for p in m.parameters())
                for m in (export(model, "smallest"), export(model), plain)
            ]
            assert sizes[0] <= sizes[1] == sizes[2]
            assert (sizes[0] < sizes[1]) == (cutoff == 0.9) or name in DENSE


def test_the_model_itself_stays_as_it_is() -> None:
    _, model, _ = trained("vit", "together", cutoff=0.5)
    before = copy.deepcopy(model.state_dict())
    exported = export(model)
    for parameter in exported.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(model.state_dict(), before)
