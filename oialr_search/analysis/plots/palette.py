"""What tells one line or point from another, and how many are drawn: in colour and in print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import plotly.graph_objects as go

from oialr_search.analysis.plots import style
from oialr_search.storage.records import IndividualRecord

T = TypeVar("T")

# Okabe & Ito 2008: told apart with any colour blindness; their yellow is too pale for lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "hexagram", "triangle-down")
OTHERS = "#b4b4b4"  # the many behind the few
BEST = {
    "symbol": "star",
    "size": 15,
    "color": "#D55E00",
    "line": {"color": style.INK, "width": 1},
}

WIDTH, HEIGHT = 860, 500  # pixels
MARGINS = {"l": 76, "r": 30, "t": 96, "b": 96}
KEPT = 0.1  # this part, the best, is the last to be thinned out


@dataclass(frozen=True, kw_only=True)
class Thinned(Generic[T]):
    """What is drawn of many."""

    drawn: list[T]
    note: str  # empty when all is drawn


def thin(individuals: Sequence[IndividualRecord], at_most: int) -> Thinned[IndividualRecord]:
    """At most so many: first the best, then every n-th of the others; the order stays."""
    if len(individuals) <= at_most:
        return Thinned(drawn=list(individuals), note="")
    by_fitness = sorted(individuals, key=lambda i: (_or_last(i.fitness), i.id))
    num_best = math.ceil(KEPT * at_most)
    chosen = {i.id for i in by_fitness[:num_best]}
    others = [i for i in individuals if i.id not in chosen]
    chosen |= {i.id for i in evenly(others, at_most - num_best)}
    note = (
        f"{at_most:,} of {len(individuals):,} individuals drawn: "
        f"the best {num_best:,} and others, evenly"
    )
    return Thinned(drawn=[i for i in individuals if i.id in chosen], note=note)


def evenly(values: Sequence[T], at_most: int) -> list[T]:
    """At most so many, at even distances, the last one included."""
    if len(values) <= at_most:
        return list(values)
    stride = len(values) / at_most
    return [values[math.ceil((n + 1) * stride) - 1] for n in range(at_most)]


def _or_last(fitness: float | None) -> float:
    return math.inf if fitness is None else fitness


@dataclass(frozen=True, kw_only=True)
class FitnessRange:
    """Which part of the fitness is shown: all, or what a few far away ones leave room for."""

    low: float
    high: float
    note: str

    @property
    def axis(self) -> list[float]:
        """The axis, with a margin."""
        margin = 0.06 * (self.high - self.low)
        return [self.low - margin, self.high + margin]


def fitness_range(fitnesses: Sequence[float]) -> FitnessRange:
    """From the best to the worst, or to twice as far as nine tenths reach."""
    ordered = sorted(fitnesses)
    low, high = ordered[0], ordered[-1]
    most = ordered[min(int(0.9 * len(ordered)), len(ordered) - 1)]
    limit = low + 2 * (most - low)
    note = ""
    if most > low and high > limit:
        beyond = sum(fitness > limit for fitness in ordered)
        high = limit
        note = f"{beyond:,} beyond the axis, up to {ordered[-1]:.4g}"
    if high == low:
        spread = abs(low) * 0.05 or 1.0
        low, high = low - spread, high + spread
    return FitnessRange(low=low, high=high, note=note)


def line(number: int, width: float = 2.0) -> dict[str, Any]:
    """The n-th line's look: no colour comes back with the same dashes before the 31st."""
    return {
        "color": COLORS[number % len(COLORS)],
        "dash": DASHES[number % len(DASHES)],
        "width": width,
    }


def marker(number: int, size: float = 7.0) -> dict[str, Any]:
    """The n-th kind of point's look."""
    return {
        "color": COLORS[number % len(COLORS)],
        "symbol": SYMBOLS[number % len(SYMBOLS)],
        "size": size,
    }


def lay_out(figure: go.Figure, title: str, *subtitles: str, **layout: Any) -> None:
    """Give a figure of search results its size, its title and its axes' look."""
    subtitle = "<br>".join(text for text in subtitles if text)
    size = {"width": WIDTH, "height": HEIGHT, "margin": MARGINS}
    figure.update_layout(**{**style.house_style(title, subtitle), **size, **layout})
    figure.update_xaxes(tickfont_size=style.SMALL, title_font_size=style.TEXT)
    figure.update_yaxes(
        tickfont_size=style.SMALL, title_font_size=style.TEXT, showgrid=True, gridcolor="#ececec"
    )
