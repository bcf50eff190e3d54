"""Where a search stands: islands, ranks, pace, failures, the best so far, the expected end."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from oialr_search import exit_codes
from oialr_search.analysis.leaderboard import front_of
from oialr_search.storage.database import Storage
from oialr_search.storage.records import LaunchRecord, RunningEvaluation, SearchRecord, Status
from oialr_search.storage.selection import FailureCount
from oialr_search.storage.status import UNFINISHED
from oialr_search.surrogate.outlook import outlook
from oialr_training.protocol import EVENTS_FILE

Row = dict[str, Any]

WINDOW = timedelta(hours=1)
ENOUGH = 10
"""Endings that make an hour's pace; with fewer it is the whole launch's."""
MOST_FINISHES = 1000
FIRST_PART = re.compile(r".+?(?=: | after (?:epoch )?\d|$)")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast evaluations end."""

    evaluations: int
    over_s: float
    per_hour: float | None
    per_island: Mapping[int, float]  # an hour
    last_finish_at: datetime | None


def status(storage: Storage, search: SearchRecord, now: datetime | None = None) -> Row:
    """All that is known of a search's state; times are ISO 8601 in UTC."""
    now = now or datetime.now(UTC)
    progress, islands = storage.progress(search.id), storage.islands(search.id)
    launches = storage.launches(search.id)
    launch = launches[-1] if launches else None
    pace = _pace(storage, launch, now)
    running = {each: _epochs(storage, search, each.individual_id) for each in progress.running}
    confirmations = storage.confirmations(search.id) if progress.num_confirmations else []
    confirmed = sum(i.status not in UNFINISHED for i in confirmations)
    confirming = {"ended": confirmed, "of": len(confirmations)} if confirmations else None
    remaining = progress.expected - progress.ended
    if launch is not None and launch.exit_code == exit_codes.FINISHED and not progress.unfinished:
        remaining = 0  # it has had enough before its total: `search.until`
    used = [s for s in Status if s is not Status.QUEUED or progress.counts[s]]
    more = outlook(storage, search.id)
    best = None
    if progress.best_individual_id is not None:
        best = storage.individual(progress.best_individual_id)
    return {
        "search": search.name,
        "task": search.task,
        "metric": search.metric,
        "aim": search.aim,
        "evaluations_total": progress.total,
        "expected": progress.expected,
        "begun": sum(progress.counts.values()) - progress.counts[Status.QUEUED],
        "ended": progress.ended,
        "confirming": confirming,
        "remaining": remaining,
        **{status.value: progress.counts[status] for status in used},
        "launch": launch and _launch(launch, len(launches)),
        "per_hour": pace.per_hour,
        "per_hour_over_s": pace.over_s,
        "last_finished_at": _iso(pace.last_finish_at),
        "expected_end": _iso(_expected_end(launch, pace, running, remaining, now)),
        "best": best
        and {
            "individual": best.id,
            "fitness": best.fitness,
            **({"violation": best.violation} if search.subject_to else {}),
            "island": best.island,
            "trainable_percent": best.evaluation and best.evaluation.trainable_percent,
            "compression_percent": best.evaluation and best.evaluation.compression_percent,
        },
        **({"front": len(front_of(storage, search))} if search.objectives else {}),
        "outlook": more
        and {
            "evaluations": more.evaluations,
            "gain": more.middle,
            "gain_quartiles": [more.low, more.high],
        },
        "islands": [
            {
                "island": island.island,
                "individuals": sum(island.counts.values()),
                **{status.value: island.counts[status] for status in used},
                "per_hour": pace.per_island.get(island.island, 0.0),
                "best_fitness": island.best_fitness,
                "best_individual": island.best_individual_id,
            }
            for island in islands
        ],
        "ranks": [_running(each, epochs, now) for each, epochs in running.items()],
        "epochs_saved": _epochs_saved(storage, search) if progress.counts[Status.PRUNED] else 0,
        "failures": group_failures(storage.failures(search.id)),
    }


def group_failures(counts: Sequence[FailureCount]) -> list[Row]:
    """Failures by the first part of what they say, most frequent first."""
    groups: dict[tuple[Status, str], Counter[str]] = {}
    for failure in counts:
        text = failure.reason or "no reason given"
        found = FIRST_PART.match(text)
        group = groups.setdefault((failure.status, found[0] if found else text), Counter())
        group[text] += failure.count
    rows = [
        {
            "status": status.value,
            "reason": reason,
            "evaluations": sum(texts.values()),
            "example": texts.most_common(1)[0][0],
        }
        for (status, reason), texts in groups.items()
    ]
    return sorted(rows, key=lambda row: (-row["evaluations"], row["status"], row["reason"]))


def _pace(storage: Storage, launch: LaunchRecord | None, now: datetime) -> Pace:
    """The pace of the last hour of the launch, or of all of it where little ended in the hour."""
    if launch is None:
        return Pace(evaluations=0, over_s=0.0, per_hour=None, per_island={}, last_finish_at=None)
    until = launch.ended_at or now
    finishes = [f for f in storage.last_finishes(launch.id, MOST_FINISHES) if f[0] is not None]
    begin = launch.started_at
    if len(finishes) == MOST_FINISHES:
        begin = max(begin, finishes[-1][0])
    recent = [finish for finish in finishes if finish[0] > until - WINDOW]
    if len(recent) >= ENOUGH and begin < until - WINDOW:
        finishes, begin = recent, until - WINDOW
    over_s = max((until - begin).total_seconds(), 0.0)
    an_hour = 3600.0 / over_s if over_s else 0.0
    islands = Counter(island for _, island in finishes)
    return Pace(
        evaluations=len(finishes),
        over_s=over_s,
        per_hour=len(finishes) * an_hour,
        per_island={island: count * an_hour for island, count in islands.items()},
        last_finish_at=max((at for at, _ in finishes), default=None),
    )


def _expected_end(
    launch: LaunchRecord | None,
    pace: Pace,
    running: Mapping[RunningEvaluation, int | None],
    remaining: int,
    now: datetime,
) -> datetime | None:
    """When the last evaluation will have ended, if all goes on like this; None: nobody knows."""
    if launch is None or launch.ended_at or not remaining:
        return None
    if pace.per_hour:
        seconds: float | None = 3600 * remaining / pace.per_hour
    else:
        seconds = _seconds_by_epochs(running, remaining, now)
    try:
        return None if seconds is None else now + timedelta(seconds=seconds)
    except OverflowError:  # not in the lifetime of a calendar
        return None


def _seconds_by_epochs(
    running: Mapping[RunningEvaluation, int | None], remaining: int, now: datetime
) -> float | None:
    """How long all will take, as far as the epochs of what runs tell; None: they tell nothing."""
    left = float(remaining)  # evaluations, less the parts of those that run
    paces = []  # evaluations a second
    for evaluation, epochs in running.items():
        done = evaluation.last_epoch or 0
        own = done - (evaluation.resumed_epoch or 0)  # the others are an earlier attempt's
        seconds = (now - (evaluation.training_started_at or evaluation.started_at)).total_seconds()
        if epochs and own > 0 and seconds > 0:
            left -= done / epochs
            paces.append(own / epochs / seconds)
    return left / (statistics.fmean(paces) * len(running)) if paces else None


def _launch(launch: LaunchRecord, number: int) -> Row:
    return {
        "launch": launch.id,
        "number": number,
        "hostname": launch.hostname,
        "world_size": launch.world_size,
        "num_islands": launch.num_islands,
        "started_at": _iso(launch.started_at),
        "ended_at": _iso(launch.ended_at),
        "exit_code": launch.exit_code,
    }


def _running(running: RunningEvaluation, epochs: int | None, now: datetime) -> Row:
    return {
        "world_rank": running.world_rank,
        "island": running.island,
        "individual": running.individual_id,
        "attempt": running.attempt,
        "epoch": running.last_epoch or 0,
        "epochs": epochs,
        "hostname": running.hostname,
        "device": running.device,
        "started_at": _iso(running.started_at),
        "running_s": _seconds(running.started_at, now),
        "silent_s": _seconds(_heard_at(Path(running.folder)), now),
    }


def _heard_at(folder: Path) -> datetime | None:
    """When the worker last spoke; None: it has not yet, or its folder is not on this machine."""
    try:
        return datetime.fromtimestamp((folder / EVENTS_FILE).stat().st_mtime, UTC)
    except OSError:
        return None


def _seconds(since: datetime | None, now: datetime) -> float | None:
    return None if since is None else round(max((now - since).total_seconds(), 0.0), 1)


def _epochs(storage: Storage, search: SearchRecord, individual_id: int) -> int | None:
    """How many epochs a training has at most."""
    if any(h.name == "epochs" for h in search.space.hyperparameters):
        individual = storage.individual(individual_id)
        found = individual and individual.hyperparameters.get("epochs")
    else:
        found = search.of_search_file("epochs")
    return found if isinstance(found, int) else None


def _epochs_saved(storage: Storage, search: SearchRecord) -> int:
    """By stopping trainings early."""
    of_all = search.of_search_file("epochs")
    saved = 0
    for trained, hyperparameters in storage.pruned_epochs(search.id):
        epochs = hyperparameters.get("epochs", of_all)
        saved += max(epochs - trained, 0) if isinstance(epochs, int) else 0
    return saved


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")
