"""The folder of a search: what the database holds of its evaluations is here as files, too.

    NAME/search.json, launch-000001.json, ..., migrations-0.jsonl, ... (by target island)
    NAME/individual-000001/individual.json, state.pt (until it has ended)
    NAME/individual-000001/attempt-1/evaluation.json, request.json, log.txt, events.jsonl,
                                     result.json (the worker's), outcome.json (the controller's)

So a result that the database did not get is stored by the next launch, and `oialr-search import`
makes a lost database anew.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from oialr_training.protocol import (
    EVENTS_FILE,
    RESULT_FILE,
    Completed,
    Epoch,
    Event,
    EventReader,
    Failed,
    Observation,
    ProtocolError,
    RankUpdate,
    Started,
    decode,
)
from pydantic import TypeAdapter, ValidationError

from oialr_search.evaluation.outcomes import outcome_of
from oialr_search.storage.records import (
    Claim,
    EpochRecord,
    EvaluationHistory,
    EvaluationRecord,
    IndividualHistory,
    IndividualRecord,
    LaunchRecord,
    NewMigration,
    Outcome,
    SearchRecord,
    Status,
    individual_folder,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SEARCH_FILE = "search.json"
INDIVIDUAL_FILE = "individual.json"
EVALUATION_FILE = "evaluation.json"
OUTCOME_FILE = "outcome.json"
REQUEST_FILE = "request.json"
STATE_FILE = "state.pt"

R = TypeVar("R")


class FolderError(Exception):
    """A search's folder that cannot be read; its text is one line for the user."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an evaluation ended, and whether its individual is to be evaluated again."""

    outcome: Outcome
    repeat: bool = False


def write_record(path: Path, record: DataclassInstance) -> None:
    """Write a record as JSON, whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(vars(record), default=_as_json, indent=1), encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_record(path: Path, kind: type[R]) -> R:
    """Read a record back.

    Raises:
        FolderError: when the file is missing, cut off, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record: R = _validator(kind).validate_python(content)  # type: ignore[arg-type]
    except OSError as error:
        raise FolderError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        mistake = error.errors()[0]
        key = ".".join(map(str, mistake["loc"]))
        raise FolderError(f"{path} is damaged: `{key}`: {mistake['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{path} is damaged: {error}") from None
    return record


@cache
def _validator(kind: type[Any]) -> TypeAdapter[Any]:
    """Making one takes longer than reading a file."""
    return TypeAdapter(kind)


def _as_json(value: object) -> object:
    return vars(value) if is_dataclass(value) else str(value)


def write_claim(claim: Claim) -> None:
    """Say in a new evaluation's folder whose it is; leftovers of a lost database are cleared."""
    folder = Path(claim.evaluation.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (EVENTS_FILE, RESULT_FILE, OUTCOME_FILE):
        (folder / name).unlink(missing_ok=True)
    write_record(folder.parent / INDIVIDUAL_FILE, replace(claim.individual, evaluation=None))
    write_record(folder / EVALUATION_FILE, claim.evaluation)


def read_ending(folder: Path, metric: str, task: str, *, may_repeat: bool) -> Ending | None:
    """How an evaluation ended, from its files; None when they do not say.

    `may_repeat` tells whether what may be the machine's fault is to be tried again.
    """
    with contextlib.suppress(FolderError):
        return read_record(folder / OUTCOME_FILE, Ending)
    try:
        result = decode((folder / RESULT_FILE).read_bytes())
    except (OSError, ProtocolError):
        return None
    if not isinstance(result, Completed | Failed):
        return None
    machine = isinstance(result, Failed) and result.cause == "machine"
    return Ending(outcome=outcome_of(result, metric, task), repeat=machine and may_repeat)


def read_events(folder: Path) -> Iterator[Event]:
    """What the worker of an evaluation said, up to where its file is cut off."""
    try:
        lines = (folder / EVENTS_FILE).read_bytes().splitlines()
    except OSError:
        return
    with contextlib.suppress(ProtocolError):
        yield from EventReader().read(lines)


def epoch_records(event: Epoch) -> tuple[EpochRecord, list[RankUpdate], list[Observation]]:
    """An epoch as the database takes it."""
    return (
        EpochRecord(epoch=event.epoch, step=event.step, metrics=event.metrics),
        event.rank_updates,
        event.observations,
    )


def holds_individuals(folder: Path) -> bool:
    """Are there evaluations in this folder?"""
    return next(folder.glob("individual-*"), None) is not None


def read_search(folder: Path) -> SearchRecord:
    """The search of a folder.

    Raises:
        FolderError: when its file is missing or damaged.
    """
    return read_record(folder / SEARCH_FILE, SearchRecord)


def write_launch(folder: Path, launch: LaunchRecord) -> None:
    """Write a launch into its search's folder."""
    write_record(folder / f"launch-{launch.id:06d}.json", launch)


def read_launches(folder: Path) -> Iterator[LaunchRecord | str]:
    """The launches of a search's folder, and a line for what cannot be read of them."""
    for path in sorted(folder.glob("launch-*.json")):
        try:
            yield read_record(path, LaunchRecord)
        except FolderError as error:
            yield str(error)


def add_migration(folder: Path, migration: NewMigration) -> None:
    """Note an accepted individual in the book of the island that accepted it."""
    line = json.dumps(vars(migration), default=_as_json)
    path = folder / f"migrations-{migration.target_island}.jsonl"
    with path.open("a", encoding="utf-8") as book:
        book.write(f"{line}\n")


def read_migrations(folder: Path, search_id: int) -> Iterator[NewMigration | str]:
    """The migrations of a search's folder, and a line for what cannot be read of them."""
    for path in sorted(folder.glob("migrations-*.jsonl")):
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                migration = _validator(NewMigration).validate_json(line)
                if migration.search_id == search_id:
                    yield migration
            except ValidationError:
                yield f"{path} is damaged in line {number}"


def read_histories(folder: Path, search: SearchRecord) -> Iterator[IndividualHistory | str]:
    """All individuals of a search's folder, and a line for what cannot be read of them."""
    for path in sorted(folder.glob("individual-*")):
        try:
            yield from _read_history(path, search)
        except FolderError as error:
            yield str(error)


def _read_history(folder: Path, search: SearchRecord) -> Iterator[IndividualHistory | str]:
    individual = read_record(folder / INDIVIDUAL_FILE, IndividualRecord)
    if (individual.search_id, folder) != (search.id, _folder_of(folder.parent, individual.id)):
        raise FolderError(f"{folder} is not where individual {individual.id} belongs")
    attempts = sorted(folder.glob("attempt-*"), key=lambda path: (len(path.name), path.name))
    evaluations, repeat = [], True
    for path in attempts:
        try:
            history, repeat = _read_evaluation(path, individual, search)
            evaluations.append(history)
        except FolderError as error:  # its rank may have been killed before it had written that
            yield str(error)
            repeat = True
    if not evaluations:
        if not attempts:
            raise FolderError(f"{folder} holds no evaluation")
        return  # told above
    last = evaluations[-1].evaluation
    repeat = repeat and last.status is not Status.COMPLETED  # after which there is no attempt
    individual = replace(
        individual,
        status=Status.LOST if repeat else last.status,
        fitness=None if repeat else last.fitness,
        finished_at=None if repeat else last.finished_at,
        evaluation=last,
    )
    yield IndividualHistory(individual=individual, evaluations=evaluations)


def _folder_of(search_folder: Path, individual_id: int) -> Path:
    return Path(individual_folder(str(search_folder), individual_id))


def _read_evaluation(
    folder: Path, individual: IndividualRecord, search: SearchRecord
) -> tuple[EvaluationHistory, bool]:
    """An evaluation, and whether its individual is to be evaluated again."""
    stored = read_record(folder / EVALUATION_FILE, EvaluationRecord)
    place = (individual.id, f"attempt-{stored.attempt}")
    if (stored.individual_id, folder.name) != place:
        raise FolderError(f"{folder} is not where evaluation {stored.id} belongs")
    lost = Outcome(status=Status.LOST, reason="no result in its folder")
    ending = read_ending(folder, search.metric, search.task, may_repeat=True)
    ending = ending or Ending(outcome=lost, repeat=True)
    epochs, updates, observations = list[EpochRecord](), list[RankUpdate](), list[Observation]()
    started: Started | None = None
    for event in read_events(folder):
        if isinstance(event, Started):
            started = event
        if isinstance(event, Epoch):
            epoch, more_updates, more_observations = epoch_records(event)
            epochs.append(epoch)
            updates += more_updates
            observations += more_observations
    evaluation = replace(
        stored,
        folder=str(folder.absolute()),
        log_path=str(folder.absolute() / Path(stored.log_path).name),
        training_started_at=datetime.fromtimestamp(started.at, UTC) if started else None,
        resumed_epoch=started.resumed_epoch if started else None,
        last_epoch=max((epoch.epoch for epoch in epochs), default=None),
        **vars(ending.outcome),
    )
    history = EvaluationHistory(
        evaluation=evaluation, epochs=epochs, rank_updates=updates, observations=observations
    )
    return history, ending.repeat


def search_folders(folder: Path) -> list[Path]:
    """The folders of searches in a folder, or itself.

    Raises:
        FolderError: when there is none.
    """
    found = [path.parent for path in sorted(folder.glob(f"*/{SEARCH_FILE}"))]
    if (folder / SEARCH_FILE).exists():
        found = [folder]
    if not found:
        raise FolderError(f"no search in {folder}: none of its folders holds {SEARCH_FILE}")
    return found
