"""OIALR's instants (Coquelin et al., Algorithm 2): conversion, basis updates and their reach."""

from math import ceil

from oialr.settings import OIALRSettings


def conversion_step(settings: OIALRSettings) -> int:
    """How many optimiser steps the model takes at full rank."""
    return settings.delay_steps if settings.full_rank_warmup else 0


def update_number(settings: OIALRSettings, step: int) -> int:
    """Which basis update u = 1, 2, ... falls on this step; 0 when none does.

    The first comes at d, and then one every ν steps, as in the authors' code; Algorithm 2, line 6,
    has them where t mod ν = 0.
    """
    steps_since_delay = step - settings.delay_steps
    if steps_since_delay < 0 or steps_since_delay % settings.update_frequency:
        return 0
    return steps_since_delay // settings.update_frequency + (settings.delay_steps > 0)


def layers_reached(settings: OIALRSettings, num_layers: int, update: int) -> int:
    """How many layers, counted from the last, the u-th update reaches under these settings."""
    if not settings.growing_window:
        return num_layers
    return window_size(num_layers, settings.layer_fraction, update)


def window_size(num_layers: int, layer_fraction: float, update: int) -> int:
    """ℓ, how many layers the window holds that grows with every update."""
    layers = ceil(num_layers * layer_fraction * update - 1e-9)  # 6 · 0.1 · 5 = 3.0000000000000004
    # kept between one layer and all; with Algorithm 2's u = 0 at first it would be none
    return min(num_layers, max(1, layers))
