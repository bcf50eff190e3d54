"""The ancestors of an individual as a tree, across islands."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from oialr_search.analysis.labels import status_label
from oialr_search.analysis.plots import palette, style
from oialr_search.storage.records import IndividualRecord

MANY_ANCESTORS = 45
LEVEL_WIDTH, ROW_HEIGHT = 92, 52  # pixels
SWEEPS = 8


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Individuals on levels; parents are on lower ones than their children."""

    members: Mapping[int, IndividualRecord]
    levels: Sequence[Sequence[int]]  # ids, the oldest first
    left_out: int  # older ancestors

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Parent and child."""
        return [
            (parent, child.id)
            for child in self.members.values()
            for parent in dict.fromkeys(child.parents)
            if parent in self.members
        ]


def ancestors(
    individual: IndividualRecord, everyone: Mapping[int, IndividualRecord], subtitle: str
) -> go.Figure:
    """The tree of an individual, from its oldest ancestors on the left to itself on the right."""
    tree = tree_of(individual, everyone)
    heights = heights_of(tree)
    places = {i: (x, heights[i]) for x, level in enumerate(tree.levels) for i in level}
    figure = go.Figure()
    for crosses in (False, True):
        figure.add_trace(_edges(tree, places, crosses))
    islands = sorted({member.island for member in tree.members.values()})
    for number, island in enumerate(islands):
        members = [m for m in tree.members.values() if m.island == island]
        figure.add_trace(
            go.Scatter(
                x=[places[m.id][0] for m in members],
                y=[places[m.id][1] for m in members],
                mode="markers",
                marker={
                    **palette.marker(number, 13),
                    "line": {
                        "color": style.INK,
                        "width": [3 if m.id == individual.id else 0.8 for m in members],
                    },
                },
                cliponaxis=False,
                customdata=[[m.id, m.origin, m.generation] for m in members],
                hovertemplate="individual %{customdata[0]}, %{customdata[1]}, "
                "generation %{customdata[2]}<extra></extra>",
                name=f"bred on island {island}",
            )
        )
    for member in tree.members.values():
        figure.add_annotation(
            x=places[member.id][0],
            y=places[member.id][1],
            yshift=-10,
            yanchor="top",
            text=_label(member),
            font_size=style.SMALL - 1,
            showarrow=False,
            bgcolor="rgba(255,255,255,0.8)",
            borderpad=0,
        )
    tallest = max(map(len, tree.levels))
    left_out = f"{tree.left_out:,} older ancestors are not drawn" if tree.left_out else ""
    margin = {**palette.MARGINS, "l": 50, "r": 50, "t": 100, "b": 96}
    palette.lay_out(
        figure,
        f"Ancestors of individual {individual.id}",
        subtitle,
        "; ".join(note for note in ("a number and, under it, the fitness", left_out) if note),
        width=max(palette.WIDTH, LEVEL_WIDTH * len(tree.levels) + 100),
        height=max(ROW_HEIGHT * tallest, 120) + margin["t"] + margin["b"],
        margin=margin,
    )
    last = len(tree.levels) - 1
    figure.update_yaxes(visible=False, range=[-tallest / 2 - 0.4, tallest / 2 + 0.1])
    figure.update_xaxes(
        title="steps of breeding back",
        range=[-0.5, last + 0.5],
        tickmode="array",
        tickvals=list(range(last + 1)),
        ticktext=[str(last - level) for level in range(last + 1)],
    )
    return figure


def tree_of(individual: IndividualRecord, everyone: Mapping[int, IndividualRecord]) -> Tree:
    """An individual and its ancestors, the nearest ones where they are many."""
    found, members = [individual], {individual.id: individual}
    for member in found:  # grows while it is gone through: the nearest come first
        for parent in member.parents:
            if parent not in members and parent in everyone:
                members[parent] = everyone[parent]
                found.append(everyone[parent])
    kept = {member.id: member for member in found[: MANY_ANCESTORS + 1]}
    # Steps back, along the longest way: an individual's number is higher than its parents'.
    back = dict.fromkeys(kept, 0)
    for child in sorted(kept, reverse=True):
        for parent in kept[child].parents:
            if parent in kept:
                back[parent] = max(back[parent], back[child] + 1)
    depth = max(back.values())
    levels = [sorted(i for i in kept if back[i] == depth - n) for n in range(depth + 1)]
    return Tree(members=kept, levels=levels, left_out=len(found) - len(kept))


def heights_of(tree: Tree) -> dict[int, float]:
    """Heights, in whole rows, such that relatives are near each other (Sugiyama et al. 1981)."""
    relatives: dict[int, list[int]] = {i: [] for i in tree.members}
    for parent, child in tree.edges:
        relatives[parent].append(child)
        relatives[child].append(parent)
    heights: dict[int, float] = {}
    for level in tree.levels:
        heights |= _spread(level)
    for sweep in range(SWEEPS):
        for level in tree.levels if sweep % 2 else reversed(tree.levels):
            middle = {
                i: statistics.fmean([heights[r] for r in relatives[i]] or [heights[i]])
                for i in level
            }
            heights |= _spread(sorted(level, key=lambda i: (middle[i], i)))
    return heights


def _spread(level: Sequence[int]) -> dict[int, float]:
    return {i: number - (len(level) - 1) / 2 for number, i in enumerate(level)}


def _edges(tree: Tree, places: Mapping[int, tuple[float, float]], crosses: bool) -> go.Scatter:
    """From parents to children, on one island or from one to another."""
    x: list[float | None] = []
    y: list[float | None] = []
    for parent, child in tree.edges:
        if (tree.members[parent].island != tree.members[child].island) is crosses:
            x += [places[parent][0], places[child][0], None]
            y += [places[parent][1], places[child][1], None]
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={
            "color": style.INK if crosses else "#8a8a8a",
            "width": 1.2,
            "dash": "dash" if crosses else "solid",
        },
        hoverinfo="skip",
        name="parent from another island" if crosses else "parent",
        showlegend=bool(x),
    )


def _label(member: IndividualRecord) -> str:
    fitness = status_label(member.status) if member.fitness is None else f"{member.fitness:.4g}"
    return f"{member.id}<br>{fitness}"
