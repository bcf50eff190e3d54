"""How the best fitness falls while a search goes on, island by island, and where it came from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from oialr_search.analysis.plots import palette, style
from oialr_search.storage.records import IndividualRecord, MigrationRecord

FEW_ISLANDS = 10  # more cannot be told apart
MANY_POINTS = 2000
MANY_FAILURES = 300


@dataclass(frozen=True, kw_only=True)
class Step:
    """An individual became the best of an island."""

    finished: int  # so many individuals of the search had finished
    individual_id: int
    fitness: float
    source_island: int | None  # where it came from, if it was not bred there


def convergence(
    individuals: Sequence[IndividualRecord],
    migrations: Sequence[MigrationRecord],
    fitness_label: str,
    subtitle: str,
) -> go.Figure:
    """The best fitness so far of each island, and the individuals that were evaluated."""
    finished = in_order(individuals)
    completed = [i for i in finished if i.fitness is not None]
    failed = [i for i in finished if i.fitness is None]
    places = {individual.id: place for place, individual in enumerate(finished, start=1)}
    shown = palette.fitness_range([i.fitness for i in completed if i.fitness is not None])
    thinned = palette.thin(completed, MANY_POINTS)
    steps = steps_by_island(finished, migrations)
    many = len(steps) > FEW_ISLANDS
    figure = go.Figure()
    for number, island in enumerate(sorted({i.island for i in thinned.drawn})):
        color = palette.OTHERS if many else palette.marker(number)["color"]
        figure.add_trace(_points([i for i in thinned.drawn if i.island == island], places, color))
    for number, island in enumerate(sorted(steps)):
        reached = [*steps[island], steps[island][-1]]  # the last one's holds to the end
        figure.add_trace(
            go.Scatter(
                x=[*(step.finished for step in steps[island]), len(finished)],
                y=[step.fitness for step in reached],
                mode="lines",
                line={**(palette.line(0, 1) if many else palette.line(number)), "shape": "hv"},
                name=f"each of {len(steps)} islands" if many else f"island {island}",
                showlegend=number == 0 or not many,
                hovertemplate=f"best of island {island}: %{{y:.4g}}<extra></extra>",
            )
        )
    figure.add_trace(_migrations(steps, len(migrations)))
    if failed:
        figure.add_trace(_failures(failed, places, shown.axis[1]))
    palette.lay_out(figure, "Convergence", subtitle, _join(thinned.note, shown.note))
    figure.update_xaxes(title="individuals finished", rangemode="tozero")
    figure.update_yaxes(title=f"{fitness_label}<br>best so far of an island", range=shown.axis)
    return figure


def in_order(individuals: Sequence[IndividualRecord]) -> list[IndividualRecord]:
    """Those that have finished, by when."""
    ended = [(i.finished_at, i.id, i) for i in individuals if i.finished_at is not None]
    return [individual for *_, individual in sorted(ended, key=lambda entry: entry[:2])]


def steps_by_island(
    finished: Sequence[IndividualRecord], migrations: Sequence[MigrationRecord]
) -> dict[int, list[Step]]:
    """Island → what was its best one after the other: bred there, or accepted from elsewhere."""
    times = [i.finished_at for i in finished if i.finished_at is not None]
    fitness = {i.id: i.fitness for i in finished if i.fitness is not None and not i.violation}
    arrivals: list[tuple[int, int, int, int, int | None]] = [
        (place, 0, individual.island, individual.id, None)
        for place, individual in enumerate(finished, start=1)
        if individual.id in fitness
    ]
    arrivals += [
        (bisect_right(times, m.accepted_at), 1, m.target_island, m.individual_id, m.source_island)
        for m in migrations
        if m.individual_id in fitness
    ]
    steps: dict[int, list[Step]] = {}
    for place, _, island, individual_id, source in sorted(arrivals, key=lambda a: (a[0], a[1])):
        of_island = steps.setdefault(island, [])
        if not of_island or fitness[individual_id] < of_island[-1].fitness:
            of_island.append(
                Step(
                    finished=place,
                    individual_id=individual_id,
                    fitness=fitness[individual_id],
                    source_island=source,
                )
            )
    return steps


def _points(
    individuals: Sequence[IndividualRecord], places: Mapping[int, int], color: str
) -> go.Scatter:
    return go.Scatter(
        x=[places[i.id] for i in individuals],
        y=[i.fitness for i in individuals],
        mode="markers",
        marker={"color": color, "size": 4, "opacity": 0.5},
        customdata=[[i.id, i.island] for i in individuals],
        hovertemplate="individual %{customdata[0]}, island %{customdata[1]}: %{y:.4g}"
        "<extra></extra>",
        showlegend=False,
    )


def _migrations(steps: Mapping[int, Sequence[Step]], accepted: int) -> go.Scatter:
    """Mark where an island's best came from another one."""
    moved = [
        (island, step)
        for island, of_island in sorted(steps.items())
        for step in of_island
        if step.source_island is not None
    ]
    return go.Scatter(
        x=[step.finished for _, step in moved],
        y=[step.fitness for _, step in moved],
        mode="markers",
        marker={
            "symbol": "diamond",
            "size": 9,
            "color": "white",
            "line": {"color": style.INK, "width": 1.5},
        },
        customdata=[[step.individual_id, step.source_island, island] for island, step in moved],
        hovertemplate="individual %{customdata[0]} from island %{customdata[1]} "
        "to %{customdata[2]}: %{y:.4g}<extra></extra>",
        name=f"new best by migration ({len(moved):,} of {accepted:,} migrations)",
        showlegend=accepted > 0,
    )


def _failures(
    failed: Sequence[IndividualRecord], places: Mapping[int, int], edge: float
) -> go.Scatter:
    """Mark failures along the upper edge."""
    drawn = palette.evenly(failed, MANY_FAILURES)
    some = f", {len(drawn):,} drawn" if len(drawn) < len(failed) else ""
    return go.Scatter(
        x=[places[i.id] for i in drawn],
        y=[edge] * len(drawn),
        mode="markers",
        marker={"symbol": "x-thin", "size": 7, "line": {"color": style.INK, "width": 1.5}},
        cliponaxis=False,
        customdata=[[i.id, i.status.value] for i in drawn],
        hovertemplate="individual %{customdata[0]}: %{customdata[1]}<extra></extra>",
        name=f"no fitness ({len(failed):,}{some})",
    )


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
