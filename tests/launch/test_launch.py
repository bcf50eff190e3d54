"""A launch from its first look at the database to its last word, on any number of ranks."""

from __future__ import annotations

import fcntl
import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from oialr_search import exit_codes
from oialr_search.evaluation.evaluator import Evaluator
from oialr_search.evaluation.worker_process import WorkerDied
from oialr_search.launch import launch
from oialr_search.launch.engines import Engine, Knowledge, Offspring
from oialr_search.space.search_file import SearchFile, load_search
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Status, StorageUnavailable
from oialr_training.errors import ConfigError
from oialr_training.protocol import Evaluate, Failed, Prepare, Ready, Stop, Stopped

from ..conftest import DIGITS
from ..evaluation.scripted import Line, Silence, epoch, started
from ..storage.storage_examples import new_launch
from .conftest import TRAINS, Launches, all_train, search_file


def told(captured: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    """The lines of standard output and standard error."""
    out, err = captured.readouterr()
    return out.splitlines(), err.splitlines()


def test_exactly_the_individuals_asked_for_on_all_islands(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        launches(4, evaluations=30, islands=2, population_size=4, engine="propulate")
        == exit_codes.FINISHED
    )
    storage, search = launches.stored()
    with storage:
        individuals = storage.individuals(search.id)
        migrations = storage.migrations(search.id)
        (launched,) = storage.launches(search.id)
        finished = [e.finish_number for e in storage.finished_since(search.id)]
    assert [i.id for i in individuals] == list(range(1, 31))
    assert {i.status for i in individuals} == {Status.COMPLETED}
    assert {i.origin for i in individuals} == {"random", "bred"}
    places = {(i.island, i.island_rank, i.generation) for i in individuals}
    assert len(places) == 30
    assert {place[:2] for place in places} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    home = {i.id: i.island for i in individuals}
    assert migrations
    assert all(home[m.individual_id] == m.source_island != m.target_island for m in migrations)
    assert (launched.exit_code, launched.world_size, launched.num_islands) == (0, 4, 2)
    assert finished == list(range(1, 31))
    lines, errors = told(capsys)
    assert lines[0] == "preparing 4 worker(s): imports and data ..."
    numbers = [re.findall(r"\[(\d+)/30\] .*fitness \d", line) for line in lines[1:]]
    assert numbers == [[str(n)] for n in range(1, 31)]
    assert errors == []
    names = {path.name for path in (launches.folder / "minivit_digits").iterdir()}
    records = {".lock", "search.json", "launch-000001.json"}
    books = {f"migrations-{island}.jsonl" for island in (0, 1)}
    assert names == records | books | {f"individual-{n:06d}" for n in range(1, 31)}


@pytest.mark.parametrize("engine", ["screened", "sobol", "propulate", "tpe"])
def test_conditions_hold_in_all_that_is_trained(launches: Launches, engine: str) -> None:
    """Between hyperparameters, and of those that count only where another has its value."""
    space = {
        "optimizer.lr": "{low: 1.0e-3, high: 1.0e-2, scale: log}",
        "scheduler.warmup_epochs": "{low: 0, high: 5}",
        "epochs": "{low: 2, high: 8, step: 2}",
        "oialr.fused_projections": "{choices: [together, apart]}",
        "model.depth": "{low: 1, high: 4, when: {oialr.fused_projections: apart}}",
    }
    given = [f"space.{name}={entry}" for name, entry in space.items()]
    given += ["search.constraints=scheduler.warmup_epochs < epochs / 2"]
    given += [f"search.{name}={value}" for name, value in
              {"engine": engine, "evaluations": 30, "islands": 1}.items()]  # fmt: skip
    file = load_search(DIGITS, given)
    assert launches(2, load=lambda: file) == exit_codes.FINISHED
    storage, search = launches.stored()
    with storage:
        trained = [i.hyperparameters for i in storage.individuals(search.id)]
    assert len(trained) == 30
    assert all(t["scheduler.warmup_epochs"] < t["epochs"] / 2 for t in trained)
    assert all(("model.depth" in t) == (t["oialr.fused_projections"] == "apart") for t in trained)
    assert {t["oialr.fused_projections"] for t in trained} == {"together", "apart"}
    assert len({tuple(t.items()) for t in trained}) > 20


def test_a_setting_without_effect_is_a_warning(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launches(2, evaluations=2, islands=1, engine="random", mutation_sigma=0.1) == 0
    _, errors = told(capsys)
    assert errors == [
        "warning: `search.mutation_sigma` has no effect without the engine `propulate`"
    ]


def test_messages_may_take_their_time(launches: Launches) -> None:
    """As long as an evaluation and more; nobody leaves while one is under way."""
    assert launches(3, evaluations=12, islands=3, latency_s=2.0, seed=5) == 0
    storage, search = launches.stored()
    with storage:
        assert storage.progress(search.id).counts[Status.COMPLETED] == 12
        assert storage.migrations(search.id)
    assert all(mailbox == [] for mailbox in launches.world.mailboxes)


def test_the_same_launch_again_proposes_the_same(launches: Launches, tmp_path: Path) -> None:
    genes = []
    for name in ("first", "second"):
        launches.move_to(tmp_path / name)
        launches(1, evaluations=8, islands=1, engine="propulate", population_size=3)
        storage, search = launches.stored()
        with storage:
            genes.append([i.genes for i in storage.individuals(search.id)])
    assert genes[0] == genes[1]


@pytest.mark.parametrize("engine", ["propulate", "screened"])
def test_a_killed_and_resumed_search_proposes_what_an_undisturbed_one_does(
    launches: Launches, tmp_path: Path, engine: str
) -> None:
    """On one rank to the digit: once while it fills its population, once while it breeds."""
    proposed = []
    for kills in ((), (2.3, 8.3)):
        launches.move_to(tmp_path / f"killed {len(kills)} times")
        for after_s in kills:
            kill = {after_s: lambda: launches.stops[0].request(at_once=True)}
            code = launches(1, at=kill, evaluations=24, islands=1, engine=engine)
            assert code == exit_codes.STOPPED
        assert launches(1, evaluations=24, islands=1, engine=engine) == exit_codes.FINISHED
        storage, search = launches.stored()
        with storage:
            individuals = storage.individuals(search.id)
            attempts = [len(storage.evaluations(i.id)) for i in individuals]
        assert sum(attempts) == 24 + len(kills)
        proposed.append([(i.genes, i.parents, i.origin) for i in individuals])
    assert proposed[0] == proposed[1]


class TestRefused:
    """A launch that cannot begin says so once, and leaves nothing behind."""

    @pytest.fixture(autouse=True)
    def no_database(self, launches: Launches) -> None:
        launches.database.unlink()

    def test_too_few_ranks(self, launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
        assert launches(2, islands=3) == exit_codes.USAGE
        _, (line,) = told(capsys)
        assert line == (
            "error: 3 islands need at least 3 ranks, got 2: start "
            "`mpiexec -n 3 oialr-search run ...`, or ask for `--islands 2`"
        )
        assert not list(launches.folder.iterdir())

    def test_a_file_that_is_wrong(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Only rank 0 reads it; all end alike."""
        read: list[int] = []

        def load() -> SearchFile:
            read.append(1)
            raise ConfigError("one mistake\nand another")

        assert launches(3, load=load) == exit_codes.CONFIG
        assert told(capsys)[1] == ["error: one mistake", "error: and another"]
        assert read == [1]

    def test_another_mpi_than_the_launcher_s(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert launches(1, environment={"PMI_SIZE": "4"}) == exit_codes.CONFIG
        _, (line,) = told(capsys)
        assert "sees 1 rank(s) of 4" in line

    def test_a_gpu_that_is_not_there(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = search_file()
        wanting = replace(file, training=file.training.model_copy(update={"device": "cuda"}))
        assert launches(2, load=lambda: wanting) == exit_codes.CONFIG
        _, (line,) = told(capsys)
        assert "no GPU is visible on" in line

    def test_a_worker_that_is_not_ready(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The data are missing on one of the nodes."""

        def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
            missing = Failed(reason="no data in /data", at=0.0, cause="configuration")
            yield [Prepare, Silence(3), missing if world_rank == 1 else Ready()]

        assert launches(3, scripts) == exit_codes.CONFIG
        assert told(capsys)[1] == ["error: no data in /data"]
        assert not list(launches.folder.iterdir())
        assert all(workers.started[0].killed for workers in launches.workers)

    def test_a_stop_while_it_prepares(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
            yield [Prepare, Silence(9), Ready()]

        code = launches(2, scripts, at={2.0: lambda: launches.stops[1].request()})
        assert code == exit_codes.STOPPED
        assert told(capsys)[1] == ["error: stopped before the first evaluation"]
        assert not list(launches.folder.iterdir())

    def test_a_folder_that_is_no_folder(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (launches.folder / "minivit_digits").touch()
        assert launches(2) == exit_codes.CONFIG
        _, (line,) = told(capsys)
        assert line.startswith("error: cannot write to the search folder")


def test_who_is_still_preparing_is_told_every_30_s(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_s = (10.0, 70.0, 2.0, 40.0)

    def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
        slowly = [Prepare, Silence(needs_s[world_rank]), Ready(), *TRAINS[1:]]
        return itertools.chain([slowly], all_train(world_rank))

    assert launches(4, scripts, evaluations=4, islands=1) == 0
    assert told(capsys)[0][:3] == [
        "preparing 4 worker(s): imports and data ...",
        "after 30 s still preparing: world rank(s) 1, 3",
        "after 60 s still preparing: world rank(s) 1",
    ]


def test_preparing_has_a_limit(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
        yield [Prepare, Silence(99), Ready()] if world_rank else [Prepare, Ready()]

    assert launches(2, scripts, preparation_limit_s=50.0) == exit_codes.CONFIG
    _, (line,) = told(capsys)
    assert line.startswith("error: world rank 1 on ")
    assert line.endswith("has no worker that is ready after `search.preparation_limit_s`, 50 s")
    assert launches.world.now < 1000 + 55


def test_a_second_launch_of_the_same_search_is_refused(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = launches.folder / "minivit_digits"
    folder.mkdir()
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on node3\n")
        lock.flush()
        assert launches(2) == exit_codes.CONFIG
    _, (line,) = told(capsys)
    assert line.startswith("error: this search is being run already, by process 7 on node3: lock")
    assert launches(2, evaluations=1) == 0


def test_logs_of_workers_that_waited_when_all_was_killed_are_removed(launches: Launches) -> None:
    folder = launches.folder / "minivit_digits"
    folder.mkdir()
    (folder / "worker-node7-9-1.log").write_text("left over")
    assert launches(2, evaluations=1) == 0
    assert not list(folder.glob("worker-*"))


def test_a_complete_search_is_not_begun_again(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launches(2, evaluations=2) == 0
    told(capsys)
    assert launches(2, scripts=lambda rank: (), evaluations=2) == 0
    lines, errors = told(capsys)
    assert lines == ["search 'minivit_digits' is complete: 2 evaluations are stored"]
    assert errors == []


def test_another_space_under_the_same_name_is_refused(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launches(2, evaluations=1) == 0
    told(capsys)
    file = search_file()
    other = replace(file, training=file.training.model_copy(update={"epochs": 7}))
    assert launches(2, load=lambda: other) == exit_codes.CONFIG
    _, (line,) = told(capsys)
    assert f"stored with `epochs` = {file.training.epochs}, got 7" in line


def lost_and_found(launches: Launches) -> list[tuple[int, int, str]]:
    """Individual, attempt and status of all evaluations."""
    storage, search = launches.stored()
    with storage:
        return [
            (individual.id, e.attempt, str(e.status))
            for individual in storage.individuals(search.id)
            for e in storage.evaluations(individual.id)
        ]


STOPS: Sequence[Line] = (
    Prepare, Ready(), Evaluate, started(), epoch(1), Stop, Silence(1), Stopped(epoch=2),
)  # fmt: skip


class TestStopping:
    """A wish that reaches one rank reaches all; the next launch goes on."""

    @pytest.mark.parametrize("rank", [0, 1])
    def test_running_evaluations_end_their_epoch_and_are_repeated_first(
        self, launches: Launches, capsys: pytest.CaptureFixture[str], rank: int
    ) -> None:
        def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
            yield from (STOPS, [Prepare])

        launches.grace_s = 60.0
        wish = {3.0: lambda: launches.stops[rank].request()}
        assert launches(2, scripts, at=wish, evaluations=5, islands=2) == exit_codes.STOPPED
        assert lost_and_found(launches) == [(1, 1, "lost"), (2, 1, "lost")]
        lines, errors = told(capsys)
        assert lines[-1] == "stopped after 0 of 5 evaluations; the same command goes on"
        assert errors == []
        storage, search = launches.stored()
        with storage:
            reasons = {e.reason for e in storage.finished_since(search.id)}
            assert reasons == {"the search was stopped after epoch 2"}
            assert storage.launches(search.id)[0].exit_code == exit_codes.STOPPED
        assert launches(3, evaluations=5, islands=1) == 0
        assert lost_and_found(launches) == [
            (1, 1, "lost"), (1, 2, "completed"), (2, 1, "lost"), (2, 2, "completed"),
            (3, 1, "completed"), (4, 1, "completed"), (5, 1, "completed"),
        ]  # fmt: skip

    def test_a_second_wish_waits_for_no_epoch(self, launches: Launches) -> None:
        def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
            yield from ([*STOPS[:-2], Silence(9999)], [Prepare])

        launches.grace_s = 60.0
        wishes = {
            3.0: lambda: launches.stops[1].request(),
            5.0: lambda: launches.stops[1].request(at_once=True),
        }
        code = launches(2, scripts, at=wishes, evaluations=5, islands=1, no_progress_limit_s=1e5)
        assert code == exit_codes.STOPPED
        assert launches.world.now < 1000 + 7
        assert all(worker.killed for workers in launches.workers for worker in workers.started)

    def test_nor_does_the_end_of_the_grace(self, launches: Launches) -> None:
        def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
            yield from ([*STOPS[:-2], Silence(9999)], [Prepare])

        launches.grace_s = 20.0
        wish = {3.0: lambda: launches.stops[0].request()}
        code = launches(1, scripts, at=wish, evaluations=5, islands=1, no_progress_limit_s=1e5)
        assert code == exit_codes.STOPPED
        assert 1000 + 23 < launches.world.now < 1000 + 25

    def test_a_time_limit_is_a_wish(self, launches: Launches) -> None:
        def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
            yield from (STOPS, [Prepare])

        launches.grace_s, launches.time_limit_s = 60.0, 30.0
        assert launches(1, scripts, evaluations=5, islands=1) == exit_codes.STOPPED
        assert 1000 + 30 < launches.world.now < 1000 + 33
        assert lost_and_found(launches) == [(1, 1, "lost")]


class TestFaults:
    """What a machine does to a rank is not the launch's end."""

    def test_a_rank_that_always_fails_gives_up_and_the_other_does_its_work(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
            dies = [Prepare, Ready(), Evaluate, started(), WorkerDied("killed", -9)]
            return itertools.repeat(dies) if world_rank == 1 else all_train(0)

        code = launches(2, scripts, evaluations=6, islands=1, failures_in_a_row=2, retries=3)
        assert code == 0
        lines, _ = told(capsys)
        (line,) = [line for line in lines if "asks for no more work" in line]
        assert line.startswith("warning: world rank 1 asks for no more work: cpu on ")
        assert line.endswith("failed 2 times in a row, last: killed")
        storage, search = launches.stored()
        with storage:
            assert storage.progress(search.id).counts[Status.COMPLETED] == 6
            failed = [e for e in storage.finished_since(search.id) if e.status is Status.FAILED]
            assert [e.world_rank for e in failed] == [1, 1]

    def test_when_all_have_given_up_the_launch_ends_and_the_next_goes_on(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
            return itertools.repeat([Prepare, Ready(), Evaluate, WorkerDied("killed", -9)])

        changes = {"evaluations": 3, "islands": 1, "failures_in_a_row": 1, "retries": 9}
        assert launches(2, scripts, **changes) == exit_codes.STOPPED
        assert told(capsys)[0][-1].startswith("stopped after 0 of 3 evaluations")
        assert launches(2, **changes) == 0
        storage, search = launches.stored()
        with storage:
            assert storage.progress(search.id).counts[Status.COMPLETED] == 3

    def test_what_one_rank_loses_at_the_end_another_repeats(self, launches: Launches) -> None:
        """The rank that has nothing more to do hears of it."""

        def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
            dies = [Prepare, Ready(), Evaluate, started(), Silence(9), WorkerDied("killed", -9)]
            return iter([dies]) if world_rank == 1 else all_train(0)

        assert launches(2, scripts, evaluations=2, islands=1, failures_in_a_row=1) == 0
        assert lost_and_found(launches)[-2:] == [(2, 1, "failed"), (2, 2, "completed")]

    def test_a_rank_that_raises_ends_the_launch_and_is_named(
        self, launches: Launches, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def raise_it() -> None:
            def poll(self: Evaluator, timeout_s: float) -> None:
                raise LookupError("out of the blue")

            monkeypatch.setattr(Evaluator, "poll", poll)

        assert launches(2, at={2.2: raise_it}, evaluations=40, islands=1) is None
        assert launches.world.aborted == exit_codes.INTERNAL
        _, (line,) = told(capsys)
        told_so = r"failed: LookupError\('out of the blue'\) \(log: (.*)\)"
        match = re.fullmatch(rf"error: world rank (\d) on \S+ {told_so}", line)
        assert match, line
        assert "out of the blue" in Path(match[2]).read_text()
        assert Path(match[2]).name == f"rank-{match[1]}.log"

    def test_a_launch_whose_search_another_has_taken_over_ends(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Where the lock does not reach."""

        def another_launch() -> None:
            with open_storage(str(launches.database)) as storage:
                storage.start_launch(new_launch(1))

        assert launches(1, at={2.0: another_launch}, evaluations=40, islands=1) is None
        assert launches.world.aborted == exit_codes.STOPPED
        _, (line,) = told(capsys)
        assert "launch 2 has taken the search over" in line


def test_a_resumed_search_goes_on_on_other_ranks(launches: Launches) -> None:
    """Its population is what the database has, and no proposal is made twice."""
    propulate = {"engine": "propulate", "population_size": 3}
    assert launches(4, evaluations=8, islands=4, **propulate) == 0
    assert launches(2, evaluations=16, islands=2, **propulate) == 0
    storage, search = launches.stored()
    with storage:
        individuals = storage.individuals(search.id)
        assert [launch.num_islands for launch in storage.launches(search.id)] == [4, 2]
    assert len({(i.island, i.island_rank, i.generation) for i in individuals}) == 16
    assert {i.launch_id for i in individuals[8:]} == {2}
    later = individuals[8:]
    assert {i.origin for i in later} > {"bred"} or {i.origin for i in later} == {"bred"}
    assert {parent for i in later for parent in i.parents} & set(range(1, 9))


def test_an_engine_that_needs_them_knows_all_individuals(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that run on other islands, too."""
    seen: list[dict[int, float]] = []

    class Curious(Engine):
        needs_all_individuals = True

        def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
            known = knowledge.individuals
            seen.append(dict(zip(known.ids.tolist(), known.fitness.tolist(), strict=True)))
            return Offspring(genes={h.name: random_numbers.random() for h in self.hyperparameters})

    monkeypatch.setattr(launch, "engine_for", lambda space, search, island: Curious(space, search))
    assert launches(2, evaluations=4, islands=2) == 0
    assert seen[0] == {}
    assert list(seen[1]) == [1]
    assert math.isnan(seen[1][1])  # it runs
    assert list(seen[2]) == [1, 2]
    assert [math.isfinite(fitness) for fitness in seen[2].values()] == [True, False]
    storage, search = launches.stored()
    with storage:
        assert seen[-1] == {i.id: i.fitness for i in storage.individuals(search.id)}


def test_a_database_that_is_away_is_waited_for(
    launches: Launches, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings go on, and what they come to is stored once it is back."""
    away = [False]
    really = Storage._errors

    @contextmanager
    def errors(self: Storage) -> Iterator[None]:
        if away[0]:
            raise StorageUnavailable("connection refused")
        with really(self):
            yield

    monkeypatch.setattr(Storage, "_errors", errors)

    def set_away(value: bool) -> None:
        away[0] = value

    at = {1.2: lambda: set_away(True), 61.2: lambda: set_away(False)}
    assert launches(2, at=at, evaluations=6, islands=1) == 0
    assert lost_and_found(launches) == [(n, 1, "completed") for n in range(1, 7)]
    assert launches.world.now > 1000 + 61
    lines, _ = told(capsys)
    warnings = [line for line in lines if line.startswith("warning: the database is ")]
    assert [line.split()[4] for line in warnings] == ["away", "back"]


def test_the_last_words_of_a_launch_whose_database_is_away(
    launches: Launches, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        def errors(self: Storage) -> None:
            raise StorageUnavailable("connection refused")

        monkeypatch.setattr(Storage, "_errors", errors)

    def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
        yield from (STOPS, [Prepare])

    launches.grace_s = 5.0
    at = {2.0: away, 3.0: lambda: launches.stops[0].request()}
    assert launches(1, scripts, at=at, evaluations=6, islands=1) == exit_codes.STOPPED
    lines, errors = told(capsys)
    assert lines[-1].startswith("warning: the database is away, the folders have what it lacks")
    assert errors == []
    outcome = launches.folder / "minivit_digits/individual-000001/attempt-1/outcome.json"
    assert "the search was stopped after epoch 2" in outcome.read_text()
    monkeypatch.undo()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_each_individual_is_stored_once(launches: Launches, seed: int) -> None:
    """Slow messages, workers that die, islands that come and go, launches that are stopped."""
    chance = random.Random(seed)

    def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
        while True:
            lasts = Silence(chance.uniform(0.1, 3.0))
            trains = [Prepare, Ready(), Evaluate, started(), lasts, *TRAINS[3:]]
            dies = [*trains[:5], WorkerDied("killed", -9)]
            yield dies if chance.random() < 0.2 else trains

    changes = {"evaluations": 20, "failures_in_a_row": 99, "retries": 1}
    code: int | None = exit_codes.STOPPED
    for _ in range(3):
        ranks = chance.randint(1, 5)
        stop = {chance.uniform(3.0, 6.0): lambda: launches.stops[-1].request(at_once=True)}
        code = launches(
            ranks, scripts, at=stop, latency_s=2.0, seed=chance.randrange(99),
            islands=chance.randint(1, ranks), **changes,
        )  # fmt: skip
        assert code in (exit_codes.STOPPED, exit_codes.FINISHED)
    assert launches(3, scripts, islands=2, latency_s=2.0, **changes) == exit_codes.FINISHED
    storage, search = launches.stored()
    with storage:
        individuals = storage.individuals(search.id)
        finished = storage.finished_since(search.id)
        migrations = storage.migrations(search.id)
        census = [island.counts for island in storage.islands(search.id)]
    assert len(individuals) == 20
    assert len({(i.island, i.island_rank, i.generation) for i in individuals}) == 20
    assert {i.status for i in individuals} <= {Status.COMPLETED, Status.FAILED}
    assert [e.finish_number for e in finished] == list(range(1, len(finished) + 1))
    completed = [e.individual_id for e in finished if e.status is Status.COMPLETED]
    assert sorted(completed) == [i.id for i in individuals if i.status is Status.COMPLETED]
    assert sum(sum(counts.values()) for counts in census) == 20
    assert len({(m.individual_id, m.target_island) for m in migrations}) == len(migrations)
    assert not list((launches.folder / "minivit_digits").glob("worker-*"))
