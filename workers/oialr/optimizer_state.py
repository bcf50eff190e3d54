"""The optimiser follows Σ through conversion, basis update and truncation.

The paper leaves its state open; the authors zero the moments at conversion and slice them at an
update. Here both moments are taken into the new bases: left and right are U and V at conversion,
the kept columns of U' and V' at an update.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from workers.oialr.decomposition import precise_product
from workers.oialr.errors import OIALRError

# left: m x r, right: n x r; a moment goes from m x n to r x r

FIRST_MOMENTS = frozenset({"exp_avg", "momentum_buffer", "grad_avg"})
SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})

State = dict[str, Any]


def replace_parameter(
    optimizer: Optimizer,
    old: nn.Parameter,
    new: Sequence[nn.Parameter],
    rotations: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """Put the Σ made of a weight or of an older Σ in its place in the optimiser, state and all."""
    group, position = find_group(optimizer, old)
    group["params"][position : position + 1] = new
    if "param_names" in group:
        names = [group["param_names"][position]] * len(new)
        group["param_names"][position : position + 1] = names
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        blocks = matrix_states(state, len(new))
        for sigma, block, (left, right) in zip(new, blocks, rotations, strict=True):
            optimizer.state[sigma] = rotate(block, left, right)


def rotate(state: State, left: Tensor, right: Tensor) -> State:
    """Take one parameter's state into new bases; copy what is no moment, as the step count."""
    rotated = {}
    for key, value in state.items():
        if key in FIRST_MOMENTS and value is not None:
            rotated[key] = rotate_first(value, left, right)
        elif key in SECOND_MOMENTS and value is not None:
            rotated[key] = rotate_second(value, left, right)
        else:
            rotated[key] = value.clone() if isinstance(value, Tensor) else value
    return rotated


def rotate_first(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """A mean of gradients changes bases as the gradient does."""
    return precise_product(left.mT, moment, right).to(moment.dtype)  # m ← U'ᵀ m V'


def rotate_second(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """A mean of squares follows as if the gradient's entries were uncorrelated."""
    left, right = left.double().square(), right.double().square()
    return precise_product(left.mT, moment, right).to(moment.dtype)  # v ← (U'∘U')ᵀ v (V'∘V')


def matrix_states(state: State, num_blocks: int) -> list[State]:
    """Cut a fused weight's state into its blocks' states; flatten a kernel's, (out, in, k...)."""
    return [
        {
            key: value.chunk(num_blocks)[block].flatten(1) if is_shaped(value) else value
            for key, value in state.items()
        }
        for block in range(num_blocks)
    ]


def refuse_unknown_state(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    """Refuse an optimiser whose state for a parameter could not follow a change of bases."""
    for key, value in optimizer.state.get(parameter, {}).items():
        if is_shaped(value) and key not in FIRST_MOMENTS | SECOND_MOMENTS:
            raise OIALRError(
                f"{type(optimizer).__name__} keeps {key!r}, of shape {tuple(value.shape)}, for a"
                f" weight of shape {tuple(parameter.shape)}: OIALR cannot take it into new bases"
            )


def is_shaped(value: object) -> bool:
    """Tell a tensor with dimensions from a step count."""
    return isinstance(value, Tensor) and value.ndim > 0


def find_group(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[dict[str, Any], int]:
    """The param group that holds a parameter, and its position there."""
    return next(
        (group, position)
        for group in optimizer.param_groups
        for position, candidate in enumerate(group["params"])
        if candidate is parameter
    )


def parameters_outside(model: nn.Module, optimizer: Optimizer) -> set[nn.Parameter]:
    """The model's trainable parameters that the optimiser never sees."""
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    return {parameter for parameter in model.parameters() if parameter.requires_grad} - trained
