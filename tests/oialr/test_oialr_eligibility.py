import logging

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from oialr import OIALR, OIALRError, OIALRSettings
from oialr.eligibility import EligibleLayer, survey
from oialr.metrics import count_parameters


def make_settings(**changes: object) -> OIALRSettings:
    values = {"delay_steps": 5, "update_frequency": 5, "cutoff_fraction": 0.1} | changes
    return OIALRSettings(**values)


def look(model: nn.Module, **changes: object) -> tuple[list[str], dict[str, str]]:
    eligible, dense = look_closely(model, **changes)
    return [layer.name for layer in eligible], dense


def look_closely(model: nn.Module, **changes: object) -> tuple[list[EligibleLayer], dict[str, str]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return survey(model, optimizer, make_settings(**changes))


@pytest.fixture(scope="module")
def mini_vit() -> VisionTransformer:
    with torch.device("meta"):
        return VisionTransformer(
            img_size=32,
            patch_size=8,
            embed_dim=768,
            depth=6,
            num_heads=6,
            qkv_bias=False,
            mlp_ratio=4,
            num_classes=10,
        )


MINI_VIT_LAYERS = ["patch_embed.proj"] + [
    f"blocks.{i}.{layer}"
    for i in range(6)
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]


def test_mini_vit_as_in_the_paper(mini_vit: VisionTransformer) -> None:
    assert count_parameters(mini_vit).total == 42_684_682
    eligible, dense = look(mini_vit, full_rank_last_layer=True)
    assert eligible == MINI_VIT_LAYERS[:-1]
    assert dense == {
        "blocks.5.mlp.fc2": "full_rank_last_layer",
        "head": "10x768 reaches max_aspect_ratio=10",
    }


def test_mini_vit_classifier_is_dense_anyway(
    mini_vit: VisionTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        eligible, dense = look(mini_vit, full_rank_last_layer=True, last_layer="classifier")
    assert eligible == MINI_VIT_LAYERS
    assert dense["head"] == "10x768 reaches max_aspect_ratio=10"
    assert "no effect" in caplog.text


def test_mini_vit_first_layer_and_names(mini_vit: VisionTransformer) -> None:
    eligible, dense = look(
        mini_vit, full_rank_first_layer=True, keep_dense=("blocks.0.attn.qkv", "blocks.5.mlp.fc2")
    )
    assert eligible == MINI_VIT_LAYERS[2:-1]
    assert dense["patch_embed.proj"] == "full_rank_first_layer"
    assert dense["blocks.0.attn.qkv"] == "named in keep_dense"


def test_classifier_that_would_convert_stays_dense() -> None:
    eligible, dense = look(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)),
        full_rank_last_layer=True,
        last_layer="classifier",
    )
    assert eligible == ["0"]
    assert dense == {"1": "full_rank_last_layer"}


@pytest.mark.parametrize(
    ("shape", "fits"), [((20, 2), False), ((2, 20), False), ((19, 2), True), ((1, 1), False)]
)
def test_shape_rule(shape: tuple[int, int], fits: bool) -> None:
    eligible, _ = look(nn.Sequential(nn.Linear(*shape)))
    assert bool(eligible) == fits


@pytest.mark.parametrize(
    ("convolution", "reason"),
    [
        (nn.Conv1d(512, 7, 3), "7x1536 is smaller than min_dim=16"),
        (nn.Conv2d(3, 4, 5), "4x75 is smaller than min_dim=16"),
        (nn.Conv1d(7, 512, 3), "512x21 reaches max_aspect_ratio=10"),
        (nn.Conv2d(64, 32, 5), "32x1600 reaches max_aspect_ratio=10"),
        (nn.Conv2d(64, 64, 3, groups=64), "64x9 is smaller than min_dim=16"),
        (nn.Conv3d(2, 40, 2), ""),
        (nn.Conv2d(64, 32, 3, groups=2), ""),
    ],
)
def test_the_shape_of_a_convolution_is_that_of_its_matrix(
    convolution: nn.Module, reason: str
) -> None:
    eligible, dense = look(nn.ModuleDict({"convolution": convolution}), min_dim=16)
    assert dense == ({"convolution": reason} if reason else {})
    assert eligible == ([] if reason else ["convolution"])


def test_transposed_convolutions_are_no_candidates() -> None:
    model = nn.Sequential(nn.ConvTranspose1d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3))
    assert look(model) == ([], {})


def test_the_classifier_is_the_last_linear_whatever_convolution_follows() -> None:
    model = nn.Sequential(nn.Conv1d(8, 8, 3), nn.Linear(8, 8), nn.Conv1d(8, 8, 3))
    eligible, dense = look(model, full_rank_last_layer=True, last_layer="classifier")
    assert eligible == ["0", "2"]
    assert dense == {"1": "full_rank_last_layer"}


def test_shape_limits_are_options() -> None:
    model = nn.Sequential(nn.Linear(20, 2), nn.Linear(8, 8))
    assert look(model, max_aspect_ratio=10.5)[0] == ["0", "1"]
    assert look(model, min_dim=8)[0] == ["1"]


def test_apart_looks_at_each_matrix() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    assert look(model, max_aspect_ratio=2)[0] == ["0.out_proj"]
    assert look(model, max_aspect_ratio=2, fused_projections="apart")[0] == ["0", "0.out_proj"]


def test_only_a_fused_qkv_comes_apart(mini_vit: VisionTransformer) -> None:
    eligible, _ = look_closely(mini_vit, fused_projections="apart")
    assert {layer.name for layer in eligible if layer.num_blocks == 3} == {
        f"blocks.{i}.attn.qkv" for i in range(6)
    }
    lookalikes = {"qkv": nn.Linear(8, 16), "fc": nn.Linear(8, 24)}
    lookalikes["inner"] = nn.ModuleDict({"qkv": nn.Conv2d(8, 24, 1)})
    eligible, _ = look_closely(nn.ModuleDict(lookalikes), fused_projections="apart")
    assert [layer.num_blocks for layer in eligible] == [1, 1, 1]


class OwnForward(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class OwnName(nn.Linear):
    pass


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        return 2 * super()._conv_forward(*arguments)


def test_reasons() -> None:
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(6, 4),
            "tied": nn.Linear(4, 6, bias=False),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
            "own_forward": OwnForward(4, 4),
            "own_name": OwnName(4, 4),
            "parametrized": torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "own_convolution": OwnConvolution(4, 4, 3),
            "frozen_convolution": nn.Conv1d(4, 4, 3).requires_grad_(False),
            "normed_convolution": torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        }
    )
    model["tied"].weight = model["embedding"].weight
    eligible, dense = look(model)
    assert eligible == ["own_name"]
    assert dense == {
        "tied": "its weight is shared with another layer",
        "frozen": "its weight is not trained by the optimizer",
        "own_forward": "OwnForward has a forward of its own",
        "parametrized": "its weight is computed from other parameters",
        "own_convolution": "OwnConvolution has a forward of its own",
        "frozen_convolution": "its weight is not trained by the optimizer",
        "normed_convolution": "its weight is computed from other parameters",
    }


def test_a_weight_outside_the_optimizer_stays_dense() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    oialr = OIALR(model, optimizer, make_settings(delay_steps=0))
    assert list(oialr.low_rank_layers) == ["1"]
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    "model", [nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Conv2d(4, 4, 3)]
)
def test_a_layer_alone_must_be_wrapped(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OIALRError, match="wrap it"):
        OIALR(model, optimizer, make_settings())


def test_nothing_to_convert_is_refused_with_the_reasons() -> None:
    model = nn.Sequential(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OIALRError, match="1x4 is smaller than min_dim=2"):
        OIALR(model, optimizer, make_settings())


def test_an_unknown_name_is_refused_and_the_nearest_offered() -> None:
    with pytest.raises(OIALRError, match=r"'head\.fc'.*'head'"):
        look(
            nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 4)}),
            keep_dense=("head.fc",),
        )
