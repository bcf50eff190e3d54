"""OIALR beside a training loop (Coquelin et al., Algorithm 2): the one object a user holds."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from oialr.basis_update import BasisUpdate, update_bases
from oialr.conversion import convert, follow
from oialr.decomposition import Factors, blank, decompose, numbered, refuse_not_finite
from oialr.eligibility import EligibleLayer, survey
from oialr.errors import OIALRError
from oialr.layers import LowRankLayer, LowRankWeight
from oialr.metrics import compression_percent, count_parameters, trainable_percent
from oialr.optimizer_state import (
    moments,
    refuse_unfit,
    refuse_unknown_state,
    replace_parameter,
)
from oialr.settings import OIALRSettings, OptimizerState
from oialr.sharding import Shard, Sharding, refuse_distributed
from oialr.update_times import conversion_step, layers_reached, update_number

DDP_IGNORES = "_ddp_params_and_buffers_to_ignore"
"""Names that DistributedDataParallel leaves alone, as an attribute of the model."""


class OIALR:
    """Trains a model with OIALR: call `step()` once after every `optimizer.step()`.

    It converts the model in place, so the model must hold its eligible layers as children. Forward
    and backward hooks on a converted layer go on; hooks on its weight end with the weight. Whenever
    `step()` returns updates, the trained parameters are new objects: ask `model.parameters()` again
    for them. `torch.compile` follows by itself, but goes on uncompiled after eight changes, its
    recompile limit, unless `torch.compiler.reset()` is called after each.

    With `process_group`, the processes that train copies of the model together share the SVDs out
    among themselves, and all have the same factors and moments afterwards. DistributedDataParallel
    wraps the model after OIALR has it, and anew whenever `step()` returns updates:

        oialr = OIALR(model, optimizer, settings, process_group=torch.distributed.group.WORLD)
        ddp = DistributedDataParallel(model)
        ...
            if oialr.step():
                ddp = DistributedDataParallel(model)

    With `shard`, each process holds a piece of every parameter, moment and basis: OIALR calls it on
    the model at once, and again after every conversion and update, for which each process has the
    whole model. It calls `torch.distributed.fsdp.fully_shard` on parts of the model and on the
    model itself, always the same ones:

        def shard(model):
            for block in model.blocks:
                fully_shard(block)
            fully_shard(model)

        oialr = OIALR(model, optimizer, settings, shard=shard)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        settings: OIALRSettings,
        *,
        process_group: distributed.ProcessGroup | None = None,
        shard: Shard | None = None,
    ) -> None:
        """Choose the layers; convert them at once if there is no full-rank warm-up.

        With `shard` and no `process_group`, that is of all processes.

        Raises:
            OIALRError: when no layer can become low-rank, or the optimiser's state cannot follow.
        """
        self.settings = settings
        self._model = model
        self._optimizer = optimizer
        self._sharding = Sharding(model, optimizer, shard) if shard else None
        self._process_group = (
            distributed.group.WORLD if shard and not process_group else process_group
        )
        self._averages: list[nn.Module] = []
        self._steps = 0
        refuse_distributed(model)
        refuse_unfit(optimizer)
        self._eligible, self._dense_layers = survey(model, optimizer, settings)
        refuse_unusable(self._eligible, self._dense_layers)
        self._low_rank_layers: dict[str, LowRankLayer] = {}
        self._full_rank_counts = count_parameters(model)
        if conversion_step(settings) == 0:
            self._convert(step=0)
        if self._sharding:
            self._sharding.scatter()

    def unsharded(self) -> AbstractContextManager[None]:
        """While it lasts, each process has the whole model and optimiser; all must enter it.

        For what cannot work on pieces: `export(model)`, an `Observer`'s `step()`. Without `shard`
        nothing happens.
        """
        return self._sharding.whole() if self._sharding else nullcontext()

    def step(self) -> list[BasisUpdate]:
        """Count one optimiser step; convert and update bases if it is time. Most often: nothing.

        Raises:
            NotFiniteError: when a weight to decompose holds NaN or infinity; nothing has changed
                then, and the step is not counted.
        """
        updates = self._advance(self._steps + 1)
        self._steps += 1
        return updates

    def _advance(self, step: int) -> list[BasisUpdate]:
        converts = not self.converted and step >= conversion_step(self.settings)
        update = update_number(self.settings, step)
        if not converts and not update:
            return []
        with self.unsharded():
            if converts:
                self._refuse_divergence([w for layer in self._eligible for w in layer.weights])
                self._convert(step)
            return self._update_bases(step, update) if update else []

    def _update_bases(self, step: int, update: int) -> list[BasisUpdate]:
        num_reached = layers_reached(self.settings, len(self._eligible), update)
        reached = self._eligible[-num_reached:]
        weights = {
            name: weight
            for layer in reached
            for name, weight in numbered(
                layer.name, self._low_rank_layers[layer.name].weights
            ).items()
        }
        stabilities = self._update(weights, step)
        for average in self._averages:
            follow(average, reached, self._low_rank_layers)
        return [
            BasisUpdate(
                step=step,
                layer=name,
                stability=stability,
                inner_rank=weight.inner_rank,
                full_inner_rank=weight.full_inner_rank,
            )
            for (name, weight), stability in zip(weights.items(), stabilities, strict=True)
        ]

    def add_average(self, average: nn.Module) -> None:
        """Let an average of the weights follow the model: give the averaged copy of it.

        That is `AveragedModel(model).module`, timm's `ModelEmaV3(model).module` and their like,
        made before or after the conversion. At conversion and at an update the copy gets the same
        structure and bases as the model, and of its own W what these bases can hold, so that
        averaging the Σ goes on being meant.

        Raises:
            OIALRError: when it is no copy of the model, or the model is sharded.
        """
        if self._sharding:
            raise OIALRError("an average cannot follow a model that is sharded")
        follow(average, self._eligible if self.converted else [], self._low_rank_layers)
        self._averages.append(average)

    def _convert(self, step: int) -> None:
        for layer in self._eligible:
            refuse_not_finite(numbered(layer.name, layer.matrices), step)
        positions = count()

        def factorize(matrix: Tensor) -> Factors:
            return decompose(matrix) if self._is_mine(next(positions)) else blank(matrix)

        # the authors, who cut at updates, forget at conversion: a weight's moments have other axes
        how: OptimizerState = "rotate" if self.settings.optimizer_state == "rotate" else "reset"
        layers = convert(self._model, self._optimizer, self._eligible, factorize, how)
        weights = [weight for layer in layers.values() for weight in layer.weights]
        for position, weight in enumerate(weights):
            self._share(weight, position)
        self._low_rank_layers = layers
        for average in self._averages:
            follow(average, self._eligible, layers)
        self._tell_ddp()

    def _tell_ddp(self) -> None:
        """Spare DistributedDataParallel the bases, which all have, at every forward pass."""
        if self._process_group is None:
            return
        left_out = set(getattr(self._model, DDP_IGNORES, ()))
        for name, module in self._model.named_modules():
            if isinstance(module, LowRankWeight):
                left_out |= {f"{name}.basis", f"{name}.cobasis"}
        setattr(self._model, DDP_IGNORES, left_out)

    def _update(self, weights: Mapping[str, LowRankWeight], step: int) -> list[float]:
        self._refuse_divergence([weight.sigma for weight in weights.values()])
        # a process that refused alone would leave the others waiting
        refuse_not_finite({name: weight.sigma for name, weight in weights.items()}, step)
        for weight in weights.values():
            refuse_unknown_state(self._optimizer, weight.sigma)
        mine = {
            position: weight
            for position, weight in enumerate(weights.values())
            if self._is_mine(position)
        }
        updated = update_bases(list(mine.values()), self._optimizer, self.settings)
        stabilities = dict(zip(mine, updated, strict=True))
        return [
            self._share(weight, position, stabilities.get(position, 0.0))
            for position, weight in enumerate(weights.values())
        ]

    def _is_mine(self, position: int) -> bool:
        """Tell which of the weights this process decomposes: in turn with the others."""
        group = self._process_group
        return group is None or position % group.size() == group.rank()

    @torch.no_grad()
    def _refuse_divergence(self, trained: Sequence[Tensor]) -> None:
        """Refuse to go on where each process has trained by itself; sharing would hide it.

        trained: weights or Σ of any shape.
        """
        if self._process_group is None:
            return
        norms = torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) for t in trained])
        extremes = torch.cat([norms, -norms])
        distributed.all_reduce(extremes, distributed.ReduceOp.MAX, group=self._process_group)
        highest, lowest = extremes.chunk(2)
        if not torch.allclose(highest, -lowest, rtol=1e-6, atol=0.0, equal_nan=True):
            raise OIALRError(
                "the processes' weights differ: wrap the model in DistributedDataParallel, and anew"
                " whenever step() has returned updates"
            )

    @torch.no_grad()
    def _share(self, weight: LowRankWeight, position: int, stability: float = 1.0) -> float:
        """Give all processes the factors, moments and stability that one of them computed."""
        group = self._process_group
        if group is None:
            return stability
        source = position % group.size()
        report = weight.sigma.new_tensor([weight.inner_rank, stability], dtype=torch.float64)
        distributed.broadcast(report, group=group, group_src=source)
        if not self._is_mine(position):
            self._resize(weight, int(report[0]))
        state = self._optimizer.state.get(weight.sigma, {})
        factors = (weight.basis, weight.sigma, weight.cobasis)
        for tensor in (*factors, *moments(state).values()):
            distributed.broadcast(tensor, group=group, group_src=source)
        return report[1].item()

    @property
    def steps(self) -> int:
        """Optimiser steps counted so far."""
        return self._steps

    @property
    def converted(self) -> bool:
        """Whether the model is low-rank by now."""
        return bool(self._low_rank_layers)

    @property
    def low_rank_layers(self) -> dict[str, LowRankLayer]:
        """The converted layers by dotted name, in registration order; none before conversion."""
        return dict(self._low_rank_layers)

    @property
    def dense_layers(self) -> dict[str, str]:
        """The Linear, convolution and attention layers that never convert, and why."""
        return dict(self._dense_layers)

    @property
    def trainable_percent(self) -> float:
        """Trainable parameters, % of the full-rank model's."""
        return trainable_percent(count_parameters(self._model), self._full_rank_counts)

    @property
    def compression_percent(self) -> float:
        """All parameters, bases included, % of the full-rank model's; it can pass 100."""
        return compression_percent(count_parameters(self._model), self._full_rank_counts)

    def state_dict(self) -> dict[str, Any]:
        """What a fresh OIALR needs to continue; model and optimiser have their own."""
        inner_ranks = {
            name: [weight.inner_rank for weight in layer.weights]
            for name, layer in self._low_rank_layers.items()
        }
        return {"steps": self._steps, "converted": self.converted, "inner_ranks": inner_ranks}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; call it first, then load the model and the optimiser.

        It gives a freshly built model the saved structure and empty factors of the saved sizes,
        for `model.load_state_dict` and `optimizer.load_state_dict` to fill.
        """
        if self.converted and not state["converted"]:
            raise OIALRError("the state is of a dense model, this one is converted: build it anew")
        layer_names = [layer.name for layer in self._eligible]
        if state["converted"] and list(state["inner_ranks"]) != layer_names:
            raise OIALRError(
                "the state is of other layers:"
                f" {sorted(set(state['inner_ranks']) ^ set(layer_names))} are in one only"
            )
        with self.unsharded():
            if state["converted"] and not self.converted:
                self._low_rank_layers = convert(self._model, self._optimizer, self._eligible, blank)
                self._tell_ddp()
            for name, inner_ranks in state["inner_ranks"].items():
                weights = self._low_rank_layers[name].weights
                for weight, inner_rank in zip(weights, inner_ranks, strict=True):
                    self._resize(weight, inner_rank)
        for average in self._averages if self.converted else []:
            follow(average, self._eligible, self._low_rank_layers)
        self._steps = state["steps"]

    def _resize(self, weight: LowRankWeight, inner_rank: int) -> None:
        """Make room for factors and moments of another inner rank: zeros, to be overwritten."""
        old_sigma = weight.sigma
        weight.set_factors(
            Factors(
                weight.basis.new_zeros(weight.basis.shape[0], inner_rank),
                old_sigma.new_zeros(inner_rank, inner_rank),
                weight.cobasis.new_zeros(inner_rank, weight.cobasis.shape[1]),
            )
        )
        nothing = old_sigma.new_zeros(old_sigma.shape[0], inner_rank)
        replace_parameter(self._optimizer, old_sigma, [weight.sigma], [(nothing, nothing)])


def refuse_unusable(eligible: list[EligibleLayer], dense_layers: Mapping[str, str]) -> None:
    """Refuse a model with nothing to convert, or with no place to put what was converted."""
    if not eligible:
        raise OIALRError(f"no layer can become low-rank: {summary(dense_layers)}")
    if eligible[0].name == "":
        raise OIALRError(
            f"the model is itself a {type(eligible[0].module).__name__}, which cannot be replaced"
            " in place: wrap it, for instance in nn.Sequential(model)"
        )


def summary(dense_layers: Mapping[str, str]) -> str:
    """Each reason once, the most frequent first, with its number of layers and one's name."""
    names: dict[str, list[str]] = {}
    for name, reason in dense_layers.items():
        names.setdefault(reason, []).append(name)
    reasons = sorted(names.items(), key=lambda item: -len(item[1]))
    lines = [f"{reason} ({len(layers)} layers, as {layers[0]})" for reason, layers in reasons]
    return "; ".join(lines) or "it has none of the right kind"
