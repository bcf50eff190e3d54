"""Name → figure: reads what a plot needs from the database and has it drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import plotly.graph_objects as go

from oialr_search.analysis.plots.bases import inner_ranks, stability
from oialr_search.analysis.plots.names import PlotName
from oialr_search.storage import (
    EvaluationRecord,
    IndividualRecord,
    SearchRecord,
    Storage,
    StorageError,
)

R = TypeVar("R")
Plot = Callable[[Storage, SearchRecord, IndividualRecord | None], go.Figure]

NO_OBSERVATIONS = (
    "no observations; a search records them with `--set observation.interval_steps=100`"
)
NO_RANK_UPDATES = "no inner ranks; they are there after the conversion, and never at full rank"


def _stability(
    storage: Storage, search: SearchRecord, individual: IndividualRecord | None
) -> go.Figure:
    individual, evaluation, observations = find_recorded(
        storage, search, individual, storage.observations, NO_OBSERVATIONS
    )
    updates = storage.rank_updates(evaluation.id)
    return stability(observations, updates, describe(search, individual))


def _inner_ranks(
    storage: Storage, search: SearchRecord, individual: IndividualRecord | None
) -> go.Figure:
    individual, evaluation, updates = find_recorded(
        storage, search, individual, storage.rank_updates, NO_RANK_UPDATES
    )
    epochs = storage.epochs(evaluation.id)
    return inner_ranks(updates, epochs[-1].step, describe(search, individual))


PLOTS: Mapping[PlotName, Plot] = {
    PlotName.STABILITY: _stability,
    PlotName.INNER_RANKS: _inner_ranks,
}


def find_recorded(
    storage: Storage,
    search: SearchRecord,
    individual: IndividualRecord | None,
    read: Callable[[int], list[R]],
    otherwise: str,
) -> tuple[IndividualRecord, EvaluationRecord, list[R]]:
    """The latest attempt with such records, of the individual or of the best that has one.

    Raises:
        StorageError: when there is none.
    """
    candidates = [individual] if individual else storage.individuals(search.id, order="fitness")
    for candidate in candidates:
        for evaluation in reversed(storage.evaluations(candidate.id)):
            if records := read(evaluation.id):
                return candidate, evaluation, records
    if individual is not None:
        raise StorageError(f"individual {individual.id} has {otherwise}")
    raise StorageError(f"no individual of search {search.name!r} can be drawn: {otherwise}")


def describe(search: SearchRecord, individual: IndividualRecord) -> str:
    """Which training a figure shows."""
    text = f"search {search.name}, individual {individual.id}, task {search.task}"
    if individual.fitness is None:
        return f"{text}, {individual.status.value}"
    return f"{text}, fitness {individual.fitness:.4g} ({search.metric})"
