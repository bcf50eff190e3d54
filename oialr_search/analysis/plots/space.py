"""Which hyperparameters matter, and where in the space the good individuals are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from oialr_search.analysis.labels import plain
from oialr_search.analysis.plots import palette, style
from oialr_search.analysis.plots.axes import Axis
from oialr_search.storage.records import IndividualRecord

MANY_LINES, MANY_POINTS = 400, 800
BEST_PART, MANY_BEST = 0.1, 40
COLUMN_WIDTH, PANEL_HEIGHT, COLUMNS = 215, 190, 4  # pixels
JITTER = 0.22


def importance(
    parts: Mapping[str, Mapping[str, float]], subtitle: str, warning: str = ""
) -> go.Figure:
    """Bars of each hyperparameter's part in the fitness, a method beside the other."""
    names = sorted(
        next(iter(parts.values())), key=lambda n: sum(part.get(n, 0.0) for part in parts.values())
    )
    figure = go.Figure()
    for number, (method, part) in reversed(list(enumerate(parts.items()))):  # from below
        values = [100 * part.get(name, 0.0) for name in names]
        figure.add_trace(
            go.Bar(
                orientation="h",
                x=values,
                y=[plain(name) for name in names],
                name=method,
                marker={
                    "color": palette.COLORS[number],
                    "pattern": {"shape": ("", "/")[number % 2], "fgcolor": "white"},
                },
                text=[f"{value:.1f} %" for value in values],
                textposition="outside",
                cliponaxis=False,
                hovertemplate=f"{method}: %{{y}} %{{x:.1f}} %<extra></extra>",
            )
        )
    palette.lay_out(
        figure,
        "Importance of the hyperparameters",
        subtitle,
        f"<b>{warning}</b>" if warning else "",
        height=palette.MARGINS["t"] + palette.MARGINS["b"] + 44 * max(len(names), 3),
        margin={**palette.MARGINS, "l": 30 + style.SMALL_CHARACTER * max(map(len, names)), "r": 60},
        barmode="group",
        bargap=0.25,
        legend_traceorder="reversed",
    )
    figure.update_xaxes(title="part of the importance (%)", rangemode="tozero")
    figure.update_yaxes(showgrid=False, ticks="")
    return figure


def parallel_coordinates(
    completed: Sequence[IndividualRecord],
    axes: Sequence[Axis],
    fitness_label: str,
    chosen: IndividualRecord,
    subtitle: str,
) -> go.Figure:
    """A line an individual through the values of its hyperparameters, to its fitness."""
    by_fitness = sorted(completed, key=lambda i: (i.violation, i.fitness or 0.0, i.id))
    num_best = min(math.ceil(BEST_PART * len(by_fitness)), MANY_BEST)
    thinned = palette.thin(completed, MANY_LINES)
    best = by_fitness[:num_best]
    best_ids = {i.id for i in best}
    shown = palette.fitness_range([i.fitness for i in completed if i.fitness is not None])
    fitness = Axis(name="fitness", low=shown.low, high=shown.high)
    figure = go.Figure()
    groups = (
        (
            [i for i in thinned.drawn if i.id not in best_ids],
            "others",
            {"color": palette.OTHERS, "width": 0.8},
            0.6,
        ),
        (best, f"the best {num_best}", {"color": palette.COLORS[0], "width": 1.3}, 0.8),
        (
            [chosen],
            f"individual {chosen.id}",
            {"color": palette.COLORS[1], "width": 3.5, "dash": "dash"},
            1.0,
        ),
    )
    for individuals, name, look, opacity in groups:
        figure.add_trace(
            go.Scatter(
                **_lines(individuals, axes, fitness),
                mode="lines",
                line=look,
                opacity=opacity,
                name=name,
                hovertemplate="individual %{customdata[0]}, fitness %{customdata[1]}"
                "<extra></extra>",
            )
        )
    palette.lay_out(
        figure,
        "Parallel coordinates",
        subtitle,
        "; ".join(note for note in (thinned.note, shown.note) if note),
        width=max(palette.WIDTH, 96 * (len(axes) + 1)),
        margin={**palette.MARGINS, "l": 70, "t": 132, "r": 60, "b": 70},
        legend_traceorder="normal",
    )
    figure.update_yaxes(visible=False, range=[-0.03, 1.03])
    figure.update_xaxes(visible=False, range=[-0.1, len(axes) + 0.1])
    for number, axis in enumerate((*axes, fitness)):
        _draw_axis(figure, number, axis, f"<b>{axis.title}</b>")
    figure.add_annotation(
        x=len(axes),
        y=0,
        yshift=-20,
        text=fitness_label,
        showarrow=False,
        xanchor="right",
        yanchor="top",
        xshift=46,
        font={"size": style.SMALL},
    )
    return figure


def _lines(
    individuals: Sequence[IndividualRecord], axes: Sequence[Axis], fitness: Axis
) -> dict[str, list[object]]:
    x: list[object] = []
    y: list[object] = []
    customdata: list[object] = []
    for individual in individuals:
        assert individual.fitness is not None
        places = [axis.place(axis.value_of(individual)) for axis in axes]
        x += [*range(len(axes) + 1), None]
        y += [*places, min(fitness.place(individual.fitness) or 0.0, 1.0), None]
        customdata += [[individual.id, f"{individual.fitness:.4g}"]] * (len(axes) + 2)
    return {"x": x, "y": y, "customdata": customdata}


def _draw_axis(figure: go.Figure, number: int, axis: Axis, title: str) -> None:
    figure.add_shape(
        type="line",
        x0=number,
        x1=number,
        y0=0,
        y1=1,
        line={"color": style.INK, "width": 1.2},
    )
    for place, text in axis.ticks():
        figure.add_annotation(
            x=number,
            y=place,
            text=text,
            xanchor="right",
            xshift=-2,
            showarrow=False,
            font={"size": style.SMALL - 1},
            bgcolor="rgba(255,255,255,0.75)",
            borderpad=1,
        )
    figure.add_annotation(
        x=number,
        y=1,
        yshift=10,
        yanchor="bottom",
        text=title,
        showarrow=False,
        font={"size": style.SMALL},
    )


def slices(
    completed: Sequence[IndividualRecord],
    axes: Sequence[Axis],
    fitness_label: str,
    chosen: IndividualRecord,
    subtitle: str,
) -> go.Figure:
    """A panel a hyperparameter: fitness over value, the later the darker."""
    columns = min(COLUMNS, len(axes))
    rows = math.ceil(len(axes) / columns)
    thinned = palette.thin(completed, MANY_POINTS)
    shown = palette.fitness_range([i.fitness for i in completed if i.fitness is not None])
    margin = {**palette.MARGINS, "t": 90, "b": 70, "r": 110}
    height, width = PANEL_HEIGHT * rows, max(COLUMN_WIDTH * columns, 430)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=22 / width,
        vertical_spacing=62 / height if rows > 1 else 0.0,
    )
    palette.lay_out(
        figure,
        "Slices of the search space",
        subtitle,
        "; ".join(note for note in (thinned.note, shown.note) if note),
        width=width + margin["l"] + margin["r"],
        height=height + margin["t"] + margin["b"],
        margin=margin,
        coloraxis={
            "colorscale": style.SCALE,
            "reversescale": True,
            "colorbar": {
                "title": {"text": "number of the<br>individual<br> ", "font_size": style.SMALL},
                "tickfont_size": style.SMALL,
                "thickness": 14,
                "len": 1.0,
                "ypad": 0,
            },
        },
    )
    for number, axis in enumerate(axes):
        row, column = number // columns + 1, number % columns + 1
        drawn = [i for i in thinned.drawn if axis.value_of(i) is not None]
        figure.add_trace(
            go.Scatter(
                x=[_jittered(axis, i) for i in drawn],
                y=[i.fitness for i in drawn],
                mode="markers",
                marker={"color": [i.id for i in drawn], "coloraxis": "coloraxis", "size": 4},
                customdata=[[i.id, plain(i.hyperparameters[axis.name])] for i in drawn],
                hovertemplate="individual %{customdata[0]}, %{customdata[1]}: %{y:.4g}"
                "<extra></extra>",
                showlegend=False,
            ),
            row=row,
            col=column,
        )
        if axis.value_of(chosen) is not None:
            figure.add_trace(
                go.Scatter(
                    x=[axis.value_of(chosen)],
                    y=[chosen.fitness],
                    mode="markers",
                    marker=palette.BEST,
                    name=f"individual {chosen.id}",
                    showlegend=number == 0,
                    hovertemplate="%{x}: %{y:.4g}<extra></extra>",
                ),
                row=row,
                col=column,
            )
        figure.update_xaxes(title=plain(axis.name), row=row, col=column, **_native(axis))
    figure.update_xaxes(title_font_size=style.SMALL, title_standoff=4)
    figure.update_yaxes(range=shown.axis)
    for row in range(1, rows + 1):
        figure.update_yaxes(title=_in_two_lines(fitness_label), row=row, col=1)
    return figure


def _jittered(axis: Axis, individual: IndividualRecord) -> float:
    """Choices have all individuals in one place: spread them, each always alike."""
    value: float = axis.value_of(individual)
    if not axis.choices:
        return value
    golden = (individual.id * 0.618034) % 1.0
    return value + JITTER * (2 * golden - 1)


def _native(axis: Axis) -> dict[str, object]:
    """An axis of plotly's own."""
    if axis.choices:
        return {
            "tickmode": "array",
            "tickvals": list(range(len(axis.choices))),
            "ticktext": axis.choice_texts(),
            "range": [-0.5, len(axis.choices) - 0.5],
        }
    if axis.log:
        low, high = math.log10(axis.low), math.log10(axis.high)
        margin = 0.04 * (high - low)
        ticks = [t for d in range(math.floor(low), math.ceil(high) + 1) for t in _of_decade(d)]
        return {
            "type": "log",
            "range": [low - margin, high + margin],
            "tickmode": "array",
            "tickvals": [value for value, _ in ticks],
            "ticktext": [text for _, text in ticks],
        }
    margin = 0.04 * (axis.high - axis.low)
    return {"range": [axis.low - margin, axis.high + margin], "nticks": 5}


def _of_decade(decade: int) -> list[tuple[float, str]]:
    """One text a decade, and ticks between."""
    return [(10.0**decade, f"{10.0**decade:.0e}"), *((m * 10.0**decade, "") for m in (2, 5))]


def _in_two_lines(label: str) -> str:
    return label.replace(": ", ":<br>")
