"""Autoformer against the authors' numbers, and against the algorithm written out plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.plain_autoformer import PlainAutoformer, PlainDecomposition
from oialr_training.models import autoformer
from oialr_training.models.autoformer import (
    Autoformer,
    CircularConv,
    Dropout,
    SeasonalNorm,
    apply_linear,
    apply_narrowing,
    auto_correlation,
    correlations,
    decompose,
    fit_length,
    from_published,
    strongest_delays,
)
from oialr_training.sections import AutoformerModel

from ..conftest import SHARED

REFERENCE = SHARED / "reference" / "autoformer"
SIZES = {"num_series": 7, "num_time_features": 5, "label_len": 48}
EXACT = {"rtol": 0.0, "atol": 1e-11}

Arrays = dict[str, Tensor]


def numbers(name: str) -> Arrays:
    """The arrays of a reference file."""
    if not REFERENCE.is_dir():
        pytest.skip(f"no reference numbers in {REFERENCE}")
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


def below(arrays: Arrays, prefix: str) -> Arrays:
    """The arrays under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def small(factor: int = 3, dropout: float = 0.0) -> AutoformerModel:
    return AutoformerModel(
        d_model=16, d_ff=32, num_heads=2, encoder_layers=2, decoder_layers=1,
        factor=factor, dropout=dropout,
    )  # fmt: skip


def published(arrays: Arrays, factor: int) -> Autoformer:
    """The small network with the authors' weights."""
    model = Autoformer(small(factor), **SIZES, pred_len=96).double()
    model.load_state_dict(from_published(below(arrays, "state/")))
    return model


def inputs(arrays: Arrays) -> tuple[Tensor, Tensor, Tensor]:
    return arrays["x_enc"], arrays["x_mark_enc"], arrays["x_mark_dec"]


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_network_has_the_authors_outputs_and_gradients(factor: int, mode: str) -> None:
    arrays = numbers("autoformer_small")
    prefix = "factor1/" if factor == 1 else ""
    model = published(arrays, factor).train(mode == "train")
    output = model(*inputs(arrays))
    loss = (output - arrays["y"][:, -96:]).square().mean()
    torch.testing.assert_close(output, arrays[f"{prefix}{mode}/out"], **EXACT)
    torch.testing.assert_close(loss, arrays[f"{prefix}{mode}/loss"], **EXACT)
    gradients = {"eval": "grad_eval/", "train": "grad/"}[mode]
    expected = from_published(below(arrays, prefix + gradients))
    if expected:
        loss.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected, **EXACT)
    else:
        assert (factor, mode) == (1, "eval")


def test_in_float32_the_outputs_stay_close() -> None:
    arrays = numbers("autoformer_small")
    model = published(arrays, 3).float().eval()
    output = model(*(array.float() for array in inputs(arrays)))
    torch.testing.assert_close(output.double(), arrays["eval/out"], rtol=0.0, atol=2e-5)


def test_each_part_has_the_authors_activations() -> None:
    arrays = numbers("autoformer_small")
    model = published(arrays, 3).eval()
    expected = below(arrays, "eval/act/")
    found: dict[str, Tensor] = {}
    parts = {
        "enc_embedding": model.encoder_embedding,
        "enc0.attention": model.encoder.layers[0].attention,
        "enc0.out": model.encoder.layers[0],
        "enc1.attention": model.encoder.layers[1].attention,
        "enc1.out": model.encoder.layers[1],
        "encoder.norm": model.encoder.norm,
        "dec_embedding": model.decoder_embedding,
        "dec0.self_attention": model.decoder.layers[0].self_attention,
        "dec0.cross_attention": model.decoder.layers[0].cross_attention,
        "dec0.out": model.decoder.layers[0],
    }

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output
            if isinstance(output, tuple):
                found["dec0.residual_trend"] = output[1]

        return hook

    for name, part in parts.items():
        part.register_forward_hook(keep(name))
    model(*inputs(arrays))
    found["init.seasonal"], found["init.trend"] = decompose(arrays["x_enc"], 25)
    compared = found.keys() & expected.keys()
    assert len(compared) == len(parts) + 3
    torch.testing.assert_close(
        {k: found[k] for k in compared}, {k: expected[k] for k in compared}, **EXACT
    )


@pytest.mark.parametrize("window", [25, 13, 3, 1])
def test_the_decomposition_has_the_authors_numbers(window: int) -> None:
    arrays = below(numbers("layers"), "decomp/")
    x = arrays["x"].requires_grad_()
    seasonal, trend = decompose(x, window)
    torch.testing.assert_close(seasonal, arrays[f"k{window}/seasonal"], **EXACT)
    torch.testing.assert_close(trend, arrays[f"k{window}/trend"], **EXACT)
    if window == 25:
        weighted = seasonal * arrays["k25/cot_seasonal"] + trend * arrays["k25/cot_trend"]
        (gradient,) = torch.autograd.grad(weighted.sum(), x)
        torch.testing.assert_close(gradient, arrays["k25/grad_x"], **EXACT)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("case", ["self", "cross", "trunc"])
def test_auto_correlation_has_the_authors_numbers(case: str, factor: int, mode: str) -> None:
    arrays = below(numbers("layers"), f"ac/{case}/")
    q, k, v = (arrays[name].flatten(2).requires_grad_() for name in "qkv")
    expected = below(arrays, f"f{factor}/{mode}/")
    correlation = correlations(q, fit_length(k, q.shape[1]))
    torch.testing.assert_close(correlation, arrays["corr"].mean(dim=(2, 3)), **EXACT)
    delays = strongest_delays(correlation, factor, shared=mode == "train")
    assert (delays == expected["topk_delay"]).all()
    result = auto_correlation(q, k, v, factor, training=mode == "train")
    torch.testing.assert_close(result, expected["V"].flatten(2), **EXACT)
    found = torch.autograd.grad((result * arrays["cot"].flatten(2)).sum(), (q, k, v))
    for name, gradient in zip("qkv", found, strict=True):
        torch.testing.assert_close(gradient, expected[f"grad_{name}"].flatten(2), **EXACT)


def test_the_seasonal_norm_has_the_authors_numbers() -> None:
    arrays = below(numbers("layers"), "ln/")
    layer = SeasonalNorm(16).double()
    layer.load_state_dict({"norm.weight": arrays["weight"], "norm.bias": arrays["bias"]})
    x = arrays["x"].requires_grad_()
    result = layer(x)
    torch.testing.assert_close(result, arrays["out"], **EXACT)
    (result * arrays["cot"]).sum().backward()
    torch.testing.assert_close(x.grad, arrays["grad_x"], **EXACT)
    torch.testing.assert_close(layer.norm.weight.grad, arrays["grad_weight"], **EXACT)
    torch.testing.assert_close(layer.norm.bias.grad, arrays["grad_bias"], **EXACT)


def pair(pred_len: int, factor: int = 2) -> tuple[Autoformer, PlainAutoformer]:
    """The network and the plain one, in float64, with the same weights."""
    torch.manual_seed(pred_len)
    sizes = {**SIZES, "pred_len": pred_len}
    fast = Autoformer(small(factor), **sizes).double()
    plain = PlainAutoformer(small(factor), **sizes).double()
    plain.load_state_dict(plain_state(fast))
    return fast, plain


def plain_state(model: Autoformer) -> Arrays:
    """The weights as the plain network wants them: feed-forward layers as kernels of size 1."""
    return {
        name: weight.unsqueeze(-1) if "feed_forward" in name else weight
        for name, weight in model.state_dict().items()
    }


def batch(pred_len: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((3, 96, 7), (3, 96, 5), (3, 48 + pred_len, 5))
    return tuple(torch.randn(s, generator=generator, dtype=dtype) for s in shapes)  # type: ignore[return-value]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pred_len", [24, 96, 192, 336, 720])
def test_it_is_the_plain_algorithm_at_every_length(pred_len: int, training: bool) -> None:
    fast, plain = pair(pred_len)
    outputs, gradients = [], []
    for model in (fast, plain):
        model.train(training)
        outputs.append(model(*batch(pred_len)))
        assert outputs[-1].shape == (3, pred_len, 7)
        outputs[-1].square().mean().backward()
        gradients.append({n: p.grad.squeeze(-1) for n, p in model.named_parameters()})
    torch.testing.assert_close(*outputs, **EXACT)
    torch.testing.assert_close(*gradients, **EXACT)


def test_thirty_steps_of_adam_stay_with_the_plain_algorithm() -> None:
    fast, plain = pair(96, factor=1)
    losses: list[list[float]] = [[], []]
    for model, trace in zip((fast, plain), losses, strict=True):
        optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-3)
        target = torch.randn(3, 96, 7, generator=torch.Generator().manual_seed(6)).double()
        for _ in range(30):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(*batch(96)), target)
            loss.backward()
            optimizer.step()
            trace.append(loss.item())
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 13, 40])
@pytest.mark.parametrize("window", [1, 3, 25])
def test_short_series_are_decomposed_as_published(num_steps: int, window: int) -> None:
    x = torch.randn(2, num_steps, 3, dtype=torch.float64, requires_grad=True)
    found, expected = decompose(x, window), PlainDecomposition(window)(x)
    torch.testing.assert_close(found, expected, **EXACT)
    weights = torch.randn(2, *x.shape, dtype=torch.float64)
    sums = [(part[0] * weights[0] + part[1] * weights[1]).sum() for part in (found, expected)]
    gradients = [torch.autograd.grad(total, x)[0] for total in sums]
    torch.testing.assert_close(*gradients, **EXACT)


def test_the_paper_s_size_has_its_parameters() -> None:
    config = AutoformerModel(
        d_model=512, d_ff=2048, num_heads=8, encoder_layers=2, decoder_layers=1
    )
    with torch.device("meta"):
        model = Autoformer(config, **SIZES, pred_len=96)
    assert sum(p.numel() for p in model.parameters()) == 10_536_967
    assert not list(model.buffers())
    matrices = [p for p in model.parameters() if p.ndim == 2 and min(p.shape) >= 512]
    assert len(matrices) == 22


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_on_a_cpu_are_linear_layers(bias: bool) -> None:
    layer = nn.Linear(48, 80, bias=bias)
    x = torch.randn(4, 9, 48, requires_grad=True)
    found, expected = apply_linear(layer, x), layer(x)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    wanted = (x, *layer.parameters())
    gradients = [torch.autograd.grad((y * weights).sum(), wanted) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_a_layer_in_a_linear_one_s_place_is_called() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    layer, x = Twice(4, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(apply_linear(layer, x), layer(x))


def test_a_narrowing_convolution_is_the_convolution() -> None:
    conv, x = CircularConv(12, 5).double(), torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(apply_narrowing(conv, x), conv(x.mT).mT, **EXACT)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    layer, x = Dropout(p), torch.ones(1001, 1001, requires_grad=True)
    result = layer(x)
    kept = result[result != 0].unique()
    assert kept.tolist() == pytest.approx([1 / (1 - p)], rel=2e-5)
    assert (result == 0).double().mean().item() == pytest.approx(p, abs=2e-3)
    assert torch.equal(torch.autograd.grad(result.sum(), x)[0], result.detach())
    assert not torch.equal(layer(x), result)
    torch.manual_seed(0)
    assert torch.equal(layer(x), result)
    assert torch.equal(layer.eval()(x), x)


def test_no_delay_reaches_the_host() -> None:
    """On the meta device any look at a value raises, as a read-back from a GPU would wait."""
    with torch.device("meta"):
        model = Autoformer(small(), **SIZES, pred_len=24)
        result = model(torch.empty(2, 96, 7), torch.empty(2, 96, 5), torch.empty(2, 72, 5))
        result.square().mean().backward()
    assert result.shape == (2, 24, 7)


def test_bfloat16_autocast_computes_correlations_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    exact = autoformer.correlations

    def watched(q: Tensor, k: Tensor) -> Tensor:
        result = exact(q, k)
        seen.append((q.dtype, result.dtype))
        return result

    monkeypatch.setattr(autoformer, "correlations", watched)
    fast, _ = pair(24)
    arguments = batch(24, torch.float32)
    fast.float().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = fast(*arguments)
        result.float().square().mean().backward()
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    expected = fast(*arguments)
    assert (result - expected).abs().max() < 0.1 * expected.abs().max()


def test_dropout_stands_where_it_does_in_the_plain_algorithm() -> None:
    """With halving in every dropout's place both networks still agree."""

    class Halve(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    outputs = []
    for model in pair(24):
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, Halve())
        outputs.append(model(*batch(24)))
    torch.testing.assert_close(*outputs, **EXACT)
    assert not torch.allclose(outputs[0], pair(24)[0](*batch(24)))


def test_dropout_of_nearly_all_drops_nearly_all() -> None:
    assert (Dropout(0.9999999)(torch.ones(1000, 100)) == 0).double().mean() > 0.999
