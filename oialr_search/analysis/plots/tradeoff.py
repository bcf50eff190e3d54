"""Fitness against trainable parameters: what smaller networks cost."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from oialr_search.analysis.plots import palette, style
from oialr_search.space.pareto import pareto_front
from oialr_search.storage.records import IndividualRecord

MANY_POINTS = 2000
LOG_FROM = 8.0  # times the smallest


def pareto(
    completed: Sequence[IndividualRecord],
    baseline: IndividualRecord | None,
    fitness_label: str,
    chosen: IndividualRecord,
    subtitle: str,
) -> go.Figure:
    """The Pareto front: nobody is better than these in one without being worse in the other."""
    measured = [i for i in completed if _percent(i) is not None]
    front = front_of(measured)
    thinned = palette.thin(measured, MANY_POINTS)
    shown = palette.fitness_range([i.fitness for i in measured if i.fitness is not None])
    on_front = {i.id for i in front}
    figure = go.Figure()
    figure.add_trace(
        _points(
            [i for i in thinned.drawn if i.id not in on_front],
            "individuals",
            mode="markers",
            marker={"color": palette.OTHERS, "size": 5, "opacity": 0.7},
        )
    )
    figure.add_trace(
        _points(
            front,  # from each to the next: no individual lies under these stairs
            f"Pareto front ({len(front)})",
            mode="lines+markers",
            line={"shape": "hv", "color": palette.COLORS[0], "width": 1.5},
            marker={"color": palette.COLORS[0], "size": 7, "symbol": "square"},
        )
    )
    figure.add_trace(
        _points([chosen], f"individual {chosen.id}", mode="markers", marker=palette.BEST)
    )
    low, high = shown.axis
    if baseline is not None and baseline.fitness is not None:
        name = f"full rank (individual {baseline.id})"
        look = {"symbol": "diamond", "size": 11, "color": style.INK}
        figure.add_trace(_points([baseline], name, mode="markers", marker=look))
        margin = 0.06 * (high - low)
        low, high = min(low, baseline.fitness - margin), max(high, baseline.fitness + margin)
    palette.lay_out(
        figure,
        "Fitness against trainable parameters",
        subtitle,
        "; ".join(note for note in (thinned.note, shown.note) if note),
    )
    percents = [p for i in measured if (p := _percent(i)) is not None]
    log = min(percents) > 0 and max(percents) > LOG_FROM * min(percents)
    figure.update_xaxes(title="trainable parameters (% of full rank)")
    if log:
        ticks = [t for d in (0.01, 0.1, 1.0, 10.0, 100.0) for t in (d, 2 * d, 5 * d)]
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    else:
        figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(title=fitness_label, range=[low, high])
    return figure


def front_of(individuals: Sequence[IndividualRecord]) -> list[IndividualRecord]:
    """Those that no other one beats, by trainable parameters."""
    both = [(i.fitness, _percent(i)) for i in individuals]
    return sorted((individuals[n] for n in pareto_front(both)), key=lambda i: _percent(i) or 0.0)


def _percent(individual: IndividualRecord) -> float | None:
    return individual.evaluation.trainable_percent if individual.evaluation else None


def _points(individuals: Sequence[IndividualRecord], name: str, **look: object) -> go.Scatter:
    return go.Scatter(
        x=[_percent(i) for i in individuals],
        y=[i.fitness for i in individuals],
        customdata=[[i.id] for i in individuals],
        hovertemplate="individual %{customdata[0]}: %{x:.3g} %, fitness %{y:.4g}<extra></extra>",
        name=name,
        **look,
    )
