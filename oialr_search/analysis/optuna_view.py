"""A search as an Optuna study, read from the database while it runs; nothing can be written.

search → study (with the search's id), individual → trial (with the individual's id). Trials are
numbered from 0 without gaps, in the order of the ids: since these only grow, a number never
changes. Only what can have changed is read again: individuals that ran or waited, new ones, and
those of which an evaluation has ended since. One that repeats another with another seed is no
trial: it is part of the other's mean.
"""

from __future__ import annotations

import copy
import math
import threading
from bisect import bisect_left
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from oialr_search.analysis.distributions import Space, params_of, space_of, widened
from oialr_search.space.fitness import fitness_of
from oialr_search.storage.database import Storage
from oialr_search.storage.records import IndividualRecord, SearchRecord, Status, StorageError
from oialr_training.errors import ConfigError

STATES = {
    Status.QUEUED: TrialState.WAITING,
    Status.RUNNING: TrialState.RUNNING,
    Status.COMPLETED: TrialState.COMPLETE,
    Status.PRUNED: TrialState.PRUNED,
    Status.FAILED: TrialState.FAIL,
    Status.TIMED_OUT: TrialState.FAIL,
    Status.LOST: TrialState.WAITING,
}
METRIC_NAMES = "study:metric_names"  # where Optuna looks for the objectives' names
CONSTRAINTS = "constraints"  # and for the excesses of constraints


@dataclass
class _Study:
    """What is known of a search; lists are replaced, never changed, once they are handed out."""

    search: SearchRecord
    space: Space
    trials: list[FrozenTrial] = field(default_factory=list)
    unfinished: frozenset[int] = frozenset()  # individuals
    last_id: int = 0
    last_finish: int | None = None

    def number_of(self, individual_id: int) -> int | None:
        """The trial number of an individual, None for an unknown one."""
        number = bisect_left(self.trials, individual_id, key=lambda trial: trial._trial_id)
        known = number < len(self.trials) and self.trials[number]._trial_id == individual_id
        return number if known else None


class SearchStorage(BaseStorage):
    """Optuna's storage over ours; safe to share among threads. Its writing methods all raise."""

    def __init__(self, storage: Storage) -> None:
        """Read from a database that the caller keeps open."""
        self._storage = storage
        self._studies: dict[int, _Study] = {}
        self._lock = threading.Lock()

    def get_study_id_from_name(self, study_name: str) -> int:
        """The id of the search."""
        search = self._storage.find_search(study_name)
        if search is None:
            raise KeyError(f"no search named {study_name!r}")
        return search.id

    def get_study_name_from_id(self, study_id: int) -> str:
        """The name of the search."""
        return self._search(study_id).name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """The fitness is minimised, or each of the objectives."""
        return _directions(self._search(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """What the database says of the search as a whole."""
        return _attributes_of_search(self._search(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """What the fitness is made of."""
        return _names_of_fitness(self._search(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        """All searches, by id."""
        return [
            FrozenStudy(
                study_name=search.name,
                direction=None,
                directions=_directions(search),
                user_attrs=_attributes_of_search(search),
                system_attrs=_names_of_fitness(search),
                study_id=search.id,
            )
            for search in sorted(self._storage.searches(), key=lambda search: search.id)
        ]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """An individual as it is now."""
        record = self._storage.individual(trial_id)
        if record is None:
            raise KeyError(f"no individual {trial_id}")
        if record.repeat_of is not None:
            raise KeyError(f"individual {trial_id} is no trial: it repeats {record.repeat_of}")
        study = self._refreshed(record.search_id)
        number = study.number_of(trial_id)
        assert number is not None
        return study.trials[number]

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """All individuals of a search as they are now; a list that later calls do not change."""
        trials = self._refreshed(study_id).trials
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def space(self, study_id: int) -> Space:
        """The distributions that all trials of a search share."""
        return self._refreshed(study_id).space

    def _search(self, study_id: int) -> SearchRecord:
        """The search as it was when it was first asked for."""
        with self._lock:
            if study_id not in self._studies:
                for search in self._storage.searches():
                    if search.id not in self._studies:
                        self._studies[search.id] = _Study(search, space_of(search.space))
            if study_id not in self._studies:
                raise KeyError(f"no search {study_id}")
            return self._studies[study_id].search

    def _refreshed(self, study_id: int) -> _Study:
        search = self._search(study_id)
        with self._lock:
            known = self._studies[study_id]
            # One that was pruned ends again when it is gone on with; one may have another mean.
            last_finish, finished = self._storage.finished_after(study_id, known.last_finish)
            again = known.unfinished | {number for number in finished if number <= known.last_id}
            records = self._storage.individuals_after(study_id, known.last_id, again)
            if records:
                evaluations = [record.evaluation.id for record in records if record.evaluation]
                epochs = self._storage.metric_by_epoch(search.metric, evaluations)
                self._studies[study_id] = known = _with_records(known, records, epochs)
            known.last_finish = last_finish
            return self._studies[study_id]

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Refused."""
        _refuse()

    def delete_study(self, study_id: int) -> None:
        """Refused."""
        _refuse()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Refused."""
        _refuse()

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Refused."""
        _refuse()

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Refused."""
        _refuse()

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Refused."""
        _refuse()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()


def _refuse() -> NoReturn:
    raise StorageError("a search seen through Optuna is read-only: `oialr-search run` writes it")


def _attributes_of_search(search: SearchRecord) -> dict[str, Any]:
    return {
        "task": search.task,
        "metric": search.metric,
        "individuals in total": search.evaluations_total,
        "seed": search.seed,
        "oialr_search": search.version,
        "created_at": search.created_at.isoformat(timespec="seconds"),
    }


def _directions(search: SearchRecord) -> list[StudyDirection]:
    return [StudyDirection.MINIMIZE] * max(len(search.objectives), 1)


def _names_of_fitness(search: SearchRecord) -> dict[str, Any]:
    try:
        aims = search.aims()
        labels = [aim.label for aim in aims.objectives] or [f"fitness ({aims.fitness.label})"]
    except ConfigError:  # of a task that is unknown here
        labels = [f"fitness ({search.metric})"]
    return {METRIC_NAMES: labels}


def _with_records(
    known: _Study, records: Sequence[IndividualRecord], epochs: Mapping[int, Mapping[int, float]]
) -> _Study:
    """What is known, and what was read of individuals that are new or have changed, by id."""
    last_id = max(known.last_id, *(record.id for record in records))
    unfinished = frozenset(r.id for r in records if not STATES[r.status].is_finished())
    records = [record for record in records if record.repeat_of is None]
    found = [params_of(record, known.space) for record in records]
    space = widened(known.space, found)
    trials = list(known.trials)
    if space is not known.space:
        trials = [_with_space(trial, space) for trial in trials]
    for record, params in zip(records, found, strict=True):
        number = known.number_of(record.id)
        values = epochs.get(record.evaluation.id, {}) if record.evaluation else {}
        reported = _as_fitness(values, known.search)
        place = len(trials) if number is None else number
        trial = _trial(place, record, params, space, reported, len(known.search.objectives))
        if number is None:
            trials.append(trial)
        elif trials[number] != trial:
            trials[number] = trial  # an unchanged one stays the same object
    return _Study(known.search, space, trials, unfinished, last_id)


def _with_space(trial: FrozenTrial, space: Space) -> FrozenTrial:
    trial = copy.copy(trial)
    trial.distributions = _of(trial.params, space)
    return trial


def _of(params: Mapping[str, Any], space: Space) -> Space:
    """The distributions of a trial: mostly the very same mapping for all, which spares memory."""
    return space if len(params) == len(space) else {name: space[name] for name in params}


def _as_fitness(epochs: Mapping[int, float], search: SearchRecord) -> dict[int, float]:
    """The metric by epoch in the direction of the fitness; NaN stays."""
    values, metrics = {}, search.metrics()
    for epoch, value in epochs.items():
        fitness = fitness_of({search.metric: value}, search.metric, metrics)
        values[epoch] = math.nan if fitness is None else fitness
    return values


def _trial(
    number: int,
    record: IndividualRecord,
    params: dict[str, Any],
    space: Space,
    epochs: dict[int, float],
    num_objectives: int,
) -> FrozenTrial:
    """An individual as a trial; a hyperparameter that is none of the space is an attribute."""
    state, evaluation = STATES[record.status], record.evaluation
    others = {n: v for n, v in record.hyperparameters.items() if n not in params}
    values = None if record.fitness is None else [record.fitness]
    reported = list(epochs.values())[-1:]
    if num_objectives:  # of a pruned one what it had come to, if that is known
        values = list(record.objectives) or None
    elif state is TrialState.PRUNED and reported and math.isfinite(reported[0]):
        values = reported  # as Optuna does
    started_at = evaluation.started_at if evaluation else record.created_at
    finished_at = record.finished_at or (evaluation.finished_at if evaluation else None)
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=values,
        datetime_start=None if state is TrialState.WAITING else _local(started_at),
        datetime_complete=_local(finished_at or started_at) if state.is_finished() else None,
        params=params,
        distributions=_of(params, space),
        user_attrs=_attributes_of(record) | others,
        system_attrs={CONSTRAINTS: list(record.constraints)} if record.constraints else {},
        intermediate_values=epochs,
        trial_id=record.id,
    )


def _attributes_of(record: IndividualRecord) -> dict[str, Any]:
    """What else is known of an individual, as far as it is known."""
    attributes: dict[str, Any] = {
        "individual": record.id,
        "status": record.status.value,
        "island": record.island,
        "island_rank": record.island_rank,
        "generation": record.generation,
        "origin": record.origin,
        "parents": list(record.parents),
        "deviation": record.fitness_deviation,
        "seeds": record.num_seeds if record.num_seeds > 1 else None,
    }
    if evaluation := record.evaluation:
        attributes |= {
            **evaluation.metrics,
            "trainable_percent": evaluation.trainable_percent,
            "compression_percent": evaluation.compression_percent,
            "attempt": evaluation.attempt,
            "epochs": evaluation.last_epoch,
            "duration_s": evaluation.duration_s,
            "reason": evaluation.reason,
            "host": evaluation.hostname,
            "device": evaluation.device,
            "log": evaluation.log_path,
        }
    return {name: value for name, value in attributes.items() if value is not None}


def _local(at: datetime) -> datetime:
    """A time as Optuna has it: of this machine's zone, which goes without saying."""
    return at.astimezone().replace(tzinfo=None)
