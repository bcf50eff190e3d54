"""The leaderboard, the status and the whole story of one individual, as plain rows."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from oialr_search.storage import (
    EvaluationRecord,
    IndividualRecord,
    SearchRecord,
    Status,
    Storage,
    StorageError,
)
from workers.protocol import Resources

Row = dict[str, Any]


def choose_search(storage: Storage, name: str | None) -> SearchRecord:
    """The search of that name, or the one launched last.

    Raises:
        StorageError: when there is none.
    """
    searches = storage.searches()
    if not searches:
        raise StorageError("the database holds no search yet")
    if name is None:
        return searches[0]
    found = storage.find_search(name)
    if found is None:
        known = ", ".join(search.name for search in searches)
        raise StorageError(f"no search named {name!r} in the database; it holds {known}")
    return found


def leaderboard(storage: Storage, search: SearchRecord, top: int | None) -> list[Row]:
    """Completed individuals, the fittest first."""
    individuals = storage.individuals(
        search.id, status=Status.COMPLETED, limit=top, order="fitness"
    )
    return [_row(place, individual) for place, individual in enumerate(individuals, start=1)]


def status(storage: Storage, search: SearchRecord) -> list[Row]:
    """One row an island: what is done, what runs, the best so far."""
    running = storage.progress(search.id).running
    return [
        {
            "island": summary.island,
            "individuals": sum(summary.counts.values()),
            **{name.value: summary.counts[name] for name in Status if name is not Status.QUEUED},
            "best_fitness": summary.best_fitness,
            "now": ", ".join(
                f"individual {e.individual_id} at epoch {e.last_epoch or 0} on {e.hostname} "
                f"since {_seconds_ago(e.started_at):.0f} s"
                for e in running
                if e.island == summary.island
            ),
        }
        for summary in storage.islands(search.id)
    ]


def describe_launch(storage: Storage, search: SearchRecord) -> str:
    """How far the search is, and what became of its last launch."""
    progress, launches = storage.progress(search.id), storage.launches(search.id)
    begun = sum(progress.counts.values())
    text = f"{search.name}: {begun} of {progress.total} individuals begun"
    if not launches:
        return text
    last = launches[-1]
    since = last.started_at.isoformat(sep=" ", timespec="seconds")
    if last.ended_at is None:
        return f"{text}; launch {last.id} on {last.hostname} since {since} runs, or was killed"
    ended = last.ended_at.isoformat(sep=" ", timespec="seconds")
    return f"{text}; launch {last.id} ended {ended} with exit code {last.exit_code}"


def story(storage: Storage, individual_id: int) -> Row:
    """All that is known of one individual.

    Raises:
        StorageError: when there is none of that number.
    """
    individual = storage.individual(individual_id)
    if individual is None:
        raise StorageError(f"no individual {individual_id} in the database")
    return {
        "individual": individual.id,
        "status": individual.status.value,
        "fitness": individual.fitness,
        "island": individual.island,
        "island_rank": individual.island_rank,
        "generation": individual.generation,
        "origin": individual.origin,
        "parents": list(individual.parents),
        "hyperparameters": dict(individual.hyperparameters),
        "evaluations": [
            _evaluation(storage, evaluation) for evaluation in storage.evaluations(individual.id)
        ],
    }


def _row(place: int, individual: IndividualRecord) -> Row:
    evaluation = individual.evaluation
    assert evaluation is not None
    return {
        "place": place,
        "individual": individual.id,
        "fitness": individual.fitness,
        **{k: v for k, v in evaluation.metrics.items() if k.startswith("validation_")},
        "trainable_percent": evaluation.trainable_percent,
        "compression_percent": evaluation.compression_percent,
        **individual.hyperparameters,
        "island": individual.island,
        "generation": individual.generation,
        "duration_s": evaluation.duration_s,
    }


def _evaluation(storage: Storage, evaluation: EvaluationRecord) -> Row:
    inner_ranks: Row = {}
    for update in storage.rank_updates(evaluation.id):
        history = inner_ranks.setdefault(update.layer, [update.full_inner_rank])
        history.append(update.inner_rank)
    return {
        "attempt": evaluation.attempt,
        "status": evaluation.status.value,
        "reason": evaluation.reason,
        "exit_code": evaluation.exit_code,
        "exit_signal": evaluation.exit_signal,
        "host": evaluation.hostname,
        "device": evaluation.device,
        "started_at": evaluation.started_at.isoformat(timespec="seconds"),
        "duration_s": evaluation.duration_s,
        "epochs": evaluation.last_epoch,
        "metrics": dict(evaluation.metrics),
        "resources": {field.name: getattr(evaluation, field.name) for field in fields(Resources)},
        "inner_ranks": inner_ranks,
        "log": evaluation.log_path,
    }


def _seconds_ago(at: datetime) -> float:
    return (datetime.now(UTC) - at).total_seconds()
