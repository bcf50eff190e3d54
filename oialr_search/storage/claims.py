"""How an evaluation is dealt out and closed: the statements behind `Storage.claim` and its like.

What a controller calls for every evaluation costs the same whatever the search has grown to: it
reads by index, and what must be counted is counted as it changes (`islands` and the
`last_finish_number` of `searches`), under the lock on the search's row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oialr_search.space.given import Given
from oialr_search.storage.reading import (
    COUNTS,
    as_evaluation,
    has_status,
    parameter,
    read_individuals,
)
from oialr_search.storage.records import (
    CONFIRM,
    Claim,
    EvaluationRecord,
    IndividualRecord,
    Outcome,
    Proposal,
    Runner,
    Status,
    StorageError,
    individual_folder,
    num_failures,
    utc_now,
)
from oialr_search.storage.schema import (
    evaluations,
    individuals,
    islands,
    launches,
    metrics,
    migrations,
    observations,
    rank_updates,
    row_of,
    searches,
)

UNFINISHED = (Status.QUEUED, Status.RUNNING)
GIVEN_RANK = -1
"""The island rank of those that no rank bred: a person named them."""
MEASURED = ("fitness", "violation", "objectives", "constraints")
"""What completed evaluations of an individual have come to."""
INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _with_id(table: sa.Table, name: str = "id") -> sa.ColumnElement[bool]:
    return table.c.id == parameter(name)


LOCK_SEARCH = (
    sa.select(searches.c.id)
    .where(_with_id(searches, "search_id"))
    .with_for_update(key_share=True)  # who only refers to the search need not wait
)
CENSUS = sa.select(
    sa.func.coalesce(sa.func.sum(sum(COUNTS[1:], COUNTS[0])), 0).label("num_individuals"),
    sa.func.coalesce(sa.func.sum(islands.c.lost + islands.c.queued), 0).label("num_waiting"),
    sa.select(evaluations.c.id)
    .where(
        evaluations.c.launch_id == parameter("launch_id"),
        evaluations.c.world_rank == parameter("world_rank"),
        has_status(evaluations, Status.RUNNING),
    )
    .order_by(evaluations.c.id)
    .limit(1)
    .scalar_subquery()
    .label("running_id"),
    *(
        sa.select(sa.func.min(individuals.c.id))
        .where(individuals.c.search_id == parameter("search_id"), has_status(individuals, status))
        .scalar_subquery()
        .label(f"{status}_id")
        for status in (Status.LOST, Status.QUEUED)
    ),
    sa.select(sa.func.max(launches.c.id))
    .where(launches.c.search_id == parameter("search_id"))
    .scalar_subquery()
    .label("last_launch_id"),
).where(islands.c.search_id == parameter("search_id"))

INSERT_INDIVIDUAL = sa.insert(individuals).returning(individuals)
INSERT_EVALUATION = sa.insert(evaluations).returning(evaluations)
UPDATE_INDIVIDUAL = sa.update(individuals).where(_with_id(individuals))
REPEAT_INDIVIDUAL = UPDATE_INDIVIDUAL.returning(individuals)
GO_ON = REPEAT_INDIVIDUAL.where(
    individuals.c.search_id == parameter("search_id"), has_status(individuals, Status.PRUNED)
)
UPDATE_EVALUATION = sa.update(evaluations).where(_with_id(evaluations))
UPDATE_SEARCH = sa.update(searches).where(_with_id(searches))
CLOSE_EVALUATION = UPDATE_EVALUATION.where(evaluations.c.status == Status.RUNNING)
RAISE_LAST_EPOCH = UPDATE_EVALUATION.where(
    sa.or_(evaluations.c.last_epoch.is_(None), evaluations.c.last_epoch < parameter("epoch"))
)
ATTEMPTS = (
    sa.select(*evaluations.c["attempt", "status", "num_threads"])
    .where(evaluations.c.individual_id == parameter("individual_id"))
    .order_by(evaluations.c.attempt)
)
MEASUREMENTS = (
    sa.select(*evaluations.c[MEASURED])
    .join_from(evaluations, individuals)
    .where(
        sa.or_(
            individuals.c.id == parameter("individual_id"),
            individuals.c.repeat_of == parameter("individual_id"),
        ),
        evaluations.c.fitness.is_not(None),
    )
    .order_by(evaluations.c.id)
)
REPEATED = sa.select(*individuals.c["genes", "hyperparameters"]).where(_with_id(individuals))
REPEATED_SO = sa.select(sa.func.count()).where(
    individuals.c.repeat_of == parameter("individual_id"), individuals.c.seed == parameter("seed")
)
VISITS = (
    sa.update(migrations)
    .where(migrations.c.individual_id == parameter("individual_id"))
    .values(fitness=parameter("fitness"), violation=parameter("violation"))
)
RUNNING = sa.select(evaluations).where(_with_id(evaluations))
LOCK_SEARCH_OF_EVALUATION = (
    sa.select(
        *individuals.c["id", "search_id", "island", "repeat_of", "cost_s"],
        evaluations.c.started_at,
        searches.c.last_finish_number,
    )
    .select_from(
        evaluations.join(individuals, individuals.c.id == evaluations.c.individual_id).join(
            searches, searches.c.id == individuals.c.search_id
        )
    )
    .where(_with_id(evaluations))
    .with_for_update(of=searches, key_share=True)
)

LAST_LAUNCH = (
    sa.select(*launches.c["id", "num_islands"])
    .where(launches.c.search_id == parameter("search_id"))
    .order_by(launches.c.id.desc())
    .limit(1)
)
LAST_GIVEN = (
    sa.select(individuals.c.island, sa.func.max(individuals.c.generation))
    .where(
        individuals.c.search_id == parameter("search_id"),
        individuals.c.island_rank == parameter("island_rank"),
    )
    .group_by(individuals.c.island)
)
# As text, which both databases keep as it was written: the order of the space, the same digits.
SAME_VALUES = sa.select(sa.func.min(individuals.c.id)).where(
    individuals.c.search_id == parameter("search_id"),
    sa.cast(individuals.c.hyperparameters, sa.Text)
    == sa.cast(sa.bindparam("the_values", type_=sa.JSON), sa.Text),
)


def _insert_new(dialect: str, table: sa.Table) -> Any:
    """Return a statement that inserts the rows that are not there yet."""
    return INSERTS[dialect](table).on_conflict_do_nothing()


INSERT_NEW: Mapping[tuple[str, str], Any] = {
    (dialect, table.name): _insert_new(dialect, table)
    for dialect in INSERTS
    for table in (metrics, rank_updates, observations, migrations, islands)
}


def lock_search(connection: sa.Connection, search_id: int) -> None:
    """Make others wait who are to change the same search; SQLite has only one writer anyway."""
    if connection.dialect.name != "sqlite":
        connection.execute(LOCK_SEARCH, {"the_search_id": search_id})


def _move(dialect: str, left: Status | None, entered: Status) -> Any:
    """Return a statement that takes an island's individual from one count to another."""
    changes = {entered.value: islands.c[entered.value] + 1}
    if left is not None:
        changes[left.value] = islands.c[left.value] - 1
        return (
            sa.update(islands)
            .where(
                islands.c.search_id == parameter("search_id"),
                islands.c.island == parameter("island"),
            )
            .values(changes)
        )
    first = {"search_id": parameter("search_id"), "island": parameter("island"), entered.value: 1}
    insert = INSERTS[dialect](islands).values(first)
    return insert.on_conflict_do_update(index_elements=["search_id", "island"], set_=changes)


MOVES: Mapping[tuple[str, Status | None, Status], Any] = {
    (dialect, left, entered): _move(dialect, left, entered)
    for dialect in INSERTS
    for left, entered in [
        (None, Status.RUNNING),
        (None, Status.QUEUED),
        (Status.LOST, Status.RUNNING),
        (Status.QUEUED, Status.RUNNING),
        (Status.PRUNED, Status.RUNNING),
        *((Status.RUNNING, status) for status in Status if status not in UNFINISHED),
    ]
}


def claim(
    connection: sa.Connection,
    search_id: int,
    proposal: Proposal,
    total: int,
    runner: Runner,
    go_on: int | None = None,
) -> Claim | None:
    """See `Storage.claim`."""
    asked = {
        "the_search_id": search_id,
        "the_launch_id": runner.launch_id,
        "the_world_rank": runner.world_rank,
    }
    lock_search(connection, search_id)
    census = connection.execute(CENSUS, asked).one()
    if runner.launch_id < (census.last_launch_id or 0):
        raise StorageError(
            f"launch {census.last_launch_id} has taken the search over: "
            f"launch {runner.launch_id} ends"
        )
    claimable = max(total - census.num_individuals, 0) + census.num_waiting
    if census.running_id is not None:
        return _claimed_before(connection, census.running_id, claimable)
    left: Status | None = None
    if census.lost_id is not None or census.queued_id is not None:
        left = Status.QUEUED if census.lost_id is None else Status.LOST
        waits = {"the_id": census.lost_id or census.queued_id, "finished_at": None}
        individual = connection.execute(REPEAT_INDIVIDUAL, waits | {"status": Status.RUNNING}).one()
        earlier = _attempts_of(connection, individual.id)
    elif go_on is not None and (pruned := _gone_on_with(connection, search_id, go_on)):
        left, individual = Status.PRUNED, pruned
        earlier = _attempts_of(connection, individual.id)
    elif not claimable:
        return None
    else:
        if proposal.repeat_of is not None and _is_repeated(connection, proposal):
            return None
        values = vars(proposal) | {
            "search_id": search_id,
            "launch_id": runner.launch_id,
            "status": Status.RUNNING,
            "created_at": utc_now(),
        }
        individual = connection.execute(INSERT_INDIVIDUAL, values).one()
        earlier = []
    _count(connection, search_id, individual.island, left, Status.RUNNING)
    evaluation = _start_evaluation(connection, individual, earlier, runner)
    return Claim(
        individual=IndividualRecord(**individual._mapping, evaluation=evaluation),
        evaluation=evaluation,
        repeated=left is not None,
        failures=num_failures(earlier),
        remaining=claimable - (left is not Status.PRUNED),
        continued=_was_pruned(earlier),
    )


def queue(
    connection: sa.Connection, search_id: int, given: Sequence[Given]
) -> list[tuple[int, bool]]:
    """See `Storage.queue`."""
    enqueue = _queue_of(connection, search_id)
    found = []
    for each in given:
        values = {"the_search_id": search_id, "the_values": dict(each.hyperparameters)}
        known = connection.scalar(SAME_VALUES, values)
        if known is not None:
            found.append((known, False))
            continue
        named = {"genes": dict(each.genes), "hyperparameters": dict(each.hyperparameters)}
        found.append((enqueue(named | {"origin": "given"}), True))
    return found


def queue_repeats(
    connection: sa.Connection, search_id: int, repeats: Sequence[tuple[int, int]]
) -> None:
    """See `Storage.queue_repeats`."""
    enqueue = _queue_of(connection, search_id)
    for individual_id, seed in repeats:
        first = connection.execute(REPEATED, {"the_id": individual_id}).one()
        again = {"origin": CONFIRM, "repeat_of": individual_id, "seed": seed}
        enqueue(dict(first._mapping) | again)


def _queue_of(connection: sa.Connection, search_id: int) -> Callable[[dict[str, Any]], int]:
    """Return what queues an individual and returns its id; islands get them in turn."""
    lock_search(connection, search_id)
    launch = connection.execute(LAST_LAUNCH, {"the_search_id": search_id}).one_or_none()
    if launch is None:
        raise StorageError("nothing can be queued before the first launch of a search")
    asked = {"the_search_id": search_id, "the_island_rank": GIVEN_RANK}
    numbers = dict.fromkeys(range(launch.num_islands), 0) | {
        island: generation + 1
        for island, generation in connection.execute(LAST_GIVEN, asked)
        if island < launch.num_islands
    }

    def enqueue(named: dict[str, Any]) -> int:
        island = min(numbers, key=lambda island: (numbers[island], island))
        row = {
            "search_id": search_id,
            "launch_id": launch.id,
            "island": island,
            "island_rank": GIVEN_RANK,
            "generation": numbers[island],
            "parents": [],
            "status": Status.QUEUED,
            "created_at": utc_now(),
            **named,
        }
        numbers[island] += 1
        _count(connection, search_id, island, None, Status.QUEUED)
        return int(connection.execute(INSERT_INDIVIDUAL, row).one().id)

    return enqueue


def finish(
    connection: sa.Connection, evaluation_id: int, outcome: Outcome, *, repeat: bool
) -> bool:
    """See `Storage.finish_evaluation`."""
    assert not (repeat and outcome.status is Status.COMPLETED)
    status = Status.LOST if repeat else outcome.status
    found = connection.execute(LOCK_SEARCH_OF_EVALUATION, {"the_id": evaluation_id}).one()
    number = found.last_finish_number + 1
    values = {"the_id": evaluation_id, **row_of(outcome), "finish_number": number}
    if not connection.execute(CLOSE_EVALUATION, values).rowcount:
        return False
    took_s = max((outcome.finished_at - found.started_at).total_seconds(), 0.0)
    connection.execute(
        UPDATE_INDIVIDUAL,
        {
            "the_id": found.id,
            "status": status,
            "finished_at": outcome.finished_at,
            "cost_s": found.cost_s + took_s,
            "num_seeds": int(outcome.fitness is not None),
            **{name: getattr(outcome, name) for name in MEASURED},
        },
    )
    if found.repeat_of is not None and outcome.fitness is not None:
        average(connection, found.repeat_of)
    connection.execute(UPDATE_SEARCH, {"the_id": found.search_id, "last_finish_number": number})
    _count(connection, found.search_id, found.island, Status.RUNNING, status)
    return True


def average(connection: sa.Connection, individual_id: int) -> None:
    """Make an individual's figures the means over its own measurement and its repeats'."""
    measured = connection.execute(MEASUREMENTS, {"the_individual_id": individual_id}).all()
    fitness, violation, objectives, constraints = zip(*measured, strict=True)
    values = {
        "fitness": statistics.fmean(fitness),
        "violation": statistics.fmean(violation),
        "objectives": [statistics.fmean(values) for values in zip(*objectives, strict=True)],
        "constraints": [statistics.fmean(values) for values in zip(*constraints, strict=True)],
        "fitness_deviation": statistics.stdev(fitness) if len(fitness) > 1 else None,
        "num_seeds": len(fitness),
    }
    connection.execute(UPDATE_INDIVIDUAL, {"the_id": individual_id, **values})
    visits = {f"the_{name}": values[name] for name in ("fitness", "violation")}
    connection.execute(VISITS, {"the_individual_id": individual_id, **visits})


def _is_repeated(connection: sa.Connection, proposal: Proposal) -> bool:
    """Tell whether another rank has been quicker: the same individual with the same seed."""
    asked = {"the_individual_id": proposal.repeat_of, "the_seed": proposal.seed}
    return bool(connection.scalar(REPEATED_SO, asked))


def _gone_on_with(connection: sa.Connection, search_id: int, individual_id: int) -> Any:
    """Take up a pruned individual again; None when another rank has, or it is none."""
    asked = {"the_id": individual_id, "the_search_id": search_id}
    again = {"status": Status.RUNNING, "finished_at": None}
    return connection.execute(GO_ON, asked | again).one_or_none()


def _was_pruned(attempts: Sequence[Any]) -> bool:
    return any(attempt.status is Status.PRUNED for attempt in attempts)


def _count(
    connection: sa.Connection, search_id: int, island: int, left: Status | None, entered: Status
) -> None:
    """Count an individual that is new or has another status."""
    move = MOVES[connection.dialect.name, left, entered]
    connection.execute(move, {"the_search_id": search_id, "the_island": island})


def _start_evaluation(
    connection: sa.Connection, individual: Any, earlier: Sequence[Any], runner: Runner
) -> EvaluationRecord:
    """Store the next attempt; a repeated one keeps the threads that its sums depend on."""
    values = vars(runner) | {"individual_id": individual.id}
    if individual.seed is not None:
        values["seed"] = individual.seed
    attempt = earlier[-1].attempt + 1 if earlier else 1
    folder = f"{individual_folder(values.pop('search_folder'), individual.id)}/attempt-{attempt}"
    if earlier:
        values["num_threads"] = earlier[-1].num_threads
    values |= {
        "attempt": attempt,
        "status": Status.RUNNING,
        "started_at": utc_now(),
        "folder": folder,
        "log_path": f"{folder}/log.txt",
        "metrics": {},
    }
    row = connection.execute(INSERT_EVALUATION, values).one()
    return as_evaluation(row)


def _claimed_before(connection: sa.Connection, evaluation_id: int, claimable: int) -> Claim:
    """Return what a runner had claimed when it was cut off."""
    evaluation = as_evaluation(connection.execute(RUNNING, {"the_id": evaluation_id}).one())
    [individual] = read_individuals(connection, individuals.c.id == evaluation.individual_id)
    earlier = _attempts_of(connection, individual.id)[:-1]
    return Claim(
        individual=individual,
        evaluation=evaluation,
        repeated=bool(earlier) or individual.island_rank == GIVEN_RANK,
        failures=num_failures(earlier),
        remaining=claimable,
        continued=_was_pruned(earlier),
    )


def _attempts_of(connection: sa.Connection, individual_id: int) -> Sequence[Any]:
    return connection.execute(ATTEMPTS, {"the_individual_id": individual_id}).all()
