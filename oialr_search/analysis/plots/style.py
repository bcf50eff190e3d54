"""What all figures look like, and heatmaps of layers over training steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

INK, PALE_INK = "#222222", "#555555"
TEXT, SMALL, TITLE = 12, 11, 17  # pixels
FONT = {"family": "Helvetica, Arial, 'Liberation Sans', sans-serif", "size": TEXT, "color": INK}
SMALL_CHARACTER = 6.2  # mean width in pixels
SCALE = "Viridis"  # rises in lightness: reads in print and with colour blindness
NOTHING = "#e4e4e4"  # grey, which is no colour of the scale

# Pixels of heatmaps of layers; a panel is the narrower, the more are side by side.
PANEL_WIDTHS = {1: 560, 2: 400, 3: 320}
FEW = 25  # marks that have room above a panel
ROW_GAP, COLUMN_GAP = 46, 32
MARGINS = {"l": 46, "r": 100, "t": 106, "b": 66}

# The database has layers by name: which come first and last among their siblings.
FIRST = ("encoder_embed", "embed", "stem", "qkv", "query", "key", "value", "self_att", "cross_att")
LAST = ("decoder", "contract", "proj", "head", "classifier")


def in_network_order(layers: Iterable[str]) -> list[str]:
    """Sort dotted names from the input to the output, as far as names tell; 10 after 9."""
    return sorted(set(layers), key=lambda layer: [_place(part) for part in layer.split(".")])


def _place(part: str) -> tuple[int, list[tuple[int, str]]]:
    places = dict(zip((*FIRST, "", *LAST), range(len(FIRST) + 1 + len(LAST)), strict=True))
    found = next((word for word in (*FIRST, *LAST) if word in part), "")
    natural = [(int(number or 0), text) for number, text in re.findall(r"(\d+)|(\D+)", part)]
    return places[found], natural


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One value for each layer and stretch of the training; None: there is none."""

    layers: Sequence[str]
    edges: Sequence[int]  # steps, one more than stretches
    values: Sequence[Sequence[float | None]]  # layers x stretches


def ending_at(
    layers: Sequence[str], interval: int, values: Mapping[tuple[str, int], float]
) -> Grid:
    """Make a grid of values by layer and step, each drawn over the interval that ends there."""
    ends = {step for _, step in values}
    edges = sorted(ends | {step - interval for step in ends})
    rows = [[values.get((layer, end)) for end in edges[1:]] for layer in layers]
    return Grid(layers=layers, edges=edges, values=rows)


def holding_from(
    layers: Sequence[str],
    first: float,
    values: Mapping[tuple[str, int], float],
    last_step: int,
) -> Grid:
    """Make a grid of values by layer and step, each of which holds until the layer's next."""
    begins = sorted({0, *(step for _, step in values if step < last_step)})
    rows = []
    for layer in layers:
        row, now = list[float | None](), first
        for begin in begins:
            now = values.get((layer, begin), now)
            row.append(now)
        rows.append(row)
    return Grid(layers=layers, edges=[*begins, last_step], values=rows)


def heatmap(grid: Grid, hover: str) -> go.Heatmap:
    """Draw a grid in one of `layer_panels`; `hover` may use layer, begin and end as customdata."""
    stretches = list(pairwise(grid.edges))
    return go.Heatmap(
        x=list(grid.edges),
        y=[number - 0.5 for number in range(len(grid.layers) + 1)],
        z=[list(row) for row in grid.values],
        customdata=[[[layer, *stretch] for stretch in stretches] for layer in grid.layers],
        coloraxis="coloraxis",
        hoverongaps=False,
        hovertemplate=f"%{{customdata[0]}}<br>{hover}<extra></extra>",
    )


def edge_marks(steps: Sequence[int], name: str, *, in_legend: bool) -> go.Scatter:
    """Mark steps along the upper edge of one of `layer_panels`."""
    return go.Scatter(
        x=list(steps),
        y=[-0.5] * len(steps),
        mode="markers",
        # Turned round, as it is moved away from the panel to where it points from.
        marker={
            "symbol": "triangle-up",
            "angle": 180,
            "standoff": 4,
            "size": 7 if len(steps) <= FEW else 4,
            "color": INK,
        },
        cliponaxis=False,
        name=name,
        legendgroup=name,
        showlegend=in_legend,
        hovertemplate=f"{name} at step %{{x}}<extra></extra>",
    )


def layer_panels(
    layers: Sequence[str],
    titles: Sequence[Sequence[str]],
    *,
    last_step: int,
    title: str,
    subtitle: str,
    colors: tuple[float, float, str],  # lowest, highest and what they mean
    notes: Sequence[str] = (),  # a layer's, to the right of the last panel
) -> go.Figure:
    """Make rows and columns of empty panels, layers over training steps, for `heatmap`s."""
    num_rows, num_columns = len(titles), len(titles[0])
    panel_width = PANEL_WIDTHS.get(num_columns, min(PANEL_WIDTHS.values()))
    width = panel_width * num_columns + COLUMN_GAP * (num_columns - 1)
    height = row_height(layers) * len(layers) * num_rows + ROW_GAP * (num_rows - 1)
    notes_width = max((len(note) for note in notes), default=0) * SMALL_CHARACTER
    margins = {
        **MARGINS,
        "l": MARGINS["l"] + max(map(len, layers)) * SMALL_CHARACTER,
        "r": MARGINS["r"] + notes_width,
    }
    figure = make_subplots(
        rows=num_rows,
        cols=num_columns,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=COLUMN_GAP / width,
        vertical_spacing=ROW_GAP / height if num_rows > 1 else 0.0,
        subplot_titles=[title for row in titles for title in row],
    )
    figure.update_annotations(font_size=TEXT + 1, yshift=10)
    low, high, meaning = colors
    figure.update_layout(
        **house_style(title, subtitle),
        width=width + margins["l"] + margins["r"],
        height=height + margins["t"] + margins["b"],
        margin=margins,
        coloraxis={
            "colorscale": SCALE,
            "cmin": low,
            "cmax": high,
            "colorbar": {
                "title": {"text": meaning, "font_size": SMALL},
                "tickfont_size": SMALL,
                "thickness": 14,
                "len": 1.0,
                "ypad": 0,
                "x": 1 + notes_width / width,
            },
        },
    )
    figure.update_layout(plot_bgcolor=NOTHING)
    figure.update_yaxes(**layer_axis(layers))
    figure.update_yaxes(title="layer", col=1)
    figure.update_xaxes(range=[0, last_step], tickfont_size=SMALL, title_font_size=TEXT)
    figure.update_xaxes(title="training step", row=num_rows)
    for number in range(0, len(notes), named_every(layers)):
        figure.add_annotation(
            text=notes[number],
            font_size=SMALL,
            x=1.0,
            xref="paper",
            xanchor="left",
            y=number,
            yref="y",
            showarrow=False,
        )
    return figure


def row_height(layers: Sequence[str]) -> float:
    """Pixels of a layer's row: tall enough to name it, while there are not too many."""
    return max(6.0, min(17.0, 900 / len(layers)))


def named_every(layers: Sequence[str]) -> int:
    """Every n-th layer can be named, so that names do not touch; mostly 1."""
    return math.ceil(SMALL / row_height(layers))


def layer_axis(layers: Sequence[str]) -> dict[str, Any]:
    """An axis with the first layer on top."""
    numbers = range(0, len(layers), named_every(layers))
    return {
        "tickmode": "array",
        "tickvals": list(numbers),
        "ticktext": [layers[number] for number in numbers],
        "tickfont_size": SMALL,
        "title_font_size": TEXT,
        "range": [len(layers) - 0.5, -0.5],
    }


def house_style(title: str, subtitle: str) -> dict[str, Any]:
    """Any figure's layout."""
    return {
        "template": "simple_white",
        "font": FONT,
        "title": {
            "text": title,
            "font_size": TITLE,
            "subtitle": {"text": subtitle, "font": {"size": TEXT, "color": PALE_INK}},
            "x": 0.0,
            "xref": "paper",
            "y": 1.0,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 14},
        },
        "legend": {
            "orientation": "h",
            "x": 1.0,
            "xanchor": "right",
            "y": 0.012,
            "yanchor": "bottom",
            "yref": "container",
        },
    }
