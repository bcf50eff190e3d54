"""A launch takes up what another one left: results, settings, folders; real files and SQLite."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from oialr_search.analysis.export import export
from oialr_search.analysis.individual import describe
from oialr_search.evaluation.files import Ending
from oialr_search.launch import provenance, resuming
from oialr_search.launch.provenance import git_revision
from oialr_search.launch.resuming import free_name
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Outcome, Status
from oialr_training.errors import ConfigError
from oialr_training.yaml_files import parse_yaml

from ..evaluation.scripted import completed, epoch
from .left_behind import OBSERVED, TRAINED, UPDATE, LeftBehind, failed


class TestAnOlderDatabase:
    """A backup, a copy without what was written last: nothing that ended is written over."""

    def test_an_individual_that_it_does_not_know(self, left: LeftBehind) -> None:
        left.leave(*TRAINED, result=completed(90.0))
        later = left.folder / "individual-000002" / "attempt-1"
        later.mkdir(parents=True)
        with pytest.raises(ConfigError, match=r"older than .* which has individual 2: .*import"):
            left.launch()
        assert len(left.storage.launches(left.search_id)) == 1

    def test_an_attempt_that_it_does_not_know(self, left: LeftBehind) -> None:
        evaluation = left.leave(*TRAINED)
        left.launch()  # the attempt is lost
        Path(evaluation.folder).with_name("attempt-2").mkdir()
        with pytest.raises(ConfigError, match="has attempt 2 at individual 1"):
            left.launch()


class TestResults:
    def test_one_that_no_rank_has_read_is_stored(self, left: LeftBehind) -> None:
        evaluation = left.leave(*TRAINED, result=completed(90.0))
        left.launch()
        assert left.status_of(evaluation) == ("completed", "completed")
        stored = left.latest(evaluation)
        assert (stored.fitness, stored.last_epoch, stored.launch_id) == (10.0, 2, 1)
        assert (stored.resumed_epoch, stored.device) == (1, "cuda:GPU-7")
        assert left.storage.rank_updates(evaluation.id) == [UPDATE]
        assert left.storage.observations(evaluation.id) == [OBSERVED]
        assert (Path(evaluation.folder) / "outcome.json").exists()

    def test_without_one_it_is_lost_and_keeps_its_epochs(self, left: LeftBehind) -> None:
        evaluation = left.leave(*TRAINED)
        left.launch()
        assert left.status_of(evaluation) == ("lost", "lost")
        assert [epoch.epoch for epoch in left.storage.epochs(evaluation.id)] == [1, 2]

    def test_what_its_controller_wrote_counts(self, left: LeftBehind) -> None:
        outcome = Outcome(status=Status.TIMED_OUT, reason="over the time limit of 1 s")
        evaluation = left.leave(result=completed(90.0), ending=Ending(outcome=outcome))
        left.launch()
        assert left.status_of(evaluation) == ("timed_out", "timed_out")

    def test_up_to_where_its_file_is_cut_off(self, left: LeftBehind) -> None:
        evaluation = left.leave(*TRAINED)
        events = Path(evaluation.folder) / "events.jsonl"
        events.write_bytes(events.read_bytes()[:-9])
        left.launch()
        assert left.latest(evaluation).last_epoch == 1

    @pytest.mark.parametrize(("cause", "individual"), [("machine", "lost"), ("training", "failed")])
    def test_a_failure_is_repeated_where_the_machine_is_at_fault(
        self, left: LeftBehind, cause: str, individual: str
    ) -> None:
        evaluation = left.leave(result=failed(cause))
        left.launch()
        assert left.status_of(evaluation) == ("failed", individual)

    def test_as_often_as_the_settings_say(self, left: LeftBehind) -> None:
        for attempt in (1, 2, 3):
            evaluation = left.leave(result=failed("machine"))
            left.launch(retries=2)
            repeated = "lost" if attempt < 3 else "failed"
            assert left.status_of(evaluation) == ("failed", repeated)

    def test_the_folder_may_have_been_moved(self, left: LeftBehind, tmp_path: Path) -> None:
        evaluation = left.leave(*TRAINED, result=completed(90.0))
        left.folder = Path(shutil.move(left.folder, tmp_path / "elsewhere"))
        left.launch()
        assert left.status_of(evaluation) == ("completed", "completed")

    def test_an_evaluation_is_stored_in_one_transaction(self, left: LeftBehind) -> None:
        for generation in (0, 1):
            epochs = (epoch(number) for number in range(3, 9))
            left.leave(*TRAINED, *epochs, result=completed(90.0), generation=generation)
        written: list[list[str]] = [[]]

        def statement(_: object, __: object, sql: str, *___: object) -> None:
            if sql.startswith(("INSERT INTO metrics", "UPDATE evaluations")):
                written[-1].append(sql)

        engine = left.storage._engine
        sa.event.listen(engine, "before_cursor_execute", statement)
        sa.event.listen(engine, "commit", lambda _: written.append([]))
        left.launch()
        first, second, lost = (sqls for sqls in written if sqls)
        assert len(first) == len(second) > 8
        assert len(lost) == 1

    def test_all_or_nothing(self, left: LeftBehind, monkeypatch: pytest.MonkeyPatch) -> None:
        evaluation = left.leave(*TRAINED, result=completed(90.0))

        def fail(*_: object, **__: object) -> bool:
            raise OSError("no more")

        with monkeypatch.context() as broken:
            broken.setattr(Storage, "finish_evaluation", fail)
            with pytest.raises(OSError, match="no more"):
                left.launch()
        assert left.storage.epochs(evaluation.id) == []
        left.launch()
        assert left.status_of(evaluation) == ("completed", "completed")


def test_what_this_launch_was_told_of_the_search_is_stored(left: LeftBehind) -> None:
    evaluation = left.leave(*TRAINED, result=completed(90.0))
    left.launch(seed=7, mutation_sigma=0.25, evaluations=30)
    search = left.storage.find_search("minivit_digits")
    individual = left.storage.individual(evaluation.individual_id)
    assert search
    assert individual
    assert (search.seed, search.evaluations_total) == (7, 30)
    assert search.search_settings().mutation_sigma == 0.25
    exported = parse_yaml(export(left.storage, search, individual), "export")
    assert exported["provenance"]["search_seed"] == 7
    told = (left.folder / "search.json").read_text()
    assert '"mutation_sigma": 0.25' in told


def test_an_export_has_the_versions_it_was_evaluated_with(
    left: LeftBehind, monkeypatch: pytest.MonkeyPatch
) -> None:
    left.leave()
    monkeypatch.setattr(resuming, "versions", lambda: {"torch": "99"})
    monkeypatch.setattr(resuming, "git_revision", lambda: "abc")
    left.launch()
    repeated = left.leave(*TRAINED, result=completed(90.0))
    assert (repeated.attempt, repeated.launch_id) == (2, 2)
    left.launch()
    (search,) = left.storage.searches()
    individual = left.storage.individual(repeated.individual_id)
    assert individual
    provenance = parse_yaml(export(left.storage, search, individual), "export")["provenance"]
    assert (provenance["versions"], provenance["git_revision"]) == ({"torch": "99"}, "abc")


@pytest.mark.parametrize("option", [["--data-dir", "/my data/é"], ["--data-dir=/my data/é"]])
def test_a_data_folder_with_a_space_comes_back_whole(
    left: LeftBehind, monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["oialr-search", "run", "a file.yaml", *option, "--new"])
    left.launch()
    evaluation = left.leave()
    line = left.storage.launches(left.search_id)[-1].command_line
    assert shlex.split(line) == sys.argv
    again = describe(left.storage, evaluation.individual_id)["train_again"]
    file = f"individual-{evaluation.individual_id}.yaml"
    assert shlex.split(again[-1]) == [
        "oialr-search", "train", file, "--data-dir", "/my data/é"
    ]  # fmt: skip


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_revision_is_that_of_our_source_only(tmp_path: Path) -> None:
    file = tmp_path / "environment" / Path(provenance.__file__).name
    file.parent.mkdir()
    file.touch()
    (tmp_path / "theirs").touch()
    assert git_revision(file) is None
    git(tmp_path, "init")
    git(tmp_path, "add", "theirs")
    git(tmp_path, "commit", "-m", "theirs")
    assert git_revision(file) is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "ours")
    revision = git_revision(file)
    assert revision
    assert len(revision) == 40
    file.write_text("changed")
    assert git_revision(file) == f"{revision}-dirty"


def test_a_free_name_is_neither_stored_nor_a_folder_s(tmp_path: Path) -> None:
    assert free_name("a", [], tmp_path) == "a"
    (tmp_path / "a-2").mkdir()
    assert free_name("a", ["a", "a-3"], tmp_path) == "a-4"
