"""Optuna's Gaussian process as an engine: of benchmarks only, since it needs torch."""

from __future__ import annotations

from optuna.samplers import BaseSampler, GPSampler

from oialr_search.launch.engines.optuna_samplers import OptunaEngine


class OptunaGP(OptunaEngine):
    """As Optuna sets it; a search's controllers never import torch."""

    def sampler(self, seed: int) -> BaseSampler:
        return GPSampler(seed=seed)
