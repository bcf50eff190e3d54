"""`dashboard`, `plot`, `report`: a search as figures, in the browser, in files, on one page."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from oialr_search import extras
from oialr_search.analysis.plots.names import OF_ALL, PlotName
from oialr_search.cli.options import (
    SEARCH_DIR,
    DatabaseOption,
    SearchDirOption,
    SearchOption,
    open_database,
)


def plot(
    name: Annotated[PlotName, typer.Argument(metavar="NAME", help=f"What: {', '.join(PlotName)}.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="File to write, .html, .png, .pdf or .svg; by default NAME.html.",
        ),
    ] = None,
    individual: Annotated[
        int | None,
        typer.Option(help="Number of the individual; by default the best that has what it takes."),
    ] = None,
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    search: SearchOption = None,
) -> None:
    """Draw a figure from the database; works while the search runs.

    Example: `oialr-search plot stability -o stability.pdf`
    """
    extras.require("figures", "plot")
    from oialr_search.analysis.choosing import choose
    from oialr_search.analysis.plots import catalogue, writing

    path = output or Path(f"{name}.html")
    writing.refuse_unknown_format(path)
    with open_database(db, search_dir) as storage:
        chosen, record = choose(storage, search, individual)
        source = catalogue.Source(storage=storage, search=chosen, individual=record)
        figure = catalogue.draw(name, source)
    if individual is not None and name in OF_ALL:
        print(f"warning: --individual has no effect on {name}", file=sys.stderr)
    writing.write(figure, path)
    print(f"{name} written to {path}")


def dashboard(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of this machine; 0: a free one.")
    ] = 8080,
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
) -> None:
    """Show all searches in the browser, live, by way of optuna-dashboard; on this machine only.

    Example: `oialr-search dashboard --port 8081`
    """
    extras.require("figures", "dashboard")
    with open_database(db, search_dir) as storage:
        from oialr_search.analysis.dashboard import serve

        serve(storage, port)


def report(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Page to write.")
    ] = Path("report.html"),
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            metavar="NAME=FOLDER",
            help="A row of the results: the trainings that `oialr-search train` left in a folder, "
            "e.g. `baseline=trainings/baseline`; repeatable.",
        ),
    ] = None,
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    search: SearchOption = None,
) -> None:
    """Write all about a search as one page that needs no network; works while the search runs.

    Example: `oialr-search report --compare baseline=trainings/baseline -o report.html`
    """
    extras.require("figures", "report")
    from oialr_search.analysis import report as reporting
    from oialr_search.analysis.choosing import choose_search
    from oialr_search.analysis.plots.catalogue import Source
    from oialr_search.terminal.tables import write_file

    contenders = [reporting.read_contender(assignment) for assignment in compare or ()]
    with open_database(db, search_dir) as storage:
        source = Source(storage=storage, search=choose_search(storage, search))
        best_yaml = reporting.best_yaml(source)
        page = reporting.report(source, contenders, best_yaml, datetime.now(UTC))
    write_file(output, page.encode())
    print(f"report of {source.search.name} written to {output}")
