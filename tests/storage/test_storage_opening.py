"""Opening: what is refused, in which words, and what can be read while others write."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from storage_examples import launched_search, new_launch, new_proposal, new_runner, new_search

from oialr_search.storage import open_storage, upgrade_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.opening import NETWORK_FILE_SYSTEMS
from oialr_search.storage.records import StorageError
from oialr_search.storage.schema import REVISION


def refusal(url: str, **how: bool) -> str:
    """Return what opening says; one line it must be."""
    with pytest.raises(StorageError) as caught:
        open_storage(url, **how)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestWrongPlaces:
    @pytest.mark.parametrize("read_only", [False, True])
    def test_a_missing_file_is_not_made(self, tmp_path: Path, read_only: bool) -> None:
        path = tmp_path / "search.db"
        for url in (str(path), f"sqlite:///{path}"):
            assert refusal(url, read_only=read_only) == (
                f"no database at {path}: start a search first, or name one with --db"
            )
        assert not list(tmp_path.iterdir())

    def test_a_text_file(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("This is no database, whatever its reader may think. " * 100)
        before = path.read_bytes()
        for create in (False, True):
            assert refusal(str(path), create=create) == f"{path}: file is not a database"
        assert path.read_bytes() == before

    @pytest.mark.parametrize("sql", ["", "CREATE TABLE searches (id INTEGER)"])
    def test_somebody_elses_sqlite_file(self, tmp_path: Path, sql: str) -> None:
        path = tmp_path / "other.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(sql or "VACUUM")
            tables = connection.execute("SELECT * FROM sqlite_master").fetchall()
            for create in (False, True):
                assert refusal(str(path), create=create) == (
                    f"{path} is not a database of oialr-search: name another one with --db"
                )
            assert connection.execute("SELECT * FROM sqlite_master").fetchall() == tables

    def test_somebody_elses_postgresql(self, new_postgres_database: Callable[[], str]) -> None:
        url = new_postgres_database()
        assert "is not a database of oialr-search" in refusal(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE mine (id INTEGER)")
        assert "is not a database of oialr-search" in refusal(url, create=True)

    @pytest.mark.parametrize("url", ["mysql://u:s3cret@host/db", "sqlite://", "oracle+x://h/d"])
    def test_databases_of_other_kinds(self, url: str) -> None:
        message = refusal(url)
        assert "is no database we can use: give sqlite:///path/search.db or" in message
        assert "s3cret" not in message

    @pytest.mark.parametrize("url", ["://", "postgresql://u:s3cret@host:port/db"])
    def test_text_that_is_no_url(self, url: str) -> None:
        message = refusal(url)
        assert message.startswith("not a database URL: use sqlite:///path/search.db or")
        assert "s3cret" not in message

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://me:s3cret@127.0.0.1:9/db",
            "postgresql+psycopg2://me@localhost:9/db?password=s3cret",
            "postgresql://me:s3cret@127.0.0.1:9/db?no_such_option=1",
        ],
    )
    def test_an_unreachable_server_keeps_the_password(self, url: str) -> None:
        with pytest.raises(StorageError, match=r"^postgresql://me.*:9/db") as caught:
            open_storage(url)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
        assert "s3cret" not in refusal(url, create=True)

    def test_a_missing_postgresql_database(self, new_postgres_database: Callable[[], str]) -> None:
        url = new_postgres_database().replace("/search_", "/missing_")
        assert 'database "missing_' in refusal(url, create=True)

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "search.db"
        expected = f"{path}: File exists ({path.parent})"
        assert refusal(str(path), create=True) == expected

    def test_postgresql_without_its_driver(self) -> None:
        script = (
            "import sys; sys.modules['psycopg'] = None\n"
            "from oialr_search.storage import open_storage\n"
            "from oialr_search.storage.records import StorageError\n"
            "try: open_storage('postgresql://host/db')\n"
            "except StorageError as error: print(error)"
        )
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert out.stdout == "PostgreSQL needs psycopg: run pip install 'psycopg[binary]'\n"


class TestRevisions:
    def test_a_newer_database(self, storage: Storage, database_url: str) -> None:
        _execute(database_url, "UPDATE oialr_search_revision SET version_num = '0999'")
        for create in (False, True):
            assert refusal(database_url, create=create).endswith(
                f"was written by a newer oialr-search (revision 0999, known {REVISION}): "
                "run `pip install --upgrade oialr-search`"
            )
        with pytest.raises(StorageError, match="a newer oialr-search"):
            upgrade_storage(database_url)

    def test_a_database_of_before_0_1_0(self, storage: Storage, database_url: str) -> None:
        _execute(database_url, "UPDATE oialr_search_revision SET version_num = '0001'")
        with pytest.raises(StorageError, match="revision 0001, is no longer read: start anew"):
            upgrade_storage(database_url)

    def test_an_older_database_is_upgraded_when_asked(
        self, storage: Storage, database_url: str
    ) -> None:
        _downgrade(database_url)
        for create in (False, True):
            message = refusal(database_url, create=create)
            assert "was written by an older oialr-search: run `oialr-search upgrade" in message

        upgrade_storage(database_url)

        with open_storage(database_url) as upgraded:
            assert upgraded.find_search("digits") is None
            launched_search(upgraded)
        upgrade_storage(database_url)
        with open_storage(database_url) as upgraded:
            assert upgraded.find_search("digits")

    def test_only_ours_is_upgraded(self, tmp_path: Path) -> None:
        path = tmp_path / "other.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE mine (id INTEGER)")
        with pytest.raises(StorageError, match="is not a database of oialr-search"):
            upgrade_storage(str(path))


class TestSqliteFiles:
    def test_creating_leaves_one_file_in_a_new_folder(self, tmp_path: Path) -> None:
        path = tmp_path / "a %20 folder?" / "se#arch.db"
        open_storage(str(path), create=True).close()
        open_storage(str(path), create=True).close()
        open_storage(str(path), read_only=True).close()
        assert {p.name for p in path.parent.iterdir()} <= {
            "se#arch.db", "se#arch.db-wal", "se#arch.db-shm"
        }  # fmt: skip

    def test_writing_ahead_and_foreign_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "search.db"
        with open_storage(str(path), create=True) as storage:
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            with pytest.raises(StorageError, match="FOREIGN KEY"):
                storage.start_launch(new_launch(search_id=5))

    def test_a_killed_writer_loses_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "search.db"
        script = (
            "import os, signal, sys\n"
            "sys.path.insert(0, sys.argv[2])\n"
            "from storage_examples import *\n"
            "from oialr_search.storage import open_storage\n"
            "launched_search(open_storage(sys.argv[1], create=True))\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        here = str(Path(__file__).parent)
        done = subprocess.run([sys.executable, "-c", script, str(path), here])
        assert done.returncode == -9
        assert Path(f"{path}-wal").stat().st_size > 0
        with open_storage(str(path), read_only=True) as reader:
            assert [search.name for search in reader.searches()] == ["digits"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
    def test_a_read_only_folder_can_be_read(self) -> None:
        script = (
            "import os, sys; from oialr_search.storage import open_storage\n"
            "import oialr_search.storage.database, sqlalchemy\n"
            "sqlalchemy.create_engine('sqlite://')\n"  # imports what nobody may not read
            "os.setgid(65534); os.setuid(65534)\n"
            "print(open_storage(sys.argv[1], read_only=True).searches()[0].name)"
        )
        with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
            path = f"{folder}/search.db"
            with open_storage(path, create=True) as storage:
                storage.create_search(new_search())
            Path(folder).chmod(0o755)
            out = subprocess.run(
                [sys.executable, "-c", script, path], capture_output=True, text=True
            )
        assert (out.stdout, out.stderr) == ("digits\n", "")

    @pytest.mark.parametrize(
        ("file_system", "is_network"),
        [("ext4", False), ("nfs", True), ("nfs4", True), ("lustre", True), ("fuse.sshfs", True),
         ("overlay", False), ("tmpfs", False), ("", False)],
    )  # fmt: skip
    def test_which_file_systems_are_on_the_network(
        self, file_system: str, is_network: bool
    ) -> None:
        assert bool(NETWORK_FILE_SYSTEMS.fullmatch(file_system)) is is_network


class TestReadingWhileWriting:
    def test_a_reader_does_not_wait_for_a_writer(self, storage: Storage, database_url: str) -> None:
        search_id, launch_id = launched_search(storage)
        storage.claim(search_id, new_proposal(), 3, new_runner(launch_id))
        with closing(_connect(database_url)) as writer:
            writer.execute("BEGIN")
            writer.execute("UPDATE individuals SET origin = 'half done'")
            with open_storage(database_url, read_only=True) as reader:
                assert [i.origin for i in reader.individuals(search_id)] == ["random"]
                assert len(reader.progress(search_id).running) == 1
            writer.execute("ROLLBACK")

    def test_a_writer_does_not_wait_for_a_reader(self, storage: Storage, database_url: str) -> None:
        search_id, launch_id = launched_search(storage)
        with closing(_connect(database_url)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM individuals").fetchone() == (0,)
            assert storage.claim(search_id, new_proposal(), 3, new_runner(launch_id))
            storage.change_search(search_id, new_search(evaluations_total=9))
            reader.execute("ROLLBACK")


def _connect(url: str) -> sqlite3.Connection | psycopg.Connection[tuple[object, ...]]:
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    return psycopg.connect(url, autocommit=True)


def _execute(url: str, sql: str) -> None:
    with closing(_connect(url)) as connection:
        connection.execute(sql)


def _downgrade(url: str) -> None:
    """Take a database back to before the first revision, as Alembic does it."""
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config

    import oialr_search.storage.migrations as folder

    config = Config()
    config.set_main_option("script_location", str(Path(folder.__file__).parent))
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP VIEW leaderboard")
        connection.exec_driver_sql("DROP VIEW lineage")
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    engine.dispose()
