"""`run`, `enqueue`, `import`, `upgrade`, `validate`: a search from its file into the database."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from oialr_search import extras
from oialr_search.cli.options import (
    SEARCH_DIR,
    DatabaseOption,
    DataDirOption,
    SearchDirOption,
    SearchOption,
    SetOption,
    TaskPathOption,
    WorkerCommandOption,
    WorkerPythonOption,
    database_url,
)
from oialr_search.cli.time_limit import deadline, parse_duration
from oialr_search.launch.stop_request import StopRequest
from oialr_search.storage import database_exists, open_storage, upgrade_storage


def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Search file (YAML).")],
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    data_dir: DataDirOption = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Individuals in total, over all ranks.")
    ] = None,
    islands: Annotated[int | None, typer.Option(min=1, help="Number of islands.")] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration,
            metavar="T",
            help="Start nothing more after e.g. `90s`, `30m`, `2h`, `1:30:00` or `1-12` (36 hours; "
            "a bare number is seconds), and exit 75; under Slurm, in time before the job's end.",
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            parser=parse_duration,
            metavar="T",
            help="Time that running evaluations then have to end their epoch.",
        ),
    ] = "60s",  # type: ignore[assignment]  # parsed as what is typed is
    new: Annotated[
        bool, typer.Option("--new", help="Begin another search if there is one of this name.")
    ] = False,
    assignments: SetOption = None,
    task_path: TaskPathOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the search.")] = None,
    worker_python: WorkerPythonOption = None,
    worker_command: WorkerCommandOption = None,
) -> None:
    """Run a search, or go on with it: one rank, or under mpiexec as many as you like.

    Example: `mpiexec -n 4 oialr-search run search_spaces/minivit_digits.yaml --islands 2`
    """
    extras.require("search", "run")
    stop: StopRequest = context.obj or StopRequest()
    stop.limit(deadline(time_limit, grace, os.environ), grace)
    from oialr_search.launch.launch import LaunchSettings
    from oialr_search.launch.launch import run as run_rank
    from oialr_search.launch.progress import LastingStream
    from oialr_search.space.search_file import load_search

    given = {"evaluations": evaluations, "islands": islands, "seed": seed}
    changed = {key: value for key, value in given.items() if value is not None}
    start = {"python": worker_python, "command": worker_command}
    worker = {key: value for key, value in start.items() if value is not None}
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)
    exit_code = run_rank(
        lambda: load_search(file, assignments or (), changed, worker),
        LaunchSettings(
            database_url=database_url(db, search_dir),
            search_dir=search_dir,
            data_dir=str(data_dir) if data_dir else None,
            new=new,
            stop=stop,
            environment=dict(os.environ),
        ),
    )
    stop.listen_no_more()
    raise typer.Exit(exit_code)


def enqueue(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Training configurations, e.g. exported ones."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="A searched hyperparameter's value, e.g. `optimizer.lr=1e-3`; repeatable. In the "
            "files' place, or in place of what they say.",
        ),
    ] = None,
    from_search: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another search of the database, for its best."),
    ] = None,
    best: Annotated[int, typer.Option(min=1, help="So many of that search's best.")] = 1,
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    task_path: TaskPathOption = None,
    search: SearchOption = None,
) -> None:
    """Have configurations evaluated next, by the launch that runs or by the next one.

    What is not named is the search file's own value. Also beyond the search's evaluations.

    Example: `oialr-search enqueue best.yaml --set optimizer.lr=1e-3`
    """
    from oialr_search.analysis.choosing import choose_search
    from oialr_search.launch.starting import named_points

    with open_storage(database_url(db, search_dir)) as storage:
        chosen = choose_search(storage, search)
        points, moved = named_points(
            storage, chosen, files or (), assignments or (), from_search, best
        )
        for line in moved:
            print(f"warning: {line}", file=sys.stderr)
        found = storage.queue(chosen.id, points)
        ended = storage.launches(chosen.id)[-1].ended_at
    for individual, new in found:
        print(f"individual {individual} {'queued' if new else 'has these values already'}")
    if ended is not None and any(new for _, new in found):
        print(f"no launch of search {chosen.name!r} runs: the next one evaluates them")


def import_(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a search, or of several.")
    ],
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
) -> None:
    """Make a lost database anew from the folders of the evaluations.

    Example: `oialr-search import searches/minivit_cifar10`
    """
    from oialr_search.evaluation.files import search_folders
    from oialr_search.launch.importing import import_search

    url = database_url(db, search_dir)
    folders = search_folders(folder)
    with open_storage(url, create=True) as storage:
        for path in folders:
            search, number, mistakes = import_search(storage, path)
            for mistake in mistakes:
                print(f"warning: left out: {mistake}", file=sys.stderr)
            print(f"search {search.name!r}: {number} individuals imported")


def validate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Search file or training configuration.")
    ],
    assignments: SetOption = None,
    task_path: TaskPathOption = None,
) -> None:
    """Check a search file or a training configuration without running it.

    Example: `oialr-search validate search_spaces/minivit_cifar10.yaml --set epochs=2`
    """
    from oialr_search.launch.starting import check_start
    from oialr_search.space.search_file import load_search
    from oialr_training.tasks import load_training
    from oialr_training.yaml_files import in_one_line, read_yaml

    content = read_yaml(file)
    if "search" in content or "space" in content:
        search_file = load_search(file, assignments or ())
        for line in check_start(search_file):
            print(f"warning: {line}", file=sys.stderr)
        size = len(search_file.space.hyperparameters)
        print(
            f"{in_one_line(file)}: search {search_file.search.name!r} of {size} hyperparameters, "
            f"{search_file.search.evaluations} evaluations of {search_file.training.task} "
            f"on {search_file.search.islands} islands"
        )
    else:
        training = load_training(file, assignments or ())
        epochs = "" if training.epochs is None else f", {training.epochs} epochs"
        print(f"{in_one_line(file)}: training of {training.task}{epochs}")


def schema(
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="MODULE:CLASS", help="A task of your own, too; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="In place of the terminal."),
    ] = None,
    task_path: TaskPathOption = None,
) -> None:
    """Print the JSON schema of search and training files, by which editors complete and check.

    Example: `oialr-search schema -o schema.json`, and as a file's first line
    `# yaml-language-server: $schema=schema.json`
    """
    import json

    from oialr_search.space.schema import file_schema
    from oialr_search.terminal.tables import write_file

    text = json.dumps(file_schema(tasks or ()), indent=1, ensure_ascii=False) + "\n"
    if output is None:
        print(text, end="")
    else:
        write_file(output, text.encode())


def upgrade(db: DatabaseOption = None, search_dir: SearchDirOption = SEARCH_DIR) -> None:
    """Bring a database written by an older version to this version's schema.

    Example: `oialr-search upgrade --db sqlite:///searches/search.db`
    """
    from oialr_search.storage.records import StorageError

    url = database_url(db, search_dir)
    if not database_exists(url):
        raise StorageError(f"no database to upgrade: {search_dir / 'search.db'}; name one by --db")
    upgrade_storage(url)
    print("the database has this version's schema")
