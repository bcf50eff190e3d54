"""The folder of a search: what the database holds of its evaluations is here as files, too.

    NAME/search.json, launch-000001.json, ..., migrations-0.jsonl, ... (by target island)
    NAME/individual-000001/individual.json, state.pt or state/ (until it has ended; of one that was
                           stopped early, where it may be gone on with, until the search is
                           complete)
    NAME/individual-000001/attempt-1/evaluation.json, request.json, log.txt, events.jsonl,
                                     result.json (the worker's), outcome.json (the controller's)

So a result that the database did not get is stored by the next launch, and `oialr-search import`
makes a lost database anew.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from oialr_search.evaluation.outcomes import is_of_machine, is_repeated, outcome_of
from oialr_search.space.fitness import Aims
from oialr_search.space.hyperparameters import SearchSpace, Value
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
    num_failures,
)
from oialr_training.errors import ConfigError, KnownError, ProtocolError
from oialr_training.protocol import (
    EVENTS_FILE,
    RESULT_FILE,
    Completed,
    Epoch,
    Event,
    EventReader,
    Failed,
    Observation,
    RankUpdate,
    Resources,
    Started,
    decode,
)
from oialr_training.whole_files import written_whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SEARCH_FILE = "search.json"
INDIVIDUAL_FILE = "individual.json"
EVALUATION_FILE = "evaluation.json"
OUTCOME_FILE = "outcome.json"
REQUEST_FILE = "request.json"
STATE_FILE = "state.pt"
STATE_FOLDER = "state"
"""The same of a program of a user's own; beside the file, of its name."""

R = TypeVar("R")


class FolderError(KnownError):
    """A search's folder that cannot be read; its text is one line for the user."""

    cause = "configuration"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an evaluation ended, and whether its individual is to be evaluated again."""

    outcome: Outcome
    repeat: bool = False


def write_record(path: Path, record: DataclassInstance) -> None:
    """Write a record as JSON, whole or not at all."""
    with written_whole(path) as aside:
        aside.write_text(json.dumps(vars(record), default=_as_json, indent=1), encoding="utf-8")


def read_record(path: Path, kind: type[R]) -> R:
    """Read a record back.

    Raises:
        FolderError: when the file is missing, cut off, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=_in_todays_form)
        record: R = _validator(kind).validate_python(content)  # type: ignore[arg-type]
    except OSError as error:
        raise FolderError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        mistake = error.errors()[0]
        key = ".".join(map(str, mistake["loc"]))
        raise FolderError(f"{path} is damaged: `{key}`: {mistake['msg']}") from None
    except (ConfigError, ValueError, RecursionError) as error:
        raise FolderError(f"{path} is damaged: {error}") from None
    return record


def _in_todays_form(content: dict[str, Any]) -> dict[str, Any]:
    """Make of a JSON object what today's records have in it.

    Version 0.1.0 wrote the resources of an evaluation among its other fields.
    """
    if isinstance(content.get("space"), list):
        return {**content, "space": SearchSpace.from_json(content["space"], SEARCH_FILE)}
    if "status" not in content:
        return content
    used = {f.name: content.pop(f.name) for f in fields(Resources) if f.name in content}
    return {**content, "resources": used} if used else content


@cache
def _validator(kind: type[Any]) -> TypeAdapter[Any]:
    """Making one takes longer than reading a file."""
    return TypeAdapter(kind)


def _as_json(value: object) -> object:
    if isinstance(value, SearchSpace):
        return value.as_json()
    return vars(value) if is_dataclass(value) else str(value)


def write_claim(claim: Claim) -> None:
    """Say in a new evaluation's folder whose it is; leftovers of a lost database are cleared."""
    folder = Path(claim.evaluation.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (EVENTS_FILE, RESULT_FILE, OUTCOME_FILE):
        (folder / name).unlink(missing_ok=True)
    write_record(folder.parent / INDIVIDUAL_FILE, replace(claim.individual, evaluation=None))
    write_record(folder / EVALUATION_FILE, claim.evaluation)


def read_ending(
    folder: Path,
    aims: Aims,
    hyperparameters: Mapping[str, Value],
    *,
    failures: int,
    retries: int,
) -> Ending | None:
    """How an evaluation with these hyperparameters ended; None when its files do not say.

    `failures` earlier attempts have failed; see `is_repeated`.
    """
    with contextlib.suppress(FolderError):
        return read_record(folder / OUTCOME_FILE, Ending)
    result = read_result(folder)
    if result is None:
        return None
    outcome = outcome_of(result, aims, hyperparameters, epochs_told(folder, aims))
    machine = is_of_machine(result)
    repeat = is_repeated(outcome, machine=machine, failures=failures, retries=retries)
    return Ending(outcome=outcome, repeat=repeat)


def read_result(folder: Path) -> Completed | Failed | None:
    """What the worker of an evaluation came to; None when it has not said so."""
    try:
        result = decode((folder / RESULT_FILE).read_bytes())
    except (OSError, ProtocolError):
        return None
    return result if isinstance(result, Completed | Failed) else None


def read_events(folder: Path) -> Iterator[Event]:
    """What the worker of an evaluation said, up to where its file is cut off."""
    try:
        lines = (folder / EVENTS_FILE).read_bytes().splitlines()
    except OSError:
        return
    with contextlib.suppress(ProtocolError):
        yield from EventReader().read(lines)


def epochs_told(folder: Path, aims: Aims) -> list[Mapping[str, float]]:
    """The metrics of the epochs that the worker of an evaluation told, where these count."""
    if aims.window == 1:
        return []
    return [event.metrics for event in read_events(folder) if isinstance(event, Epoch)]


def epoch_records(event: Epoch) -> tuple[EpochRecord, list[RankUpdate], list[Observation]]:
    """An epoch as the database takes it."""
    return (
        EpochRecord(epoch=event.epoch, step=event.step, metrics=event.metrics),
        event.rank_updates,
        event.observations,
    )


def remove_states(folder: Path) -> None:
    """Remove the states of trainings that nobody will go on with, as the search is complete."""
    for path in folder.glob("individual-*"):
        remove_state(path)


def remove_state(individual: Path) -> None:
    """Remove the state of a training that nobody will go on with."""
    with contextlib.suppress(OSError):
        (individual / STATE_FILE).unlink(missing_ok=True)
    if (individual / STATE_FOLDER).is_dir():
        shutil.rmtree(individual / STATE_FOLDER, ignore_errors=True)


def holds_individuals(folder: Path) -> bool:
    """Are there evaluations in this folder?"""
    return next(folder.glob("individual-*"), None) is not None


def highest_number(folder: Path, kind: str) -> int:
    """Of the folders `KIND-NUMBER` in this one; 0: there are none."""
    numbers = (path.name.rpartition("-")[2] for path in folder.glob(f"{kind}-*"))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


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
    retries, aims = search.search_settings().retries, search.aims()
    for path in sorted(folder.glob("individual-*")):
        try:
            yield from _read_history(path, search, aims, retries)
        except FolderError as error:
            yield str(error)


def _read_history(
    folder: Path, search: SearchRecord, aims: Aims, retries: int
) -> Iterator[IndividualHistory | str]:
    individual = read_record(folder / INDIVIDUAL_FILE, IndividualRecord)
    belongs = Path(individual_folder(str(folder.parent), individual.id))
    if (individual.search_id, folder) != (search.id, belongs):
        raise FolderError(f"{folder} is not where individual {individual.id} belongs")
    attempts = sorted(folder.glob("attempt-*"), key=lambda path: (len(path.name), path.name))
    evaluations, repeat, cost_s = list[EvaluationHistory](), True, 0.0
    for path in attempts:
        try:
            failures = num_failures(history.evaluation for history in evaluations)
            ending = read_ending(
                path, aims, individual.hyperparameters, failures=failures, retries=retries
            )
            told = ending is not None
            if ending is None:
                lost = Outcome(status=Status.LOST, reason="no result in its folder")
                ending = Ending(outcome=lost, repeat=True)
            history = _read_evaluation(path, individual, ending.outcome)
            evaluations.append(history)
            cost_s += (history.evaluation.duration_s or 0.0) if told else 0.0
            repeat = ending.repeat
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
        objectives=last.objectives,
        constraints=last.constraints,
        violation=last.violation,
        num_seeds=int(last.fitness is not None),
        cost_s=cost_s,
        evaluation=last,
    )
    yield IndividualHistory(individual=individual, evaluations=evaluations)


def _read_evaluation(
    folder: Path, individual: IndividualRecord, outcome: Outcome
) -> EvaluationHistory:
    """An evaluation that came to this outcome."""
    stored = read_record(folder / EVALUATION_FILE, EvaluationRecord)
    place = (individual.id, f"attempt-{stored.attempt}")
    if (stored.individual_id, folder.name) != place:
        raise FolderError(f"{folder} is not where evaluation {stored.id} belongs")
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
        device=(started and started.device) or stored.device,
        last_epoch=max((epoch.epoch for epoch in epochs), default=None),
        **vars(outcome),
    )
    return EvaluationHistory(
        evaluation=evaluation, epochs=epochs, rank_updates=updates, observations=observations
    )


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
