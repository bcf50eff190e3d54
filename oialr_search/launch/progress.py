"""What rank 0 shows while a search runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    EvaluationRecord,
    IndividualRecord,
    Status,
    StorageUnavailable,
)
from oialr_search.storage.records import Progress as SearchProgress

REFRESH_S = 1.0


class LastingStream:
    """Standard output or error of a launch, which outlives its reader and a full disk."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write where that is possible."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush where that is possible."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's own."""
        return getattr(self._stream, name)


class ProgressDisplay:
    """Follows a search in the database, where all ranks write."""

    def __init__(self, storage: Storage, search_id: int, metric: str, console: Console) -> None:
        self._storage = storage
        self._search_id = search_id
        self._metric = metric
        self._console = console
        self._started = self._shown = time.monotonic()
        progress = storage.progress(search_id)
        self._best = _standing(progress)
        self._said: set[str] = set()
        self._ended = progress.ended
        # Evaluations of earlier launches are not told again.
        self._last_finished = storage.last_finish_number(search_id)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("evaluations")
        self._bar.start()

    def warn(self, text: str) -> None:
        """Say something once, however many evaluations it concerns."""
        kind = text.partition(":")[0]
        if kind not in self._said:
            self._said.add(kind)
            self._say(f"warning: {text}", style="yellow")

    def tell(self, text: str) -> None:
        """Say something."""
        self._say(text, style="bold")

    def refresh(self, *, now: bool = False) -> None:
        """Show what has changed, at most once a second unless `now`."""
        if not now and time.monotonic() - self._shown < REFRESH_S:
            return
        self._shown = time.monotonic()
        with suppress(StorageUnavailable):
            self._update()

    def _update(self) -> None:
        progress = self._storage.progress(self._search_id)
        finished = self._storage.finished_since(self._search_id, self._last_finished)
        ids = {evaluation.individual_id for evaluation in finished}
        individuals = self._storage.individuals_after(self._search_id, None, ids)
        by_id = {individual.id: individual for individual in individuals}
        for evaluation in finished:
            self._last_finished = evaluation.finish_number or self._last_finished
            self._tell(evaluation, by_id[evaluation.individual_id], progress)
        best = "" if progress.best_fitness is None else f", best {progress.best_fitness:.4g}"
        running = " ".join(f"{e.individual_id}:{e.last_epoch or 0}" for e in progress.running)
        self._bar.update(
            self._task,
            total=progress.expected,
            completed=self._ended,
            description=f"evaluations{best} (running individual:epoch {running or 'none'})",
        )

    def close(self) -> None:
        """Show the last changes and leave the terminal alone."""
        self.refresh(now=True)
        self._bar.stop()

    def _tell(
        self, evaluation: EvaluationRecord, individual: IndividualRecord, progress: SearchProgress
    ) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        elapsed = f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
        self._ended += self._has_ended(evaluation, individual)
        head = f"{elapsed} [{self._ended}/{progress.expected}] {evaluation.individual_id:>5}"
        if evaluation.fitness is None:
            self._say(f"{head} {evaluation.status}: {evaluation.reason}", style="red")
            return
        repeat, new_best = individual.repeat_of is not None, False
        if repeat:
            self._best = _standing(progress)  # a mean that this one has changed, perhaps
        elif self._best is None or (evaluation.violation, evaluation.fitness) < self._best:
            self._best, new_best = (evaluation.violation, evaluation.fitness), True
        trainable = evaluation.trainable_percent
        self._say(
            f"{head} fitness {evaluation.fitness:.4f}"
            f"  {self._metric} {evaluation.metrics[self._metric]:.4f}"
            + (f"  trainable {trainable:.1f} %" if trainable is not None else "")
            + f"  {evaluation.duration_s:.1f} s"
            + (f"  violation {evaluation.violation:.4f}" if evaluation.violation else "")
            + ("  best so far" if new_best else "")
            + (f"  {individual.origin}s {individual.repeat_of}" if repeat else ""),
            style="bold" if new_best else "",
        )

    def _has_ended(self, evaluation: EvaluationRecord, individual: IndividualRecord) -> bool:
        """Was it the last attempt at its individual?

        One that was pruned has ended by that; gone on with, it does not end again.
        """
        last = individual.evaluation
        assert last is not None
        if last.attempt > 1:
            attempts = self._storage.evaluations(individual.id)
            pruned = [attempt.attempt for attempt in attempts if attempt.status is Status.PRUNED]
            if pruned:
                return evaluation.attempt == pruned[0]
        return last.id == evaluation.id and individual.status is not Status.LOST

    def _say(self, text: str, style: str) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _standing(progress: SearchProgress) -> tuple[float, float] | None:
    """Of the best; the less, the better."""
    fitness = progress.best_fitness
    return None if fitness is None else (progress.best_violation, fitness)
