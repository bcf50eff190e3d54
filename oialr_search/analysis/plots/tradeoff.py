"""Fitness against trainable parameters: what smaller networks cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from oialr_search.analysis.plots import palette, style
from oialr_search.space.pareto import pareto_front
from oialr_search.storage.records import IndividualRecord

MANY_POINTS = 2000
LOG_FROM = 8.0  # times the smallest


def _percent(individual: IndividualRecord) -> float | None:
    return individual.evaluation.trainable_percent if individual.evaluation else None


@dataclass(frozen=True, kw_only=True)
class Across:
    """What the fitness is drawn against."""

    title: str
    label: str
    of: Callable[[IndividualRecord], float | None]
    unit: str = ""


TRAINABLE = Across(
    title="Fitness against trainable parameters",
    label="trainable parameters (% of full rank)",
    of=_percent,
    unit=" %",
)


def pareto(
    completed: Sequence[IndividualRecord],
    baseline: IndividualRecord | None,
    fitness_label: str,
    chosen: IndividualRecord,
    subtitle: str,
    across: Across | None = None,
) -> go.Figure:
    """The Pareto front: nobody is better than these in one without being worse in the other.

    `across`: what there is beside the fitness, if it is not the trainable parameters.
    """
    across = across or TRAINABLE
    measured = [i for i in completed if across.of(i) is not None]
    front = front_of(measured, across)
    thinned = palette.thin(measured, MANY_POINTS)
    shown = palette.fitness_range([i.fitness for i in measured if i.fitness is not None])
    on_front = {i.id for i in front}
    figure = go.Figure()
    figure.add_trace(
        _points(
            [i for i in thinned.drawn if i.id not in on_front and not i.violation],
            "individuals",
            across,
            mode="markers",
            marker={"color": palette.OTHERS, "size": 5, "opacity": 0.7},
        )
    )
    if any(i.violation for i in measured):
        figure.add_trace(
            _points(
                [i for i in thinned.drawn if i.violation],
                "break a constraint",
                across,
                mode="markers",
                marker={"color": palette.OTHERS, "size": 5, "opacity": 0.7, "symbol": "x"},
            )
        )
    figure.add_trace(
        _points(
            front,  # from each to the next: no individual lies under these stairs
            f"Pareto front ({len(front)})",
            across,
            mode="lines+markers",
            line={"shape": "hv", "color": palette.COLORS[0], "width": 1.5},
            marker={"color": palette.COLORS[0], "size": 7, "symbol": "square"},
        )
    )
    figure.add_trace(
        _points([chosen], f"individual {chosen.id}", across, mode="markers", marker=palette.BEST)
    )
    low, high = shown.axis
    if baseline is not None and baseline.fitness is not None:
        name = f"full rank (individual {baseline.id})"
        look = {"symbol": "diamond", "size": 11, "color": style.INK}
        figure.add_trace(_points([baseline], name, across, mode="markers", marker=look))
        margin = 0.06 * (high - low)
        low, high = min(low, baseline.fitness - margin), max(high, baseline.fitness + margin)
    palette.lay_out(
        figure,
        across.title,
        subtitle,
        "; ".join(note for note in (thinned.note, shown.note) if note),
    )
    percents = [p for i in measured if (p := across.of(i)) is not None]
    log = min(percents) > 0 and max(percents) > LOG_FROM * min(percents)
    figure.update_xaxes(title=across.label)
    if across is TRAINABLE and log:
        ticks = [t for d in (0.01, 0.1, 1.0, 10.0, 100.0) for t in (d, 2 * d, 5 * d)]
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    elif across is TRAINABLE:
        figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(title=fitness_label, range=[low, high])
    return figure


def front_of(
    individuals: Sequence[IndividualRecord], across: Across | None = None
) -> list[IndividualRecord]:
    """Those that meet the constraints and no other one beats, along the axis."""
    beside = (across or TRAINABLE).of
    met = [i for i in individuals if not i.violation]
    both = [(i.fitness, beside(i)) for i in met]
    return sorted((met[n] for n in pareto_front(both)), key=lambda i: beside(i) or 0.0)


def _points(
    individuals: Sequence[IndividualRecord], name: str, across: Across, **look: object
) -> go.Scatter:
    return go.Scatter(
        x=[across.of(i) for i in individuals],
        y=[i.fitness for i in individuals],
        customdata=[[i.id] for i in individuals],
        hovertemplate=f"individual %{{customdata[0]}}: %{{x:.3g}}{across.unit}, fitness "
        "%{y:.4g}<extra></extra>",
        name=name,
        **look,
    )
