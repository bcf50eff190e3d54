"""What version 0.1.0 stored is upgraded, shown, exported, reported, imported and gone on with."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import Field

from oialr_search.analysis.choice import final_choice
from oialr_search.analysis.export import export
from oialr_search.cli import app
from oialr_search.launch.resuming import find_stored, start_search
from oialr_search.space.search_file import load_search
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import EvaluationRecord, SearchRecord, Status
from oialr_search.storage.schema import METADATA, REVISION_TABLE
from oialr_training.errors import ConfigError
from oialr_training.sections import OIALRConfig
from oialr_training.tasks import TASKS, validate_training
from oialr_training.tasks.minivit import MiniViTDigits
from oialr_training.yaml_files import parse_yaml

from ..conftest import make_command

STORED = Path(__file__).with_name("version-0.1.0.tar.xz")
COMPLETED, FAILED, UNFINISHED = {2, 3, 4, 7, 8, 9}, {1, 5, 6}, {10, 11}
Run = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The search file and the search, in another place than where it ran."""
    with tarfile.open(STORED) as stored:
        stored.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command, in that folder; returns what it printed."""
    monkeypatch.chdir(folder)
    for name in ("OIALR_SEARCH_DB", "OIALR_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> str:
        app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return command


@pytest.fixture
def upgraded(run: Run) -> Run:
    """Commands beside the upgraded database."""
    run("upgrade")
    return run


def stored(folder: Path, *, read_only: bool = True) -> tuple[Storage, SearchRecord]:
    storage = open_storage(str(folder / "searches" / "search.db"), read_only=read_only)
    (search,) = storage.searches()
    return storage, search


def by_status(storage: Storage, search: SearchRecord) -> dict[Status, set[int]]:
    found: dict[Status, set[int]] = {}
    for individual in storage.individuals(search.id):
        found.setdefault(individual.status, set()).add(individual.id)
    return found


def test_it_says_how_it_is_upgraded(run: Run) -> None:
    with pytest.raises(Exception, match="run `oialr-search upgrade --db"):
        run("status")


def test_it_has_the_schema_then(upgraded: Run, folder: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{folder}/searches/search.db")
    with engine.connect() as connection:
        options = {"version_table": REVISION_TABLE}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, METADATA) == []
    engine.dispose()


def test_status(upgraded: Run) -> None:
    told = json.loads(upgraded("status", "--format", "json"))
    assert (told["search"], told["completed"]) == ("stored", len(COMPLETED))


def test_leaderboard(upgraded: Run, folder: Path) -> None:
    asked = ("--where", "samples_per_s > 0")
    rows = json.loads(upgraded("leaderboard", "--format", "json", *asked))
    assert {row["individual"] for row in rows} == COMPLETED
    assert [row["fitness"] for row in rows] == sorted(row["fitness"] for row in rows)
    assert all(row["optimizer.lr"] > 0 and row["samples_per_s"] > 0 for row in rows)
    with closing(sqlite3.connect(folder / "searches" / "search.db")) as connection:
        view = connection.execute("SELECT individual_id, fitness, optimizer_lr FROM leaderboard")
        assert view.fetchall() == [
            (row["individual"], row["fitness"], pytest.approx(row["optimizer.lr"])) for row in rows
        ]


def test_show(upgraded: Run) -> None:
    told = json.loads(upgraded("show", "6", "--format", "json"))
    assert [attempt["status"] for attempt in told["evaluations"]] == ["lost", "failed", "failed"]
    assert told["search_file"]["optimizer.lr"] == 0.003
    assert told["space"]["optimizer.lr"] == {
        "kind": "float", "low": 1e-4, "high": 1e4, "scale": "log"
    }  # fmt: skip
    assert "individual 6" in upgraded("show", "6")


def test_export(upgraded: Run, folder: Path) -> None:
    upgraded("export", "-o", "best.yaml")
    training = validate_training(parse_yaml((folder / "best.yaml").read_text(), "best"), "best")
    assert training.provenance
    assert training.provenance["individual"] in COMPLETED
    assert training.epochs == 5


def test_report_and_stability(upgraded: Run, folder: Path) -> None:
    upgraded("report", "-o", "report.html")
    page = (folder / "report.html").read_text()
    assert "Mixing similarity, relative to the norms" in page
    storage, _ = stored(folder)
    with storage:
        seen = [o for n in COMPLETED for o in storage.observations(last(storage, n).id)]
    assert seen
    assert all(math.isnan(o.mixing_similarity) for o in seen)
    assert all(0 < o.relative_mixing_similarity <= 1 for o in seen)


def last(storage: Storage, individual_id: int) -> EvaluationRecord:
    return storage.evaluations(individual_id)[-1]


def test_import(upgraded: Run, folder: Path) -> None:
    storage, search = stored(folder)
    with storage:
        original = by_status(storage, search)
        resources = {n: last(storage, n).resources for n in COMPLETED}
        observed = {n: len(storage.observations(last(storage, n).id)) for n in COMPLETED}
        moved = len(storage.migrations(search.id))
    for path in (folder / "searches").glob("search.db*"):
        path.unlink()
    assert "search 'stored': 11 individuals imported" in upgraded("import", "searches/stored")
    storage, search = stored(folder)
    with storage:
        assert original.pop(Status.RUNNING) == UNFINISHED
        assert by_status(storage, search) == original | {Status.LOST: UNFINISHED}
        assert {n: last(storage, n).resources for n in COMPLETED} == resources
        assert all(used.peak_host_memory_bytes for used in resources.values())
        found = {n: storage.observations(last(storage, n).id) for n in COMPLETED}
        assert {n: len(of) for n, of in found.items()} == observed
        assert all(o.relative_mixing_similarity > 0 for of in found.values() for o in of)
        assert len(storage.migrations(search.id)) == moved > 0


def test_a_launch_takes_it_up(upgraded: Run, folder: Path) -> None:
    """What the ranks do then is `test_it_goes_on`."""
    storage, search = stored(folder, read_only=False)
    with storage:
        search_file = load_search(folder / "tiny.yaml", (), {"seed": 7})
        ids = start_search(storage, search_file, 2, folder / "searches" / "stored")
        assert ids == (search.id, 3)
        assert by_status(storage, search)[Status.LOST] == UNFINISHED
        taken_up = storage.find_search("stored")
    assert taken_up is not None
    assert (taken_up.seed, taken_up.search_settings().seed) == (7, 7)
    assert taken_up.settings["format"] == 1


@pytest.mark.slow
def test_it_goes_on(upgraded: Run, folder: Path) -> None:
    state = folder / "searches" / "stored" / "individual-000010" / "state.pt"
    assert state.exists()
    make_command(folder)("run", "tiny.yaml", ranks=2)
    storage, search = stored(folder)
    with storage:
        progress = storage.progress(search.id)
        ended = [progress.counts[s] for s in (Status.COMPLETED, Status.FAILED, Status.TIMED_OUT)]
        assert (sum(ended), progress.counts[Status.LOST]) == (14, 0)
        repeated = last(storage, 10)
        assert (repeated.attempt, repeated.launch_id) == (2, 3)
        assert repeated.folder.startswith(str(folder))
    assert not state.exists()


def test_a_field_that_was_added_since_has_its_default(
    upgraded: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(OIALRConfig):
        new_number: Annotated[int, Field(ge=1)] = 3

    class Digits(MiniViTDigits):
        oialr: Later | None
        new_text: str = "as ever"

    monkeypatch.setitem(TASKS, "minivit_digits", Digits)
    storage, search = stored(folder)
    with storage:
        assert find_stored(storage, load_search(folder / "tiny.yaml")) == search
        text = export(storage, search, final_choice(storage, search).individual)
        changed = load_search(folder / "tiny.yaml", ["oialr.new_number=4"])
        with pytest.raises(ConfigError, match=r"`oialr\.new_number` = 3, got 4"):
            find_stored(storage, changed)
    exported = parse_yaml(text, "export")
    assert (exported["new_text"], exported["oialr"]["new_number"]) == ("as ever", 3)


def test_a_field_that_is_no_longer_known_is_one_line(upgraded: Run, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "searches" / "search.db")) as connection:
        [(text,)] = connection.execute("SELECT settings FROM searches")
        settings = json.loads(text)
        settings["training"]["oialr"]["gone"] = 1
        connection.execute("UPDATE searches SET settings = ?", [json.dumps(settings)])
        connection.commit()
    storage, search = stored(folder)
    message = r"unknown key `oialr.gone`.* \(search 'stored' as it is stored\)$"
    with storage:
        with pytest.raises(ConfigError, match=message):
            find_stored(storage, load_search(folder / "tiny.yaml"))
        with pytest.raises(ConfigError, match=message):
            export(storage, search, final_choice(storage, search).individual)
    assert upgraded("status")


@pytest.mark.parametrize("where", ["settings", "space"])
def test_what_a_newer_version_stored_is_one_line(upgraded: Run, folder: Path, where: str) -> None:
    change = {
        "settings": "json_set(settings, '$.format', 99)",
        "space": "json_set(space, '$[0].shape', 'round')",
    }[where]
    with closing(sqlite3.connect(folder / "searches" / "search.db")) as connection:
        connection.execute(f"UPDATE searches SET {where} = {change}")
        connection.commit()
    words = {"settings": "a newer oialr-search wrote", "space": "`space.0.shape`"}[where]
    with pytest.raises(Exception, match=words) as raised:
        upgraded("export", "-o", "best.yaml")
    assert "\n" not in str(raised.value)
    assert "search 'stored' as it is stored" in str(raised.value)
    assert not (folder / "best.yaml").exists()
    shutil.rmtree(folder / "searches" / "stored")
