"""What happens to the bases while a network trains (Coquelin et al., Figure 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import plotly.graph_objects as go

from oialr_search.analysis.plots import style
from oialr_training.protocol import Observation, RankUpdate

STABILITY = ("stability", "Stability of the bases, Eq. (4)")
MIXING = ("mixing_similarity", "Mixing similarity, Eq. (5)")
RELATIVE_MIXING = ("relative_mixing_similarity", "Mixing similarity, relative to the norms")
FULL = 100.0  # %


def stability(
    observations: Sequence[Observation], rank_updates: Sequence[RankUpdate], subtitle: str
) -> go.Figure:
    """Two heatmaps a lag, layers over steps; a cell ends at the step that was looked at.

    Version 0.1.0 observed the relative similarity only: it is drawn where Eq. (5) is unknown.
    """
    known = any(math.isfinite(o.mixing_similarity) for o in observations)
    metrics = (STABILITY, MIXING if known else RELATIVE_MIXING)
    layers = style.in_network_order(o.layer for o in observations)
    lags = sorted({o.step - o.earlier_step for o in observations})
    steps = sorted({o.step for o in observations})
    # A lag is whole intervals, too: there may be one step only.
    interval = min([*lags, *(later - step for step, later in pairwise(steps))])
    figure = style.layer_panels(
        layers,
        [[f"{title}, over {lag} steps" for lag in lags] for _, title in metrics],
        last_step=steps[-1],
        title="Stability of the bases and similarity of the mixings",
        subtitle=subtitle,
        colors=(0.0, 1.0, "1: as before<br>0: nothing<br>in common<br> "),
    )
    for row, (metric, _) in enumerate(metrics, start=1):
        for column, lag in enumerate(lags, start=1):
            values = {
                (o.layer, o.step): getattr(o, metric)
                for o in observations
                if o.step - o.earlier_step == lag
            }
            hover = f"step %{{customdata[2]}} against {lag} steps before: %{{z:.4f}}"
            grid = style.ending_at(layers, interval, values)
            figure.add_trace(style.heatmap(grid, hover), row=row, col=column)
            _mark_updates(figure, rank_updates, row, column)
    return figure


def inner_ranks(rank_updates: Sequence[RankUpdate], last_step: int, subtitle: str) -> go.Figure:
    """A heatmap of the inner rank a layer; before its first update, and in W, it is full."""
    layers = style.in_network_order(update.layer for update in rank_updates)
    ends = {update.layer: update for update in sorted(rank_updates, key=lambda u: u.step)}
    # What an update in the last step did would have no time to be seen.
    last_step = max(last_step, 1 + max(update.step for update in rank_updates))
    figure = style.layer_panels(
        layers,
        [["Part of the full inner rank; at the right, the last inner rank"]],
        last_step=last_step,
        title="Inner ranks",
        subtitle=subtitle,
        colors=(0.0, FULL, "% of the full<br>inner rank<br> "),
        notes=[f" {ends[layer].inner_rank} of {ends[layer].full_inner_rank}" for layer in layers],
    )
    percent = {(u.layer, u.step): FULL * u.inner_rank / u.full_inner_rank for u in rank_updates}
    hover = "steps %{customdata[1]} to %{customdata[2]}: %{z:.1f} %"
    grid = style.holding_from(layers, FULL, percent, last_step)
    figure.add_trace(style.heatmap(grid, hover), row=1, col=1)
    _mark_updates(figure, rank_updates, 1, 1)
    return figure


def _mark_updates(
    figure: go.Figure, rank_updates: Sequence[RankUpdate], row: int, column: int
) -> None:
    """Mark the steps of basis updates above a panel, and where they begin by a line through it."""
    steps = sorted({update.step for update in rank_updates})
    if not steps:
        return
    # Dashes of black on white show on any colour.
    for width, color, dash in ((3.0, "white", "solid"), (1.5, "black", "dash")):
        line = {"width": width, "color": color, "dash": dash}
        figure.add_vline(x=steps[0], line=line, row=row, col=column)
    marks = style.edge_marks(steps, "basis update", in_legend=row == column == 1)
    figure.add_trace(marks, row=row, col=column)
    figure.update_layout(showlegend=True)
