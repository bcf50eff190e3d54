"""When a search has had enough, by what the database knows; then it is complete, and stays so."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from oialr_search import exit_codes
from oialr_search.analysis.status import status
from oialr_search.launch import until
from oialr_search.space.search_file import SearchFile, load_search, stored_search_settings
from oialr_search.storage import open_storage
from oialr_search.storage.records import Status
from oialr_search.storage.schema import launches as launch_table
from oialr_training.errors import ConfigError
from oialr_training.protocol import Evaluate, Event, Prepare, Ready

from ..conftest import DIGITS
from ..evaluation.scripted import Line, ScriptedWorker, Silence, completed, epoch, started
from .conftest import Launches
from .test_starting import individuals, queue


def file(*assignments: str) -> SearchFile:
    return load_search(DIGITS, ["search.islands=1", *assignments])


def run(launches: Launches, searched: SearchFile, ranks: int = 1, **more: Any) -> int | None:
    return launches(ranks, load=lambda: searched, **more)


def by_number(top1: Sequence[float]) -> Any:
    """Workers whose n-th evaluation, over all launches, comes to the n-th result, then the last."""

    def result(worker: ScriptedWorker) -> Event:
        (evaluate,) = (message for message in worker.sent if isinstance(message, Evaluate))
        number = int(evaluate.folder.split("individual-")[1][:6])
        return completed(top1[min(number, len(top1)) - 1], at=time.time())

    def scripts(world_rank: int) -> Iterator[Sequence[Line]]:
        while True:
            yield [Prepare, Ready(), Evaluate, started(), epoch(1), Silence(0.5), epoch(2), result]

    return scripts


class TestNoImprovement:
    SEARCH = ("search.until={no_improvement_in: 4}",)

    def test_the_search_ends_after_so_many(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scripts = by_number([50.0, 60.0, 70.0, 65.0])
        assert run(launches, file(*self.SEARCH), scripts=scripts) == exit_codes.FINISHED
        assert len(individuals(launches)) == 7
        reason = "nothing better in 4 evaluations, `search.until.no_improvement_in` = 4"
        assert capsys.readouterr().out.endswith(f"\ncomplete after 7 evaluations: {reason}\n")
        assert run(launches, file(*self.SEARCH)) == exit_codes.FINISHED
        assert capsys.readouterr().out == (
            f"search 'minivit_digits' is complete: 7 evaluations are stored, {reason}\n"
        )
        storage, search = launches.stored()
        with storage:
            assert status(storage, search)["remaining"] == 0

    def test_an_equal_one_is_no_improvement(self, launches: Launches) -> None:
        scripts = by_number([70.0])
        assert run(launches, file(*self.SEARCH), scripts=scripts) == exit_codes.FINISHED
        assert len(individuals(launches)) == 5

    def test_what_runs_ends_and_may_make_it_go_on(self, launches: Launches) -> None:
        """Of two ranks, the other's last evaluation is better."""
        scripts = by_number([70.0, 60.0, 60.0, 60.0, 60.0, 80.0, 60.0])
        assert run(launches, file(*self.SEARCH), 2, scripts=scripts) == exit_codes.FINISHED
        found = individuals(launches)
        assert {i.status for i in found} == {Status.COMPLETED}
        assert 10 <= len(found) <= 11

    def test_what_is_queued_is_evaluated_all_the_same(self, launches: Launches) -> None:
        scripts = by_number([70.0])
        assert run(launches, file(*self.SEARCH), scripts=scripts) == exit_codes.FINISHED
        queue(launches, "optimizer.lr=0.002")
        assert run(launches, file(*self.SEARCH), scripts=scripts) == exit_codes.FINISHED
        found = individuals(launches)
        assert [i.origin for i in found[5:]] == ["given"]

    def test_a_better_rule_goes_on(self, launches: Launches) -> None:
        scripts = by_number([70.0])
        assert run(launches, file(*self.SEARCH), scripts=scripts) == exit_codes.FINISHED
        more = file("search.until={no_improvement_in: 6}")
        assert run(launches, more, scripts=scripts) == exit_codes.FINISHED
        assert len(individuals(launches)) == 7


def begin_earlier(launches: Launches, launch: int, hours: float) -> None:
    with open_storage(str(launches.database)) as storage:
        found = next(x for x in storage.launches(1) if x.id == launch)
        earlier = found.started_at - timedelta(hours=hours)
        with storage._writing() as connection:
            connection.execute(
                sa.update(launch_table)
                .where(launch_table.c.id == launch)
                .values(started_at=earlier)
            )


class TestHours:
    SEARCH = ("search.until={hours: 3}", "search.evaluations=12")

    def test_all_launches_count(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stop = {1.2: lambda: launches.stops[0].request(at_once=True)}
        scripts = by_number([70.0])
        assert run(launches, file(*self.SEARCH), at=stop, scripts=scripts) == exit_codes.STOPPED
        begin_earlier(launches, 1, 2.0)
        later = {1.2: lambda: begin_earlier(launches, 2, 1.5)}
        assert run(launches, file(*self.SEARCH), at=later, scripts=scripts) == exit_codes.FINISHED
        found = individuals(launches)
        assert 3 <= len(found) <= 8
        assert {i.status for i in found} == {Status.COMPLETED}
        assert "its launches took 3.5 hours, `search.until.hours` = 3" in capsys.readouterr().out
        assert run(launches, file(*self.SEARCH)) == exit_codes.FINISHED
        assert "is complete: " in capsys.readouterr().out

    def test_a_killed_launch_counts_to_its_last_evaluation(self, launches: Launches) -> None:
        kill = {1.2: lambda: launches.stops[0].request(at_once=True)}
        scripts = by_number([70.0])
        assert run(launches, file(*self.SEARCH), at=kill, scripts=scripts) == exit_codes.STOPPED
        with open_storage(str(launches.database)) as storage, storage._writing() as connection:
            connection.execute(sa.update(launch_table).values(ended_at=None, exit_code=None))
        begin_earlier(launches, 1, 2.0)
        storage, search = launches.stored()
        with storage:
            assert until.hours_of(storage, search.id) == pytest.approx(2.0, abs=0.01)


class TestRegret:
    def test_the_search_ends_when_little_is_to_be_gained(
        self, launches: Launches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The best five come as near as 0.1: another 50 evaluations bring 0.22 at most."""
        scripts = by_number(
            [*(40 + n / 4 for n in range(20)), 70.0, 70.02, 70.04, 70.06, 70.1, 60.0]
        )
        ends = file("search.until={regret_below: 0.25}", "search.evaluations=40")
        assert run(launches, ends, scripts=scripts) == exit_codes.FINISHED
        assert len(individuals(launches)) == 25
        reason = "three of four searches would gain less than 0.22 in another 50 evaluations"
        assert reason in capsys.readouterr().out
        assert run(launches, ends, scripts=scripts) == exit_codes.FINISHED
        assert reason in capsys.readouterr().out

    def test_not_before_enough_is_known(self, launches: Launches) -> None:
        scripts = by_number([70.0, 70.001, 70.002, 70.003, 70.004, 60.0])
        ends = file("search.until={regret_below: 0.1}", "search.evaluations=20")
        assert run(launches, ends, scripts=scripts) == exit_codes.FINISHED
        assert len(individuals(launches)) == 12


class TestSettings:
    def test_they_are_stored(self) -> None:
        given = file("search.until={hours: 2, no_improvement_in: 50, regret_below: 0.01}")
        assert given.search.until
        assert given.search.until.no_improvement_in == 50
        assert stored_search_settings(given.as_json(), "stored") == given.search
        assert file().search.until is None

    @pytest.mark.parametrize(
        ("until", "line"),
        [
            ("{evaluations: 50}", "the number of evaluations is `search.evaluations`"),
            ("{hours: 0}", "`search.until.hours` should be greater than 0, got 0"),
            ("{no_improvement_in: 0}", "`search.until.no_improvement_in` should be greater"),
            ("{regret: 1}", "unknown key `search.until.regret`; did you mean `regret_below`"),
        ],
    )
    def test_mistakes(self, until: str, line: str) -> None:
        with pytest.raises(ConfigError) as error:
            file(f"search.until={until}")
        (told,) = str(error.value).splitlines()
        assert told.startswith(line)
