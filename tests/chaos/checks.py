"""What must hold after all faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from oialr_search.analysis.export import export
from oialr_search.evaluation.files import OUTCOME_FILE, read_ending
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import EvaluationRecord, IndividualRecord, SearchRecord, Status
from oialr_training.protocol import RESULT_FILE, Epoch, Event
from oialr_training.tasks import validate_training
from oialr_training.training import set_up, train
from oialr_training.yaml_files import parse_yaml

Finished = dict[tuple[int, int], Mapping[str, float]]
"""(individual, attempt) → metrics."""


def finished_in(folder: Path, search: SearchRecord) -> Finished:
    """The evaluations that have completed, as their files say."""
    finished: Finished = {}
    for path in folder.glob("individual-*/attempt-*"):
        ending = read_ending(path, search.aims(), {}, failures=0, retries=1)
        if ending is not None and ending.outcome.status is Status.COMPLETED:
            number = int(path.parent.name.split("-")[1]), int(path.name.split("-")[1])
            finished[number] = ending.outcome.metrics
    return finished


def check_database(storage: Storage, search: SearchRecord, total: int) -> None:
    """The total is exact, each individual is there once and has one result."""
    individuals = storage.individuals(search.id)
    assert len(individuals) == total
    places = Counter((i.island, i.island_rank, i.generation) for i in individuals)
    assert max(places.values()) == 1, places.most_common(3)
    assert {i.status for i in individuals} == {Status.COMPLETED}
    counts = storage.progress(search.id).counts
    assert counts == {s: total if s is Status.COMPLETED else 0 for s in Status}
    assert not storage.unfinished(search.id)
    numbers = []
    for individual in individuals:
        attempts = storage.evaluations(individual.id)
        assert [a.attempt for a in attempts] == list(range(1, len(attempts) + 1))
        statuses = [attempt.status for attempt in attempts]
        assert statuses.count(Status.COMPLETED) == 1, (individual.id, statuses)
        assert statuses[-1] is Status.COMPLETED, (individual.id, statuses)
        assert not {Status.RUNNING, Status.QUEUED} & set(statuses)
        assert attempts[-1].fitness == individual.fitness
        assert len(storage.epochs(attempts[-1].id)) > 0
        numbers += [a.finish_number for a in attempts if a.finish_number is not None]
    assert len(numbers) == len(set(numbers))
    assert max(numbers) == storage.last_finish_number(search.id)


def check_nothing_was_lost(storage: Storage, finished: Finished, damaged: set[Path]) -> None:
    """What had finished when a launch ended is the result; it was not evaluated again."""
    for (individual_id, attempt), metrics in finished.items():
        attempts = storage.evaluations(individual_id)
        folder = Path(attempts[-1].folder).with_name(f"attempt-{attempt}")
        if {folder / OUTCOME_FILE, folder / RESULT_FILE} & damaged:
            continue  # perhaps before a launch had read it
        assert attempts[-1].attempt == attempt, f"individual {individual_id} was repeated"
        assert dict(attempts[-1].metrics) == dict(metrics)


def check_folders(storage: Storage, search: SearchRecord, damaged: set[Path]) -> None:
    """The folders say what the database says, where they were not damaged."""
    for individual in storage.individuals(search.id):
        attempt = storage.evaluations(individual.id)[-1]
        folder = Path(attempt.folder)
        ending = read_ending(folder, search.aims(), {}, failures=0, retries=1)
        if ending is None:
            assert {folder / OUTCOME_FILE, folder / RESULT_FILE} & damaged, folder
            continue
        assert ending.outcome.fitness == attempt.fitness
        assert dict(ending.outcome.metrics) == dict(attempt.metrics)


def check_result(storage: Storage, search: SearchRecord, individual: IndividualRecord) -> None:
    """An undisturbed training of the same configuration comes to the same digits."""
    config = validate_training(parse_yaml(export(storage, search, individual), "export"), "export")
    events = list[Event]()
    with _threads(config.num_threads or 1):
        completed = train(set_up(config, config.load_data(None)), events.append).completed
    evaluation = storage.evaluations(individual.id)[-1]
    assert _without_times(completed.metrics) == _without_times(evaluation.metrics), individual.id
    assert completed.trainable_percent == evaluation.trainable_percent
    _check_epochs(storage, evaluation, events)


def _check_epochs(storage: Storage, evaluation: EvaluationRecord, events: list[Event]) -> None:
    """So does each epoch, also those taken over from an earlier attempt."""
    undisturbed = {e.epoch: _without_times(e.metrics) for e in events if isinstance(e, Epoch)}
    stored = {e.epoch: _without_times(e.metrics) for e in storage.epochs(evaluation.id)}
    assert stored == undisturbed, evaluation.id


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _without_times(metrics: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if not k.endswith("_s")}


def check_import(storage: Storage, search: SearchRecord, url: str, damaged: set[Path]) -> None:
    """A database made of the folders has the same individuals, but for those damaged."""
    spoilt = {
        int(name[11:]) for path in damaged for name in path.parts if name[:11] == "individual-"
    }
    originals = {i.id: i for i in storage.individuals(search.id)}
    with open_storage(url, read_only=True) as other:
        again = other.find_search(search.name)
        assert again is not None
        assert again.evaluations_total == search.evaluations_total
        imported = other.individuals(again.id)
        assert originals.keys() - {i.id for i in imported} <= spoilt
        for individual in imported:
            original = originals[individual.id]
            assert dict(individual.genes) == dict(original.genes)
            assert individual.hyperparameters == original.hyperparameters
            if individual.status is Status.COMPLETED:
                assert individual.fitness == original.fitness


def is_repeated(storage: Storage, individual: IndividualRecord) -> bool:
    """Did it take more than one attempt?"""
    return len(storage.evaluations(individual.id)) > 1
