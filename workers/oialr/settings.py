"""OIALR's hyperparameters (Coquelin et al., Algorithm 2), and options where the paper is silent."""

from dataclasses import dataclass
from typing import Literal, get_args

from oialr.errors import OIALRError

LastLayer = Literal["last_converted", "classifier"]
FusedProjections = Literal["together", "apart"]
OptimizerState = Literal["rotate", "cut", "reset"]


@dataclass(frozen=True, kw_only=True)
class OIALRSettings:
    """When and how far OIALR cuts, and which layers it takes. The clock counts optimiser steps."""

    delay_steps: int
    """d: conversion and the first basis update come after this many optimiser steps. With 0 the
    model is low-rank from the first step and the first update comes at step ν."""

    update_frequency: int
    """ν: optimiser steps between two basis updates."""

    cutoff_fraction: float
    """β: truncation drops the singular values below β · max(Σ)."""

    layer_fraction: float = 0.1
    """α: the u-th basis update reaches the last ceil(L · α · u) of the L low-rank layers."""

    growing_window: bool = True
    """False: every basis update reaches all layers, and `layer_fraction` has no effect."""

    full_rank_warmup: bool = True
    """False: conversion happens before the first step; the first basis update still waits for d."""

    full_rank_first_layer: bool = False
    """Keep the first eligible layer dense for ever."""

    full_rank_last_layer: bool = False
    """Keep the last layer dense for ever; `last_layer` says which one that is."""

    last_layer: LastLayer = "last_converted"
    """"last_converted": the last eligible layer, as in the paper's figures (the mini-ViT's
    `blocks.5.mlp.fc2`); "classifier": the model's last `nn.Linear`, eligible or not."""

    keep_dense: tuple[str, ...] = ()
    """Dotted names of further layers that never convert."""

    min_dim: int = 2
    """A weight converts only if both its dimensions reach this. A convolution's are those of its
    kernel as a matrix: out, and in times the kernel size."""

    max_aspect_ratio: float = 10.0
    """A weight converts only if its longer dimension is less than this many times the shorter."""

    fused_projections: FusedProjections = "together"
    """Query, key and value in one weight (timm's `qkv`, `nn.MultiheadAttention`): one SVD of the
    3E x E matrix, as the authors do, or three "apart"."""

    max_cut_fraction: float = 0.5
    """One truncation never drops more than this share of the inner rank it finds; 1.0: no limit."""

    min_inner_rank_fraction: float = 0.01
    """Truncation never goes under this share of the full inner rank min(m, n), nor under 1."""

    optimizer_state: OptimizerState = "rotate"
    """What becomes of the optimiser's moments; its step counts stay as they are in every case.
    "rotate": they are taken into the new bases, at conversion and at updates; "cut": as the
    authors do, zeroed at conversion, at an update sliced to the kept inner rank though the bases
    turn; "reset": zeroed at conversion and at updates."""

    def __post_init__(self) -> None:
        """Refuse a value outside its range."""
        self._require("delay_steps >= 0", self.delay_steps >= 0)
        self._require("update_frequency >= 1", self.update_frequency >= 1)
        self._require("0 <= cutoff_fraction < 1", 0 <= self.cutoff_fraction < 1)
        self._require("0 < layer_fraction <= 1", 0 < self.layer_fraction <= 1)
        self._require("min_dim >= 1", self.min_dim >= 1)
        self._require("max_aspect_ratio > 1", self.max_aspect_ratio > 1)
        self._require("0 < max_cut_fraction <= 1", 0 < self.max_cut_fraction <= 1)
        self._require("0 <= min_inner_rank_fraction <= 1", 0 <= self.min_inner_rank_fraction <= 1)
        self._require(
            f"last_layer in {get_args(LastLayer)}", self.last_layer in get_args(LastLayer)
        )
        self._require(
            f"fused_projections in {get_args(FusedProjections)}",
            self.fused_projections in get_args(FusedProjections),
        )
        self._require(
            f"optimizer_state in {get_args(OptimizerState)}",
            self.optimizer_state in get_args(OptimizerState),
        )

    def _require(self, rule: str, holds: bool) -> None:
        if not holds:
            field = next(word for word in rule.split() if hasattr(self, word))
            raise OIALRError(f"`{rule}` must hold, got {field}={getattr(self, field)!r}")
