"""`status`, `leaderboard`, `show`, `log`: what the database knows, printed."""

from __future__ import annotations

import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oialr_search.cli.options import (
    SEARCH_DIR,
    DatabaseOption,
    EveryOption,
    FormatOption,
    SearchDirOption,
    SearchOption,
    WatchOption,
    open_database,
    options_of_database,
)
from oialr_search.storage.status import Status
from oialr_search.terminal.tables import FileFormat, Format
from oialr_training.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

IndividualArgument = Annotated[int, typer.Argument(help="Number of the individual.")]


def leaderboard(
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    search: SearchOption = None,
    top: Annotated[int, typer.Option(min=0, help="So many individuals; 0: all.")] = 10,
    islands: Annotated[
        list[int] | None, typer.Option("--island", min=0, help="Bred there; repeatable.")
    ] = None,
    statuses: Annotated[
        list[Status] | None,
        typer.Option("--status", help="By default those that completed; repeatable."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="On the columns: comparisons, `in (...)`, `is null`, `and`, `or`, `not`.",
        ),
    ] = None,
    pareto: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="Mark what no other beats in all of these, and show it whole: "
            "`fitness,trainable_percent`. `:max` after a name turns it round.",
        ),
    ] = None,
    output: Annotated[
        FileFormat | None,
        typer.Option("--format", help="How to print; by default a table, or as FILE ends."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to this file.")
    ] = None,
    watch: WatchOption = False,
    every: EveryOption = 2.0,
) -> None:
    """Print the best individuals; works while the search runs.

    Example: `oialr-search leaderboard --where 'trainable_percent < 15' --top 5 --format csv`
    """
    from oialr_search.analysis import leaderboard as analysis
    from oialr_search.analysis.choosing import choose_search
    from oialr_search.analysis.where import parse_condition
    from oialr_search.storage.leaderboard import all_columns
    from oialr_search.storage.selection import Selection
    from oialr_search.terminal import screens, tables

    chosen_format = output or tables.format_of(file)
    if chosen_format is FileFormat.PARQUET and file is None:
        raise typer.BadParameter("parquet is not for reading: name a file with -o FILE")
    if watch and (chosen_format is not FileFormat.TABLE or file is not None):
        raise typer.BadParameter("--watch shows a table: without --format and -o")
    with open_database(db, search_dir) as storage:
        chosen = choose_search(storage, search)
        selection = Selection(
            statuses=tuple(dict.fromkeys(statuses or [Status.COMPLETED])),
            islands=tuple(islands or ()),
            where=parse_condition(where, all_columns(chosen)) if where else None,
        )
        objectives = pareto.split(",") if pareto else []
        shown = objectives or chosen.objectives
        columns = analysis.shown_columns(chosen, selection, objectives)

        def read() -> list[analysis.Row]:
            return analysis.leaderboard(storage, chosen, top or None, selection, objectives)

        if file is None and chosen_format is FileFormat.TABLE:
            title = f"{chosen.name}: {chosen.task}, {chosen.aim}"
            screens.show_screen(
                lambda console: screens.leaderboard_screen(
                    title, analysis.for_people(read()), shown, console
                ),
                every if watch else None,
            )
            return
        rows = read()
    if file is None:
        print(tables.as_text(rows, chosen_format, columns=columns), end="")
        return
    tables.write_file(file, tables.as_bytes(rows, chosen_format, columns))
    print(f"{len(rows)} individuals written to {file}")


def status(
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    search: SearchOption = None,
    output: FormatOption = Format.TABLE,
    watch: WatchOption = False,
    every: EveryOption = 2.0,
) -> None:
    """Print what is done, what runs where, the pace, failures, and when it will end.

    Example: `oialr-search status --watch`
    """
    from oialr_search.analysis.choosing import choose_search
    from oialr_search.analysis.status import status as read
    from oialr_search.terminal import screens
    from oialr_search.terminal.tables import as_text

    if watch and output is not Format.TABLE:
        raise typer.BadParameter("--watch shows a table: without --format")
    with open_database(db, search_dir) as storage:
        chosen = choose_search(storage, search)
        if output is not Format.TABLE:
            content = read(storage, chosen)
            print(as_text(content, output, rows=content["islands"]), end="")
            return

        def draw(console: Console) -> RenderableType:
            now = datetime.now(UTC)
            return screens.status_screen(read(storage, chosen, now), console, now)

        screens.show_screen(draw, every if watch else None)


def show(
    individual: IndividualArgument,
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    output: FormatOption = Format.TABLE,
) -> None:
    """Print one individual: origin, values, training, failure, and how to train it again.

    Example: `oialr-search show 7`
    """
    from oialr_search.analysis.individual import describe
    from oialr_search.terminal import screens
    from oialr_search.terminal.tables import as_text

    with open_database(db, search_dir) as storage:
        described = describe(storage, individual, options_of_database(db, search_dir))
    if output is Format.TABLE:
        screens.show_screen(lambda console: screens.individual_screen(described, console), None)
    else:
        print(as_text(described, output, rows=[described]), end="")


def log(
    individual: IndividualArgument,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Which of its attempts; by default the latest.")
    ] = None,
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
) -> None:
    """Print the log of an individual's worker; its end from the database where it is not here.

    Example: `oialr-search log 7 --attempt 1`
    """
    from oialr_search.analysis.individual import log_of, readable_log

    with open_database(db, search_dir) as storage:
        evaluation = log_of(storage, individual, attempt)
    path = readable_log(evaluation)
    if path is not None:
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        return
    where = f"{evaluation.log_path} of {evaluation.hostname} is not on this machine"
    if evaluation.log_tail is None:
        raise ConfigError(f"{where}, and the database has no end of it")
    print(f"warning: {where}: this is its end, from the database", file=sys.stderr)
    print(evaluation.log_tail)
