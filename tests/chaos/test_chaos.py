"""A search that is killed, starved and cut off at random moments comes to what it would have.

`pytest -m slow tests/chaos` is the short form; `--chaos-faults 100` the long one (docs/chaos.md).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from oialr_search.evaluation.files import SEARCH_FILE, write_record
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import SearchRecord, Status

from ..conftest import DIGITS, TINY, Command, make_command, settings
from . import checks
from .chaos_log import ChaosLog, table
from .databases import Database, Server
from .faults import Disk, Scene, deal, inject
from .launches import Launch, wait_until

NAME = "chaos"
RANKS = 3
SHORT = 8  # faults by default, half of them with each database
GOES_ON_LIMIT_S = 90.0
DISK_MIB = 48
SETTINGS = TINY | {
    "epochs": "12",
    "num_threads": "1",
    "search.name": NAME,
    "search.retries": "1000",
    "search.failures_in_a_row": "1000",
    "search.no_progress_limit_s": "12",
}
# What mpiexec says when it, or a rank, was killed: 128 + signal, the signal, or nothing.
FINISHED, STOPPED = 0, 75
figures: dict[str, dict[str, object]] = {}


@dataclass(kw_only=True)
class Chaos:
    """One search, and what was done to it."""

    command: Command
    database: Database
    disk: Disk
    log: ChaosLog
    random: random.Random
    evaluations: int
    until: float
    """No fault after this time."""
    launches: int = 0
    damaged: set[Path] = field(default_factory=set)
    finished: checks.Finished = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Of the search."""
        return self.disk.folder / NAME

    def run(self, faults: int) -> None:
        """Disturb the search so often, then let it come to its end."""
        kinds = list(deal(self.random, self.database, faults))
        while True:
            launch = self._start()
            try:
                self._disturb(launch, kinds)
                wait_until(launch.ended, GOES_ON_LIMIT_S * 4, "the end of the search")
                self._after(launch)
            except BaseException:
                print(self._story())
                raise
            finally:
                launch.kill()
            if launch.mpiexec.returncode == FINISHED:
                if not kinds or time.monotonic() > self.until:
                    return
                self.evaluations += 4  # a resumed search may have more

    def _start(self) -> Launch:
        self.launches += 1
        options = ["--evaluations", str(self.evaluations), "--search-dir", str(self.disk.folder)]
        options += ["--db", self.database.url, *settings(SETTINGS)]
        line = self.command.line("run", DIGITS, *options, ranks=RANKS)
        output = self.command.folder / f"launch-{self.launches}.txt"
        launch = Launch(line, self.command.folder, self.command.environment, output)
        self.log.add("launch", number=self.launches, evaluations=self.evaluations)
        return launch

    def _disturb(self, launch: Launch, kinds: list[str]) -> None:
        scene = Scene(
            launch=launch,
            folder=self.folder,
            disk=self.disk,
            database=self.database,
            random=self.random,
            evaluations=self.evaluations,
            damaged=self.damaged,
        )
        while kinds and not launch.ended() and time.monotonic() < self.until:
            before = scene.trace()
            done = inject(kinds[0], scene)
            if done is not None:
                moment, hit = done
                self.log.add("fault", kind=kinds.pop(0), moment=moment, hit=hit)
                self._wait_for_life(scene, before)

    @staticmethod
    def _wait_for_life(scene: Scene, before: tuple[int, int]) -> None:
        wait_until(
            lambda: scene.launch.ended() or scene.trace() != before,
            GOES_ON_LIMIT_S,
            "a sign of life",
        )

    def _after(self, launch: Launch) -> None:
        """Nothing is left of an ended launch, and it says how it ended."""
        launch.wait_for_the_last()
        code = launch.mpiexec.returncode
        last = launch.output.read_text().strip().splitlines()[-1:]
        self.log.add("end", exit_code=code, says=" ".join(last)[:200])
        assert code in (FINISHED, STOPPED) or launch.disturbed, launch.output.read_text()
        with open_storage(self.database.url, create=True) as storage:
            search = storage.find_search(NAME)
            if search is not None:
                self.finished |= checks.finished_in(self.folder, search)

    def _story(self) -> str:
        outputs = sorted(self.command.folder.glob("launch-*.txt"), key=lambda p: p.stat().st_mtime)
        return "\n".join(f"--- {p.name}\n{p.read_text()}" for p in outputs[-3:])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The short form is of the database that can be away."""
    if "database" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--chaos-faults") > SHORT
        names = ["SQLite", "PostgreSQL"] if is_long else ["PostgreSQL"]
        metafunc.parametrize("database", names, indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest, disk: Disk) -> Iterator[Database]:
    if request.param == "SQLite":
        yield Database(disk.folder)
        return
    try:
        server = Server()
    except Exception as error:
        pytest.skip(f"no PostgreSQL server can be started here: {error!r}")
    yield server
    server.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk", DISK_MIB)
    yield disk
    disk.release()


@pytest.mark.slow
def test_a_disturbed_search_comes_to_the_same(
    database: Database, disk: Disk, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    kind, faults = database.name, pytestconfig.getoption("--chaos-faults") // 2
    seed = pytestconfig.getoption("--chaos-seed") or random.randrange(1 << 31)
    log_dir = pytestconfig.getoption("--chaos-log")
    log = ChaosLog(Path(log_dir, f"{kind.lower()}.jsonl") if log_dir else None)
    log.add("begin", seed=seed, faults=faults, disk=disk.kind)
    began = time.monotonic()
    chaos = Chaos(
        command=make_command(tmp_path),
        database=database,
        disk=disk,
        log=log,
        random=random.Random(seed),
        evaluations=max(6, faults // 2),
        until=began + pytestconfig.getoption("--chaos-time-limit") / 2,
    )
    chaos.run(faults)
    _check(chaos, everything=faults > 20)
    figures[kind] = _figures(chaos, time.monotonic() - began)
    print(table(figures))
    if log_dir:
        Path(log_dir, "table.md").write_text(table(figures))


def _check(chaos: Chaos, *, everything: bool) -> None:
    with open_storage(chaos.database.url, read_only=True) as storage:
        search = storage.find_search(NAME)
        assert search is not None
        checks.check_database(storage, search, chaos.evaluations)
        checks.check_nothing_was_lost(storage, chaos.finished, chaos.damaged)
        checks.check_folders(storage, search, chaos.damaged)
        _check_import(chaos, storage, search)
        individuals = storage.individuals(search.id)
        repeated = [i for i in individuals if checks.is_repeated(storage, i)]
        others = [i for i in individuals if i not in repeated]
        for individual in individuals if everything else (*repeated[:4], *others[:1]):
            checks.check_result(storage, search, individual)
    for words in (["status"], ["leaderboard", "--top", "3"]):
        chaos.command(*words, "--db", chaos.database.url)


def _check_import(chaos: Chaos, storage: Storage, search: SearchRecord) -> None:
    write_record(chaos.folder / SEARCH_FILE, search)  # each launch does, and the last may be past
    chaos.command("import", chaos.folder, "--db", chaos.database.other_url)
    checks.check_import(storage, search, chaos.database.other_url, chaos.damaged)


def _figures(chaos: Chaos, seconds: float) -> dict[str, object]:
    with open_storage(chaos.database.url, read_only=True) as storage:
        search = storage.find_search(NAME)
        assert search is not None
        attempts = [a for i in storage.individuals(search.id) for a in storage.evaluations(i.id)]
    statuses = Counter(attempt.status for attempt in attempts)
    faults = chaos.log.faults()
    return {
        "faults": faults.total(),
        **{f"– {kind}": number for kind, number in sorted(faults.items())},
        "launches": chaos.launches,
        "individuals, each completed once": chaos.evaluations,
        "evaluations": len(attempts),
        **{f"– {status}": statuses[status] for status in Status if statuses[status]},
        "of them resumed from a state": sum(bool(a.resumed_epoch) for a in attempts),
        "epochs not trained again": sum(a.resumed_epoch or 0 for a in attempts),
        "minutes": f"{seconds / 60:.1f}",
    }
