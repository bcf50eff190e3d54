"""The optimiser follows Σ through conversion, basis update and truncation.

The paper leaves its state open; the authors zero the moments at conversion and slice them at an
update. Here both moments are taken into the new bases: left and right are U and V at conversion,
the kept columns of U' and V' at an update. The authors' way is there by option, and a third, to
forget the moments. The step count always goes on.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from oialr.decomposition import precise_product
from oialr.errors import OIALRError
from oialr.settings import OptimizerState

# left: (m, r), right: (n, r); a moment goes from (m, n) to (r, r)

FIRST_MOMENTS = frozenset({"exp_avg", "momentum_buffer", "grad_avg"})
SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})

State = dict[str, Any]


def replace_parameter(
    optimizer: Optimizer,
    old: nn.Parameter,
    new: Sequence[nn.Parameter],
    rotations: Sequence[tuple[Tensor, Tensor]],
    how: OptimizerState = "rotate",
) -> None:
    """Put the Σ made of a weight or of an older Σ in its place in the optimiser, state and all.

    old: (m, n), or a kernel: (out, in, k...), or as many of them above one another as there are
    new: (r, r); rotations are the left and right of each.
    """
    group, position = find_group(optimizer, old)
    group["params"][position : position + 1] = new
    if "param_names" in group:
        names = [group["param_names"][position]] * len(new)
        group["param_names"][position : position + 1] = names
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        blocks = matrix_states(state, len(new))
        for sigma, block, (left, right) in zip(new, blocks, rotations, strict=True):
            optimizer.state[sigma] = carry(block, left, right, how)


def carry(state: State, left: Tensor, right: Tensor, how: OptimizerState) -> State:
    """Carry one parameter's moments: (m, n) over; copy what is no moment, as the step count."""
    carried = {}
    for key, value in state.items():
        if is_shaped(value):
            carried[key] = CARRY[how](key, value, left, right)
        else:
            carried[key] = value.clone() if isinstance(value, Tensor) else value
    return carried


def rotate(key: str, moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Take a moment: (m, n) into new bases; returns (r, r)."""
    rotate_moment = rotate_first if key in FIRST_MOMENTS else rotate_second
    return rotate_moment(moment, left, right)


def cut(key: str, moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Keep the corner of a moment: (m, n) in the old bases, as the authors; returns (r, r)."""
    corner = moment[: left.shape[1], : right.shape[1]]
    return corner.clone(memory_format=torch.contiguous_format)  # no view, which would hold it all


def reset(key: str, moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Forget a moment: (m, n); returns (r, r)."""
    return moment.new_zeros(left.shape[1], right.shape[1])


CARRY: dict[OptimizerState, Callable[[str, Tensor, Tensor, Tensor], Tensor]] = {
    "rotate": rotate,
    "cut": cut,
    "reset": reset,
}


def rotate_first(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """A mean of gradients: (m, n) changes bases as the gradient does; returns (r, r)."""
    return precise_product(left.mT, moment, right).to(moment.dtype)  # m ← U'ᵀ m V'


def rotate_second(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """A mean of squares: (m, n) follows as if the gradient's entries were uncorrelated.

    Returns (r, r).
    """
    left, right = left.double().square(), right.double().square()
    return precise_product(left.mT, moment, right).to(moment.dtype)  # v ← (U'∘U')ᵀ v (V'∘V')


def matrix_states(state: State, num_blocks: int) -> list[State]:
    """Cut a fused weight's state into its blocks' states; flatten a kernel's.

    Moments: (num_blocks·m, n), or (out, in, k...); returns them as (m, n).
    """
    return [
        {
            key: value.chunk(num_blocks)[block].flatten(1) if is_shaped(value) else value
            for key, value in state.items()
        }
        for block in range(num_blocks)
    ]


def refuse_unfit(optimizer: Optimizer) -> None:
    """Refuse an optimiser whose state could not follow a change of bases, before it has any.

    A new one of its kind and settings takes a step with a matrix of its own. Where that is not to
    be had, `refuse_unknown_state` decides at conversion.
    """
    weight = nn.Parameter(torch.ones(32, 48))  # some kinds factorise from a side of 16 on
    accepted = signature(type(optimizer)).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in accepted}
    twin = None

    def gradient() -> float:
        weight.grad = torch.ones_like(weight)
        return 0.0

    with (
        torch.random.fork_rng(devices=[]),
        torch.compiler.set_stance("force_eager"),  # timm's Kron compiles for a minute
        suppress(Exception),  # whatever it says, it is not about the user's optimiser
    ):
        twin = type(optimizer)([weight], **settings)
        gradient()
        twin.step(gradient)
    if twin is not None:
        refuse_unknown_state(twin, weight)


def refuse_unknown_state(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    """Refuse an optimiser whose state for a parameter could not follow a change of bases.

    parameter: (m, n), or a kernel: (out, in, k...).
    """
    for key, value in optimizer.state.get(parameter, {}).items():
        known = key in FIRST_MOMENTS | SECOND_MOMENTS and value.shape == parameter.shape
        if isinstance(value, list | tuple | dict) or (is_shaped(value) and not known):
            raise OIALRError(
                f"{type(optimizer).__name__} cannot train with OIALR: what it keeps of each weight"
                f" as {key!r} has no form in other bases; AdamW, Adam and SGD can"
            )


def moments(state: State) -> dict[str, Tensor]:
    """The part of a parameter's state that has its shape: (m, n), or (out, in, k...)."""
    return {key: value for key, value in state.items() if is_shaped(value)}


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
