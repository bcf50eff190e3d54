"""What people read for what the database names: metrics and fitness with their units."""

from __future__ import annotations

from html import escape

from oialr_search.storage.records import IndividualRecord, SearchRecord, Status
from oialr_training.errors import ConfigError


def metric_label(name: str, search: SearchRecord) -> str:
    """A metric with its unit: validation_top1 → validation top-1 (%)."""
    metric = search.metrics().find(name)
    return name if metric is None else metric.label


def fitness_label(search: SearchRecord) -> str:
    """What the fitness is made of."""
    return f"fitness: {aim_labels(search)[0]}"


def aim_labels(search: SearchRecord) -> list[str]:
    """What is minimised: the objectives, or the fitness alone."""
    try:
        aims = search.aims()
    except ConfigError:  # of a task that is unknown here
        return [metric_label(search.metric, search)]
    return [
        aim.metric.fitness_label(metric_label(aim.expression.text, search))
        if aim.metric
        else aim.label
        for aim in aims.objectives or (aims.fitness,)
    ]


def describe_search(search: SearchRecord, individuals: list[IndividualRecord]) -> str:
    """How much of a search a figure shows."""
    counts = {s: sum(i.status is s for i in individuals) for s in Status}
    shown = ", ".join(f"{n:,} {status_label(status)}" for status, n in counts.items() if n)
    return f"search {plain(search.name)}, task {plain(search.task)}: {shown}"


def status_label(status: Status) -> str:
    """A status as it is read."""
    return status.value.replace("_", " ")


def plain(text: object) -> str:
    """A text as it is: plotly would take `<b>` for bold."""
    return escape(str(text), quote=False)
