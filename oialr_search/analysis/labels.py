"""What people read for what the database names: metrics and fitness with their units."""

from __future__ import annotations

from html import escape

from oialr_training.config import TASKS

from oialr_search.storage.records import IndividualRecord, SearchRecord, Status

METRICS = {
    "loss": "loss",
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "mse": "MSE",
    "mae": "MAE",
}
OTHERS = {
    "train_loss": "training loss",
    "lr": "learning rate",
    "trainable_percent": "trainable parameters (% of full rank)",
    "compression_percent": "compression (% of full rank)",
}


def metric_label(name: str) -> str:
    """A metric with its unit: validation_top1 → validation top-1 (%)."""
    part, _, metric = name.partition("_")
    if part in ("validation", "test") and metric in METRICS:
        return f"{part} {METRICS[metric]}"
    return OTHERS.get(name, name)


def fitness_label(search: SearchRecord) -> str:
    """What the fitness is made of."""
    task = TASKS.get(search.task)
    if task is not None and task.metrics.get(search.metric) == "higher":
        return f"fitness: 100 − {metric_label(search.metric)}"
    return f"fitness: {metric_label(search.metric)}"


def describe_search(search: SearchRecord, individuals: list[IndividualRecord]) -> str:
    """How much of a search a figure shows."""
    counts = {s: sum(i.status is s for i in individuals) for s in Status}
    shown = ", ".join(f"{n:,} {status_label(status)}" for status, n in counts.items() if n)
    return f"search {plain(search.name)}, task {plain(search.task)}: {shown}"


def status_label(status: Status) -> str:
    """A status as it is read."""
    return status.value.replace("_", " ")


def number(value: float) -> str:
    """A number in three digits, a large one without a power of ten."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def plain(text: object) -> str:
    """A text as it is: plotly would take `<b>` for bold."""
    return escape(str(text), quote=False)
