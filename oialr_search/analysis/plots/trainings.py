"""What happens epoch by epoch: learning rates (the paper's Figure 3), metrics and trainable
parameters (its Figures 2a and 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from oialr_search.analysis.plots import palette, style
from oialr_search.storage.records import EpochRecord

MANY_EPOCHS = 150  # of a grey line
REFERENCES = ({"dash": "dash", "width": 2.2}, {"dash": "dot", "width": 2.2})
TRAINABLE = "trainable_percent"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training's curve and what it is called."""

    name: str
    epochs: Sequence[EpochRecord]


def learning_rates(
    best: Sequence[Training], references: Sequence[Training], subtitle: str
) -> go.Figure:
    """The learning rate at the end of each epoch."""
    figure = go.Figure()
    for trace in (*_best(best, "lr"), *_references(references, "lr")):
        figure.add_trace(trace)
    palette.lay_out(figure, "Learning-rate schedules", subtitle)
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_yaxes(
        title="learning rate at the epoch's end", rangemode="tozero", exponentformat="power"
    )
    return figure


def metrics_over_epochs(
    best: Sequence[Training],
    rest: Sequence[Training],
    references: Sequence[Training],
    metric: str,
    label: str,
    subtitle: str,
    note: str = "",
) -> go.Figure:
    """The metric that decides, and under it the trainable parameters."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, name in enumerate((metric, TRAINABLE), start=1):
        traces = [*_rest(rest, name), *_best(best, name), *_references(references, name)]
        for trace in traces:
            trace.showlegend = row == 1 and trace.showlegend is not False
            figure.add_trace(trace, row=row, col=1)
    palette.lay_out(figure, "Metrics over the training", subtitle, note, height=680)
    figure.update_yaxes(title=label, row=1)
    values = [value for t in (*best, *references) for value in _values(t.epochs, metric)]
    everyone = [value for t in rest for value in _values(t.epochs, metric)]
    figure.update_yaxes(range=_most_of(values, everyone), row=1)
    figure.update_yaxes(title="trainable parameters<br>(% of full rank)", row=2)
    figure.update_yaxes(rangemode="tozero", row=2)
    figure.update_xaxes(title="epoch", row=2)
    figure.update_xaxes(rangemode="tozero")
    return figure


def _best(trainings: Sequence[Training], metric: str) -> list[go.Scatter]:
    return [
        _curve(training, training.epochs, metric, palette.line(number, 2.6 if number == 0 else 1.7))
        for number, training in enumerate(trainings)
    ]


def _references(trainings: Sequence[Training], metric: str) -> list[go.Scatter]:
    looks = [{"color": style.INK, **REFERENCES[n % len(REFERENCES)]} for n in range(len(trainings))]
    return [_curve(t, t.epochs, metric, look) for t, look in zip(trainings, looks, strict=True)]


def _rest(trainings: Sequence[Training], metric: str) -> list[go.Scatter]:
    """All others as one line with gaps."""
    x: list[int | None] = []
    y: list[float | None] = []
    names: list[str] = []
    for training in trainings:
        epochs = palette.evenly(training.epochs, MANY_EPOCHS)
        x += [*(epoch.epoch for epoch in epochs), None]
        y += [*_numbers(epochs, metric), None]
        names += [training.name] * (len(epochs) + 1)
    if not x:
        return []
    return [
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": palette.OTHERS, "width": 0.8},
            opacity=0.7,
            customdata=names,
            hovertemplate="%{customdata}, epoch %{x}: %{y:.4g}<extra></extra>",
            name="others",
        )
    ]


def _curve(
    training: Training, epochs: Sequence[EpochRecord], metric: str, look: dict[str, Any]
) -> go.Scatter:
    return go.Scatter(
        x=[epoch.epoch for epoch in epochs],
        y=_numbers(epochs, metric),
        # A line of one point is none.
        mode="lines" if len(epochs) > 1 else "markers",
        line=look,
        marker={"color": look["color"]},
        name=training.name,
        hovertemplate=f"{training.name}, epoch %{{x}}: %{{y:.4g}}<extra></extra>",
    )


def _numbers(epochs: Sequence[EpochRecord], metric: str) -> list[float | None]:
    """Values, with a gap where there is none."""
    found = [epoch.metrics.get(metric, math.nan) for epoch in epochs]
    return [value if math.isfinite(value) else None for value in found]


def _values(epochs: Sequence[EpochRecord], metric: str) -> list[float]:
    return [value for value in _numbers(epochs, metric) if value is not None]


def _most_of(must: Sequence[float], others: Sequence[float]) -> list[float] | None:
    """A range for what must be seen, and for the others but the farthest."""
    ordered = sorted(others)
    tail = len(ordered) // 50
    seen = [*must, *ordered[tail : len(ordered) - tail or None]]
    if not seen or min(seen) == max(seen):
        return None
    margin = 0.05 * (max(seen) - min(seen))
    return [min(seen) - margin, max(seen) + margin]
