"""FSDP2 (`torch.distributed.fsdp.fully_shard`) around conversion and basis updates.

Sharded parameters are pieces of fixed shapes that know nothing of each other. So whenever weights
change shape, every process takes the whole model and all moments together, changes them as the
others do, and has them sharded anew by the same function. In between each keeps its own piece of
everything, of the bases, too: while sharded they are frozen parameters, and no buffers.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim import Optimizer

from oialr.errors import OIALRError
from oialr.layers import low_rank_weights

Shard = Callable[[nn.Module], object]
"""What a user's function does: `fully_shard` on the model's parts and on the model, in place."""

BASES = ("basis", "cobasis")
WRAPPERS = (
    ("torch.nn.parallel", "DistributedDataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
)


class Sharding:
    """Takes a model and its optimiser's state together, and has them sharded again."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, shard: Shard) -> None:
        """Shard nothing yet."""
        self._model = model
        self._optimizer = optimizer
        self._shard = shard

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Each process has the whole model and optimiser; they are sharded again at the end."""
        self.gather()
        try:
            yield
        finally:
            self.scatter()

    def gather(self) -> None:
        """Make a model whole that is sharded; gradients are lost, which the step has used."""
        for module in self._model.modules():
            if is_sharded(module):
                module.reshard()  # type: ignore[operator]  # the pieces are registered then
        self._exchange(
            {
                parameter: nn.Parameter(whole(parameter), parameter.requires_grad)
                for parameter in self._model.parameters()
                if is_piece(parameter)
            },
            lambda moment, _: whole(moment),
        )
        for module in self._model.modules():
            forget_sharding(module)
        for weight in low_rank_weights(self._model):
            for name in BASES:
                basis = getattr(weight, name).detach()
                delattr(weight, name)
                weight.register_buffer(name, basis)

    def scatter(self) -> None:
        """Shard a model that is whole, and the optimiser's state as it."""
        for weight in low_rank_weights(self._model):
            for name in BASES:
                basis = nn.Parameter(getattr(weight, name), requires_grad=False)
                delattr(weight, name)
                weight.register_parameter(name, basis)
        before = places(self._model)
        self._shard(self._model)
        after = places(self._model)
        self._exchange({before[place]: after[place] for place in before}, piece_alike)

    def _exchange(
        self,
        replacements: dict[nn.Parameter, nn.Parameter],
        carry: Callable[[Tensor, nn.Parameter], Tensor],
    ) -> None:
        """Put parameters in the places of others, in the model and in the optimiser."""
        for module in self._model.modules():
            for name, parameter in module._parameters.items():
                if parameter in replacements:
                    module._parameters[name] = replacements[parameter]
        for group in self._optimizer.param_groups:
            group["params"] = [replacements.get(p, p) for p in group["params"]]
        state = self._optimizer.state
        for old, new in replacements.items():
            if old is not new and old in state:
                state[new] = {
                    key: carry(value, new)
                    if isinstance(value, Tensor) and value.shape == new.shape
                    else value
                    for key, value in state.pop(old).items()
                }


def places(model: nn.Module) -> dict[tuple[nn.Module, str], nn.Parameter]:
    """Every place where a parameter is registered, a shared one several times."""
    return {
        (module, name): parameter
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on this very module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # who has sharded has imported it
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def is_piece(tensor: Tensor) -> bool:
    """Whether a tensor is this process's piece of a whole one."""
    dtensor = sys.modules.get("torch.distributed.tensor")
    return dtensor is not None and isinstance(tensor, dtensor.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Collect the pieces of a tensor, as all processes must at once; of its shape."""
    gathered: Tensor = tensor.full_tensor() if is_piece(tensor) else tensor  # type: ignore[attr-defined]
    return gathered.detach().clone()


def piece_alike(moment: Tensor, parameter: nn.Parameter) -> Tensor:
    """This process's piece of a moment, cut as its parameter; both of one shape."""
    if not is_piece(parameter):
        return moment
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(moment, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]


def forget_sharding(module: nn.Module) -> None:
    """Undo `fully_shard` on one module, so that it can be called again; torch has no such thing.

    What it leaves behind are the module's class, hooks of its own on this and on inner modules,
    and entries of the state that it keeps.
    """
    of_fsdp = {
        key
        for name, hooks in vars(module).items()
        if name.endswith("_hooks") and hooks
        for key, hook in hooks.items()
        if hook.__module__.startswith("torch.distributed.fsdp.")
    }
    for name, entries in vars(module).items():
        if "_hooks" in name and isinstance(entries, dict):
            for key in of_fsdp & set(entries):
                del entries[key]
    if is_sharded(module):
        kinds = type(module).__mro__
        fsdp_module = sys.modules["torch.distributed.fsdp"].FSDPModule
        module.__class__ = kinds[kinds.index(fsdp_module) + 1]
        for name in [name for name in vars(module) if name.startswith("__composable_api_state")]:
            delattr(module, name)
        from torch.distributed._composable_state import _module_state_mapping

        _module_state_mapping.pop(module, None)


def refuse_distributed(model: nn.Module) -> None:
    """Refuse a model that is wrapped, sharded or split, whose weights nobody could exchange.

    Raises:
        OIALRError: with what to do instead.
    """
    for module in model.modules():
        kinds = [getattr(sys.modules.get(place), name, ()) for place, name in WRAPPERS]
        parallel, flat = (isinstance(module, kind) for kind in kinds)
        if parallel:
            raise OIALRError(
                "give OIALR the model itself and wrap it in DistributedDataParallel afterwards"
            )
        if flat:
            raise OIALRError(
                "FullyShardedDataParallel cannot follow a change of shape: give OIALR the model"
                " itself, and what calls `fully_shard` on it as `shard`"
            )
        if is_sharded(module):
            raise OIALRError(
                "give OIALR the model itself, and what calls `fully_shard` on it as `shard`"
            )
    if any(map(is_piece, model.parameters())):
        raise OIALRError("parameters that are split over processes cannot train with OIALR")
