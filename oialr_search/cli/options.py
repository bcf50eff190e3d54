"""What several commands take: options of one name and meaning, and what they stand for."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oialr_search.storage import has_password, open_storage
from oialr_search.terminal.tables import Format
from oialr_training.errors import ConfigError

if TYPE_CHECKING:
    from oialr_search.storage.database import Storage

SEARCH_DIR = Path("searches")
DATABASE_VARIABLE = "OIALR_SEARCH_DB"

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override a value of the file, e.g. `epochs=2`; repeatable. Setting a searched "
        "hyperparameter takes it out of the space; `space.oialr.delay_steps.low=5` moves a bound.",
    ),
]
WorkerPythonOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="The Python of the trainings' own environment, where `oialr-training` is installed.",
    ),
]
WorkerCommandOption = Annotated[
    str | None,
    typer.Option(
        metavar="PREFIX",
        help="What the trainings are started with: 'srun --overlap -n1', "
        "'apptainer exec image.sif'.",
    ),
]
SearchDirOption = Annotated[
    Path,
    typer.Option(help="Folder of the SQLite database `search.db` and of all evaluations."),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--db",
        envvar=DATABASE_VARIABLE,
        show_envvar=True,
        metavar="URL",
        help="sqlite:///PATH or postgresql://...; by default `search.db` in the search folder.",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(envvar="OIALR_DATA", show_envvar=True, help="Folder of the data sets."),
]


def _add_task_path(folders: list[Path] | None) -> list[Path] | None:
    if folders:
        from oialr_training.tasks import add_task_path

        add_task_path(folders)
    return folders


TaskPathOption = Annotated[
    list[Path] | None,
    typer.Option(
        callback=_add_task_path,
        metavar="DIR",
        help="Folder with tasks of your own, like OIALR_TASK_PATH; repeatable.",
    ),
]
SearchOption = Annotated[
    str | None,
    typer.Option("--search", help="Name of the search; by default the one launched last."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print.")]
WatchOption = Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")]
EveryOption = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="So often.")]


def open_database(db: str | None, search_dir: Path) -> Storage:
    """Open the database asked for, to read."""
    return open_storage(database_url(db, search_dir), read_only=True)


def database_url(db: str | None, search_dir: Path) -> str:
    """The database asked for, or the SQLite file in the search folder.

    Raises:
        ConfigError: when a password would be for all to see in the list of processes.
    """
    if db and has_password(db) and any(db in argument for argument in sys.argv):
        raise ConfigError(
            f"a password on the command line is for all to see: give the URL in "
            f"{DATABASE_VARIABLE}, or the password in PGPASSWORD or ~/.pgpass"
        )
    return db or str((search_dir / "search.db").absolute())  # a URL would need quoting


def options_of_database(db: str | None, search_dir: Path) -> list[str]:
    """What to give another command so that it opens the same database; never a password."""
    if db is not None:
        return [] if os.environ.get(DATABASE_VARIABLE) == db or has_password(db) else ["--db", db]
    return [] if search_dir == SEARCH_DIR else ["--search-dir", str(search_dir)]
