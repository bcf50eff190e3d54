"""Which layers conversion takes, and why the others stay dense (Coquelin et al.)."""

import difflib
import logging
from collections import Counter
from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from oialr.errors import OIALRError
from oialr.layers import Convolution
from oialr.settings import OIALRSettings

logger = logging.getLogger(__name__)

TORCH_CLASSES = (nn.Linear, *get_args(Convolution), nn.MultiheadAttention)

PROJECTION_NAMES = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class EligibleLayer:
    """A dense layer that conversion takes, its weights each `num_blocks` matrices high."""

    name: str
    module: nn.Module
    num_blocks: int

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """The weights: (out, ...) of today."""
        return weights_of(self.module)

    @property
    def matrices(self) -> list[Tensor]:
        """What U Σ Vᵀ takes the place of, (m, n) each; of a kernel: (out, in, k...) n is in·k..."""
        return [
            block.flatten(1) for weight in self.weights for block in weight.chunk(self.num_blocks)
        ]


def survey(
    model: nn.Module, optimizer: Optimizer, settings: OIALRSettings
) -> tuple[list[EligibleLayer], dict[str, str]]:
    """List the layers to convert in registration order, and by name why the others stay dense."""
    refuse_uninitialized(model)
    candidates = [
        EligibleLayer(name, module, num_blocks(name, module, settings))
        for name, module in model.named_modules()
        if class_of(module) is not None
    ]
    refuse_unknown_names(settings.keep_dense, [layer.name for layer in candidates])
    trained = {
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }
    num_owners = Counter(
        parameter
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    reasons = {layer.name: why_dense(layer, trained, num_owners, settings) for layer in candidates}
    eligible = [layer for layer in candidates if not reasons[layer.name]]
    reasons |= kept_at_full_rank(eligible, candidates, settings)
    return (
        [layer for layer in eligible if not reasons[layer.name]],
        {name: reason for name, reason in reasons.items() if reason},
    )


def why_dense(
    layer: EligibleLayer,
    trained: set[nn.Parameter],
    num_owners: Counter[nn.Parameter],
    settings: OIALRSettings,
) -> str:
    """Say what keeps a layer from converting; nothing, if it is eligible."""
    if layer.name in settings.keep_dense:
        return "named in keep_dense"
    if has_own_forward(layer.module):
        return f"{type(layer.module).__name__} has a forward of its own"
    if not layer.weights:
        return "its weight is computed from other parameters"
    if any(num_owners[weight] > 1 for weight in layer.weights):
        return "its weight is shared with another layer"
    if not trained.issuperset(layer.weights):
        return "its weight is not trained by the optimizer"
    reasons = (unfit_shape(matrix, settings) for matrix in layer.matrices)
    return next(filter(None, reasons), "")


def class_of(module: nn.Module) -> type[nn.Module] | None:
    """The class whose layers conversion takes that a module is of, or None.

    Of those that are not torch's there is `transformers.Conv1D`, known by its name: who has not
    imported transformers has none.
    """
    for kind in type(module).__mro__:
        if kind in TORCH_CLASSES or is_transformers_conv1d(kind):
            return kind
    return None


def is_transformers_conv1d(kind: type) -> bool:
    """Tell GPT-2's linear layer, whose weight is in x out."""
    return kind.__name__ == "Conv1D" and kind.__module__.partition(".")[0] == "transformers"


def has_own_forward(module: nn.Module) -> bool:
    """Tell a layer that computes something else than its class does."""
    known = class_of(module)
    return any(
        method in vars(module)
        or getattr(type(module), method, None) is not getattr(known, method, None)
        for method in ("forward", "_conv_forward")
    )


def unfit_shape(matrix: Tensor, settings: OIALRSettings) -> str:
    """Say why a matrix: (m, n) is too small or too narrow to convert; nothing, if it is fit."""
    num_rows, num_columns = matrix.shape
    short, long = sorted(matrix.shape)
    if short < settings.min_dim:
        return f"{num_rows}x{num_columns} is smaller than min_dim={settings.min_dim}"
    # The authors' code refuses a Linear on either side, but a convolution only if in·k < out / 10:
    # one of 7x1536 converts there, at an inner rank of 7, and nothing is gained.
    if long >= settings.max_aspect_ratio * short:
        return f"{num_rows}x{num_columns} reaches max_aspect_ratio={settings.max_aspect_ratio:g}"
    return ""


def kept_at_full_rank(
    eligible: list[EligibleLayer], candidates: list[EligibleLayer], settings: OIALRSettings
) -> dict[str, str]:
    """Name the layers that full_rank_first_layer and full_rank_last_layer keep dense."""
    kept: dict[str, str] = {}
    if settings.full_rank_first_layer:
        kept |= {layer.name: "full_rank_first_layer" for layer in eligible[:1]}
    if settings.full_rank_last_layer and settings.last_layer == "last_converted":
        kept |= {layer.name: "full_rank_last_layer" for layer in eligible[-1:]}
    elif settings.full_rank_last_layer:
        linears = [layer for layer in candidates if isinstance(layer.module, nn.Linear)]
        if linears and linears[-1] in eligible:
            kept[linears[-1].name] = "full_rank_last_layer"
        else:
            logger.warning("full_rank_last_layer has no effect: the classifier never converts")
    return kept


def weights_of(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """The weights: (out, ...) to replace; none where a parametrization computes them."""
    names = PROJECTION_NAMES if isinstance(module, nn.MultiheadAttention) else ("weight",)
    parameters = dict(module.named_parameters(recurse=False))
    return tuple(parameters[name] for name in names if name in parameters)


def num_blocks(name: str, module: nn.Module, settings: OIALRSettings) -> int:
    """How many matrices to make of each weight: three for a fused one taken apart."""
    if isinstance(module, nn.MultiheadAttention):
        fused = module._qkv_same_embed_dim
    elif isinstance(module, nn.Linear):
        is_qkv = name.rpartition(".")[2] == "qkv"
        fused = is_qkv and module.out_features == 3 * module.in_features
    else:
        fused = False
    return 3 if fused and settings.fused_projections == "apart" else 1


def refuse_uninitialized(model: nn.Module) -> None:
    """Refuse lazy layers that have seen no input: nobody knows their shape, nor their fitness."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise OIALRError(f"{name} has no shape yet: run the model on one batch before OIALR")


def refuse_unknown_names(names: tuple[str, ...], known: list[str]) -> None:
    """Refuse a name that no layer bears, and offer the nearest."""
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise OIALRError(f"keep_dense names no layer: {name!r}; nearest: {nearest}")
