import copy
from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from oialr import (
    OIALR,
    LowRankLinear,
    LowRankMultiheadAttention,
    OIALRSettings,
    StackedLowRankLinear,
    export,
)


class Attend(nn.Module):
    """Attention between two inputs; gives back values and attention weights side by side."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, **options)
        for name, parameter in self.attention.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        query = x[..., :12]
        keys, values = x[..., : self.attention.kdim], x[..., -self.attention.vdim :]
        out, weights = self.attention(query, keys, values)
        return torch.cat([out.flatten(), weights.flatten()])


class Residual(nn.Module):
    """A block as in residual networks, its input halved in size on the way round."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, 2, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding="same", groups=2, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.body(x) + self.shortcut(x))


def make_residual_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        Residual(8, 12),
        Residual(12, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def make_vit(qkv_bias: bool) -> VisionTransformer:
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=96,
        depth=2,
        num_heads=3,
        qkv_bias=qkv_bias,
        num_classes=10,
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Linear(16, 5)), (7, 9)),
    "vit": (lambda: make_vit(qkv_bias=False), (2, 3, 32, 32)),
    "vit_qkv_bias": (lambda: make_vit(qkv_bias=True), (2, 3, 32, 32)),
    "encoder_layer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(12, 2, 24, dropout=0, batch_first=True)),
        (3, 5, 12),
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(12, 2, 24, dropout=0, batch_first=True), 2
        ),
        (3, 5, 12),
    ),
    "residual_network": (make_residual_network, (4, 3, 12, 12)),
    "attention": (lambda: Attend(batch_first=True), (3, 5, 12)),
    "attention_seq_first": (lambda: Attend(bias=False), (5, 3, 12)),
    "attention_bias_kv": (lambda: Attend(add_bias_kv=True, add_zero_attn=True), (5, 3, 12)),
    "attention_separate": (lambda: Attend(kdim=8, vdim=10), (5, 3, 12)),
}


def start(model: nn.Module, **changes: object) -> OIALR:
    values = {"delay_steps": 0, "update_frequency": 1, "cutoff_fraction": 0.0} | changes
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OIALR(model, torch.optim.AdamW(trained, lr=1e-3), OIALRSettings(**values))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("fused", ["together", "apart"])
@pytest.mark.parametrize("name", MODELS)
def test_output_and_input_gradient_stay(name: str, fused: str) -> None:
    make, shape = MODELS[name]
    model, x = make(), torch.randn(shape, requires_grad=True)
    dense = copy.deepcopy(model)
    oialr = start(model, fused_projections=fused)
    assert oialr.low_rank_layers
    for mode in (True, False):
        y, expected = model.train(mode)(x), dense.train(mode)(x)
        torch.testing.assert_close(y, expected, atol=2e-5, rtol=1e-5)
        gradient, expected_gradient = (
            torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected)
        )
        torch.testing.assert_close(gradient, expected_gradient, atol=2e-4, rtol=1e-4)
        with torch.no_grad():  # in evaluation: torch's fast path of transformer layers
            torch.testing.assert_close(model(x), dense(x), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_factors_lie_as_a_loaded_checkpoint_would(shape: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Linear(*shape), nn.Conv2d(*shape, 3))
    start(model)  # a column-major U would round otherwise than its reloaded copy
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_a_whole_model_in_double_precision_stays_to_the_last_digits() -> None:
    model, x = make_residual_network().double(), torch.randn(4, 3, 12, 12, dtype=torch.float64)
    expected = model(x)
    assert len(start(model).low_rank_layers) == 8
    torch.testing.assert_close(model(x), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_trains_after_conversion(name: str) -> None:
    make, shape = MODELS[name]
    model = make()
    oialr = start(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(torch.randn(shape))
    y.float().sin().sum().backward()
    in_optimizer = oialr._optimizer.param_groups[0]["params"]
    assert set(in_optimizer) == set(model.parameters())
    assert len(in_optimizer) == len(set(in_optimizer))
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_kinds_of_layers() -> None:
    vit = make_vit(qkv_bias=True)
    start(vit)
    assert isinstance(vit.blocks[0].attn.qkv, LowRankLinear)
    vit = make_vit(qkv_bias=True)
    oialr = start(vit, fused_projections="apart", layer_fraction=1.0)
    qkv = vit.blocks[0].attn.qkv
    assert isinstance(qkv, StackedLowRankLinear)
    assert [weight.inner_rank for weight in qkv.weights] == [96] * 3
    names = [update.layer for update in oialr.step()]
    assert "blocks.1.attn.qkv[2]" in names
    assert "blocks.1.mlp.fc1" in names

    encoder = nn.Sequential(nn.TransformerEncoderLayer(12, 2, 24))
    assert list(start(encoder).low_rank_layers) == [
        "0.self_attn",
        "0.self_attn.out_proj",
        "0.linear1",
        "0.linear2",
    ]
    assert isinstance(encoder[0].self_attn, LowRankMultiheadAttention)
    assert isinstance(encoder[0].self_attn.out_proj, LowRankLinear)


def test_self_attention_builds_its_weight_once_a_forward() -> None:
    model = nn.ModuleList([nn.MultiheadAttention(12, 3)]).double()
    start(model)
    x = torch.randn(5, 3, 12, dtype=torch.float64)
    with torch.profiler.profile(record_shapes=True) as profile:
        model[0](x, x, x)
    products = [event for event in profile.events() if event.name == "aten::mm"]
    builds = [event for event in products if event.input_shapes[0] == [36, 12]]
    assert len(builds) == 1
    assert model[0]._built == {}


def test_modes_dtypes_and_biases_carry_over() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4, bias=False)).bfloat16().eval()
    model.append(nn.MultiheadAttention(4, 2, dropout=0.5, dtype=torch.bfloat16).eval())
    model.append(nn.Conv1d(4, 4, 3, dtype=torch.bfloat16).eval())
    bias, in_proj_bias, conv_bias = model[0].bias, model[2].in_proj_bias, model[3].bias
    start(model)
    assert not any(module.training for module in model.modules())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert model[0].bias is bias
    assert model[1].bias is None
    assert model[2].in_proj_bias is in_proj_bias
    assert model[3].bias is conv_bias


def test_parameters_keep_their_place_in_the_groups() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1), nn.MultiheadAttention(4, 2))
    named = dict(model.named_parameters())
    decayed = {name: p for name, p in named.items() if p.ndim > 1}
    plain = {name: p for name, p in named.items() if p.ndim == 1}
    optimizer = torch.optim.SGD(
        [{"params": list(decayed.items())}, {"params": list(plain.items()), "weight_decay": 0.0}],
        lr=0.1,
        weight_decay=0.1,
    )
    settings = OIALRSettings(
        delay_steps=0, update_frequency=1, cutoff_fraction=0.1, fused_projections="apart"
    )
    OIALR(model, optimizer, settings)
    now = {parameter: name for name, parameter in model.named_parameters()}
    assert [now[parameter] for parameter in optimizer.param_groups[0]["params"]] == [
        "0.sigma",
        "1.weight",
        "2.in_proj.0.sigma",
        "2.in_proj.1.sigma",
        "2.in_proj.2.sigma",
        "2.out_proj.sigma",
    ]
    assert [now[parameter] for parameter in optimizer.param_groups[1]["params"]] == list(plain)
    for group in optimizer.param_groups:
        assert len(group["param_names"]) == len(group["params"])


def test_a_shared_module_converts_once_and_everywhere() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared, shared))
    x = torch.randn(3, 6)
    expected = model(x)
    oialr = start(model)
    assert list(oialr.low_rank_layers) == ["0"]
    assert isinstance(model[0], LowRankLinear)
    assert model[0] is model[2][0] is model[2][1]
    torch.testing.assert_close(model(x), expected)


def test_tied_and_frozen_weights_are_untouched() -> None:
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(6, 4), "body": nn.Linear(4, 4), "frozen": nn.Linear(4, 4)}
    )
    model["head"] = nn.Linear(4, 6, bias=False)
    model["head"].weight = model["embedding"].weight
    model["frozen"].requires_grad_(False)
    kept = {name: model[name] for name in ("embedding", "frozen", "head")}
    before = {name: module.weight for name, module in kept.items()}
    oialr = start(model)
    assert list(oialr.low_rank_layers) == ["body"]
    assert all(
        model[name] is module and module.weight is before[name] for name, module in kept.items()
    )


class Layers(nn.Module):
    """One layer of each kind, of 12 numbers each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)
        self.qkv = nn.Linear(12, 36)
        self.convolution = nn.Conv1d(12, 12, 3, padding=1, padding_mode="circular")
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.separate = nn.MultiheadAttention(12, 3, kdim=8, vdim=10, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = sum(self.qkv(self.linear(x)).chunk(3, dim=-1))
        x = self.convolution(x.mT).mT
        x = self.attention(x, x, x)[0]
        return self.separate(x, x[..., :8], x[..., :10])[0]


@pytest.mark.parametrize("fused", ["together", "apart"])
def test_an_empty_batch(fused: str) -> None:
    model = Layers()
    x = torch.randn(0, 5, 12)
    assert model(x).shape == x.shape
    oialr = start(model, fused_projections=fused, cutoff_fraction=0.9, layer_fraction=1.0)
    oialr.step()
    assert model(x).shape == x.shape
    model(x).sum().backward()
    assert not model.linear.sigma.grad.any()


@pytest.mark.parametrize("fused", ["together", "apart"])
def test_frozen_layers_stay_frozen(fused: str) -> None:
    model = Layers()
    oialr = start(model, delay_steps=1, fused_projections=fused, layer_fraction=1.0)
    average = copy.deepcopy(model).requires_grad_(False)
    oialr.add_average(average)
    for layer in (model.qkv, model.convolution, model.separate.out_proj):
        layer.weight.requires_grad_(False)
    model.attention.requires_grad_(False)
    model.separate.k_proj_weight.requires_grad_(False)
    oialr.step()
    model.linear.sigma.requires_grad_(False)
    for _ in range(2):
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        blocks = range(3 if fused == "apart" else 1)
        assert frozen == {
            "linear.sigma",
            *({f"qkv.blocks.{i}.sigma" for i in blocks} if fused == "apart" else {"qkv.sigma"}),
            "convolution.sigma",
            *(f"attention.in_proj.{i}.sigma" for i in blocks),
            "attention.in_proj_bias",
            "attention.out_proj.sigma",
            "attention.out_proj.bias",
            "separate.in_proj.1.sigma",
            "separate.out_proj.sigma",
        }
        assert not any(parameter.requires_grad for parameter in average.parameters())
        assert oialr.step()
    resumed = Layers()
    fresh = start(resumed, delay_steps=1, fused_projections=fused)
    resumed.linear.weight.requires_grad_(False)
    fresh.load_state_dict(oialr.state_dict())
    assert not resumed.linear.sigma.requires_grad


@pytest.mark.parametrize("fused", ["together", "apart"])
def test_what_else_a_layer_holds_is_kept(fused: str) -> None:
    model = Layers()
    held = {}
    for name, layer in model.named_children():
        layer.tag = [name]
        layer.register_buffer("mask", torch.ones(3))
        layer.register_buffer("scratch", torch.zeros(2), persistent=False)
        layer.gain = nn.Parameter(torch.tensor(2.0))
        layer.norm = nn.LayerNorm(12).eval()
        layer.register_forward_hook(
            lambda layer, _, y: y if isinstance(y, tuple) else layer.gain * y
        )
        names = ("tag", "mask", "scratch", "gain", "norm")
        held[name] = {key: getattr(layer, key) for key in names}
    dense, x = copy.deepcopy(model), torch.randn(2, 5, 12)
    expected = model(x)
    oialr = start(model, fused_projections=fused)
    for name, things in held.items():
        layer = model.get_submodule(name)
        assert type(layer) is not type(dense.get_submodule(name))
        assert all(getattr(layer, key) is thing for key, thing in things.items())
        assert not layer.norm.training
    assert (model.qkv.in_features, model.qkv.out_features) == (12, 36)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert not any("scratch" in name for name in model.state_dict())
    optimized = oialr._optimizer.param_groups[0]["params"]
    assert set(optimized) == set(model.parameters())
    exported = export(model)
    assert set(exported.state_dict()) == set(dense.state_dict())
    assert exported.linear.tag == ["linear"]
    assert not hasattr(exported.linear, "sigma")
    torch.testing.assert_close(exported(x), expected, atol=1e-5, rtol=1e-5)


def test_trainable_parameters_that_the_user_leaves_out_are_his_affair() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD([model[0].weight], lr=0.1)
    settings = OIALRSettings(delay_steps=0, update_frequency=1, cutoff_fraction=0.1)
    assert list(OIALR(model, optimizer, settings).low_rank_layers) == ["0"]


def test_the_global_random_state_is_never_touched() -> None:
    model = nn.Sequential(
        make_vit(qkv_bias=True), nn.TransformerEncoderLayer(10, 2, 16), nn.Conv1d(10, 10, 3)
    )
    before = torch.get_rng_state()
    oialr = start(model, delay_steps=1, cutoff_fraction=0.5, fused_projections="apart")
    assert oialr.step()
    assert oialr.step()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_converted_model_can_be_copied() -> None:
    model = Attend()
    start(model)
    x = torch.randn(5, 3, 12)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
