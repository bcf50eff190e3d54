"""The commands, thin: arguments in, one call, rows out. Heavy imports are inside the commands."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from oialr_training.errors import ConfigError

from oialr_search import exit_codes
from oialr_search.analysis.plots.names import OF_ALL, PlotName
from oialr_search.launch.stop_request import StopRequest
from oialr_search.storage import database_exists, has_password, open_storage, upgrade_storage
from oialr_search.storage.records import Status, StorageError
from oialr_search.terminal.tables import FileFormat, Format, print_rows

if TYPE_CHECKING:
    from oialr_training.protocol import Event
    from rich.console import Console, RenderableType

    from oialr_search.storage.database import Storage
    from oialr_search.storage.records import IndividualRecord, SearchRecord

# Rank of this process in a launch, as the launchers announce it before MPI is initialised.
WORLD_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")

HEAD_START_S = 2.0
# Seconds before Slurm's end in which the last results are stored.
END_MARGIN_S = 15.0

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Search the hyperparameters of OIALR low-rank training, and train the best.",
)

SearchFileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Search file (YAML).")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override a value of the file, e.g. `epochs=2`; repeatable. Setting a searched "
        "hyperparameter takes it out of the space; `space.oialr.delay_steps.low=5` moves a bound.",
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
        envvar="OIALR_SEARCH_DB",
        show_envvar=True,
        metavar="URL",
        help="sqlite:///PATH or postgresql://...; by default `search.db` in the search folder.",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(envvar="OIALR_DATA", show_envvar=True, help="Folder of the data sets."),
]
SearchOption = Annotated[
    str | None,
    typer.Option("--search", help="Name of the search; by default the one launched last."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print.")]
WatchOption = Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")]
EveryOption = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="So often.")]
PARQUET_TYPES = {"int": "int64", "float": "double", "bool": "bool", "text": "string"}
SEARCH_DIR = Path("searches")


@app.command()
def run(
    context: typer.Context,
    file: SearchFileArgument,
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    data_dir: DataDirOption = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Individuals in total, over all ranks.")
    ] = None,
    islands: Annotated[int | None, typer.Option(min=1, help="Number of islands.")] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="Start nothing more after e.g. `90s`, `30m`, `2h`, `1:30:00`, and exit 75; under "
            "Slurm, in time before the job's end.",
        ),
    ] = None,
    grace: Annotated[
        str,
        typer.Option(
            metavar="T", help="Time that running evaluations then have to end their epoch."
        ),
    ] = "60s",
    new: Annotated[
        bool, typer.Option("--new", help="Begin another search if there is one of this name.")
    ] = False,
    assignments: SetOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the search.")] = None,
) -> None:
    """Run a search, or go on with it: one rank, or under mpiexec as many as you like.

    Example: `mpiexec -n 4 oialr-search run search_spaces/minivit_digits.yaml --islands 2`
    """
    limit_s = None if time_limit is None else parse_duration(time_limit)
    grace_s = parse_duration(grace)
    stop: StopRequest = context.obj or StopRequest()
    stop.limit(deadline(limit_s, grace_s, os.environ), grace_s)
    from oialr_search.space.search_file import load_search

    given = {"evaluations": evaluations, "islands": islands, "seed": seed}
    changed = {key: value for key, value in given.items() if value is not None}
    from oialr_search.launch.launch import LaunchSettings
    from oialr_search.launch.launch import run as run_rank
    from oialr_search.launch.progress import LastingStream

    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)

    exit_code = run_rank(
        lambda: load_search(file, assignments or (), changed),
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


@app.command(name="import")
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
    from oialr_search.evaluation.files import FolderError, search_folders
    from oialr_search.launch.resuming import import_search

    url = database_url(db, search_dir)
    try:
        folders = search_folders(folder)
        with open_storage(url, create=True) as storage:
            for path in folders:
                search, number, mistakes = import_search(storage, path)
                for mistake in mistakes:
                    print(f"warning: left out: {mistake}", file=sys.stderr)
                print(f"search {search.name!r}: {number} individuals imported")
    except FolderError as error:
        raise ConfigError(str(error)) from None


@app.command()
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
    from oialr_search.analysis.where import parse_condition
    from oialr_search.storage.selection import Selection
    from oialr_search.terminal import tables as printing
    from oialr_search.terminal.screens import show_screen

    chosen_format = output or _format_of(file)
    if chosen_format is FileFormat.PARQUET and file is None:
        raise typer.BadParameter("parquet is not for reading: name a file with -o FILE")
    if watch and (chosen_format is not FileFormat.TABLE or file is not None):
        raise typer.BadParameter("--watch shows a table: without --format and -o")
    with _open(db, search_dir) as storage:
        chosen = analysis.choose_search(storage, search)
        selection = Selection(
            statuses=tuple(dict.fromkeys(statuses or [Status.COMPLETED])),
            islands=tuple(islands or ()),
            where=parse_condition(where, analysis.all_columns(chosen)) if where else None,
        )
        objectives = pareto.split(",") if pareto else []
        columns = analysis.shown_columns(chosen, selection, objectives)

        def read() -> list[analysis.Row]:
            return analysis.leaderboard(storage, chosen, top or None, selection, objectives)

        def draw(console: Console) -> RenderableType:
            rows = read()
            title = f"{chosen.name}: {chosen.task}, {chosen.metric}"
            if objectives:
                number = sum(row["pareto"] for row in rows)
                title += f"; {number} on the Pareto front of {', '.join(objectives)}"
            if not rows:
                return f"{title}: no such individual"
            return printing.fitting_table(rows, title, console)

        if file is None and chosen_format is FileFormat.TABLE:
            show_screen(draw, every if watch else None)
            return
        rows = read()
    if chosen_format is FileFormat.PARQUET:
        types = {column.name: PARQUET_TYPES[column.kind] for column in columns}
        content = printing.as_parquet(rows, types)
    else:
        names = [column.name for column in columns]
        content = printing.as_text(rows, chosen_format, columns=names).encode()
    if file is None:
        print(content.decode(), end="")
        return
    printing.write_file(file, content)
    print(f"{len(rows)} individuals written to {file}")


@app.command()
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
    from oialr_search.analysis.leaderboard import choose_search
    from oialr_search.analysis.status import status as read
    from oialr_search.terminal import screens
    from oialr_search.terminal.tables import as_text

    if watch and output is not Format.TABLE:
        raise typer.BadParameter("--watch shows a table: without --format")
    with _open(db, search_dir) as storage:
        chosen = choose_search(storage, search)
        if output is not Format.TABLE:
            content = read(storage, chosen)
            print(as_text(content, output, rows=content["islands"]), end="")
            return

        def draw(console: Console) -> RenderableType:
            now = datetime.now(UTC)
            return screens.status_screen(read(storage, chosen, now), console, now)

        screens.show_screen(draw, every if watch else None)


@app.command()
def show(
    individual: Annotated[int, typer.Argument(help="Number of the individual.")],
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    output: FormatOption = Format.TABLE,
) -> None:
    """Print one individual: origin, values, training, failure, and how to train it again.

    Example: `oialr-search show 7`
    """
    from oialr_search.analysis.individual import story as read
    from oialr_search.terminal import screens
    from oialr_search.terminal.tables import as_text

    with _open(db, search_dir) as storage:
        story = read(storage, individual, _database_options(db, search_dir))
    if output is Format.TABLE:
        screens.show_screen(lambda console: screens.story_screen(story, console), None)
    else:
        print(as_text(story, output, rows=[story]), end="")


@app.command()
def log(
    individual: Annotated[int, typer.Argument(help="Number of the individual.")],
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

    with _open(db, search_dir) as storage:
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


@app.command()
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
    from oialr_search.analysis.plots import catalogue, writing

    path = output or Path(f"{name}.html")
    writing.refuse_unknown_format(path)
    with _open(db, search_dir) as storage:
        chosen, record = _choose(storage, search, individual)
        source = catalogue.Source(storage=storage, search=chosen, individual=record)
        figure = catalogue.draw(name, source)
    if individual is not None and name in OF_ALL:
        print(f"warning: --individual has no effect on {name}", file=sys.stderr)
    writing.write(figure, path)
    print(f"{name} written to {path}")


@app.command()
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
    with _open(db, search_dir) as storage:
        from oialr_search.analysis.dashboard import serve

        serve(storage, port)


@app.command()
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
    from datetime import UTC, datetime

    from oialr_search.analysis import report as reporting
    from oialr_search.analysis.plots.catalogue import Source

    contenders = [reporting.read_contender(assignment) for assignment in compare or ()]
    with _open(db, search_dir) as storage:
        chosen, _ = _choose(storage, search, None)
        source = Source(storage=storage, search=chosen)
        best_yaml = _best_yaml(storage, chosen)
        page = reporting.report(source, contenders, best_yaml, datetime.now(UTC))
    _write(output, page)
    print(f"report of {chosen.name} written to {output}")


@app.command()
def export(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; by default, print.")
    ] = None,
    individual: Annotated[
        int | None, typer.Option(help="Number of the individual; by default the best.")
    ] = None,
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    search: SearchOption = None,
) -> None:
    """Write an individual's complete training configuration as YAML.

    Example: `oialr-search export -o best.yaml`
    """
    from oialr_search.analysis import export as exporting

    with _open(db, search_dir) as storage:
        chosen, record = _choose(storage, search, individual)
        record = record or exporting.best_individual(storage, chosen)
        text = exporting.export(storage, chosen, record)
    if output is None:
        print(text, end="")
        return
    _write(output, text)
    print(f"individual {record.id} (fitness {record.fitness}) written to {output}")


@app.command()
def train(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Training configuration, e.g. an exported one.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Train with so many seeds in a row.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of logs, metrics and checkpoints; by default trainings/FILE."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    data_dir: DataDirOption = None,
    assignments: SetOption = None,
    output_format: FormatOption = Format.TABLE,
) -> None:
    """Train a configuration; print mean and standard deviation over the seeds.

    Example: `oialr-search train best.yaml --seeds 3`
    """
    from oialr_training.config import load_training

    from oialr_search.evaluation import devices
    from oialr_search.evaluation import repeated_seeds as trainer

    overrides = [*(assignments or ()), *([f"device={device}"] if device is not None else ())]
    config = load_training(file, overrides)
    try:
        gpu = devices.choose_gpu(config.device, devices.visible_gpus(os.environ), 0)
    except LookupError as error:
        raise ConfigError(f"{error} ({file})") from None
    settings = devices.WorkerSettings(gpu=gpu, num_threads=len(devices.affinity()))
    folder = output or Path("trainings") / file.stem
    folders = {seed: folder / f"seed-{seed}" for seed in range(config.seed, config.seed + seeds)}
    for seed_folder in folders.values():
        trainer.refuse_completed(seed_folder)
    results = []
    try:
        for seed, seed_folder in folders.items():
            results.append(
                trainer.train(
                    config.model_copy(update={"seed": seed}),
                    folder=seed_folder,
                    data_dir=str(data_dir) if data_dir else None,
                    settings=settings,
                    report=_epoch_printer(f"seed {seed}", config.epochs),
                )
            )
    finally:
        # What is trained is told, also when a later seed fails.
        if results:
            title = f"{file}: {len(results)} of {seeds} seed(s)"
            print_rows(trainer.summary(results), output_format, title=title)


@app.command()
def validate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Search file or training configuration.")
    ],
    assignments: SetOption = None,
) -> None:
    """Check a search file or a training configuration without running it.

    Example: `oialr-search validate search_spaces/minivit_cifar10.yaml --set epochs=2`
    """
    from oialr_training.config import load_training
    from oialr_training.yaml_files import in_one_line, read_yaml

    from oialr_search.space.search_file import load_search

    content = read_yaml(file)
    if "search" in content or "space" in content:
        search_file = load_search(file, assignments or ())
        size = len(search_file.space.hyperparameters)
        print(
            f"{in_one_line(file)}: search {search_file.search.name!r} of {size} hyperparameters, "
            f"{search_file.search.evaluations} evaluations of {search_file.training.task} "
            f"on {search_file.search.islands} islands"
        )
    else:
        training = load_training(file, assignments or ())
        print(f"{in_one_line(file)}: training of {training.task}, {training.epochs} epochs")


@app.command()
def upgrade(db: DatabaseOption = None, search_dir: SearchDirOption = SEARCH_DIR) -> None:
    """Bring a database written by an older version to this version's schema.

    Example: `oialr-search upgrade --db sqlite:///searches/search.db`
    """
    url = database_url(db, search_dir)
    if not database_exists(url):
        raise StorageError(f"no database to upgrade: {search_dir / 'search.db'}; name one by --db")
    upgrade_storage(url)
    print("the database has this version's schema")


def database_url(db: str | None, search_dir: Path) -> str:
    """The database asked for, or the SQLite file in the search folder.

    Raises:
        ConfigError: when a password would be for all to see in the list of processes.
    """
    if db and has_password(db) and any(db in argument for argument in sys.argv):
        raise ConfigError(
            "a password on the command line is for all to see: give the URL in OIALR_SEARCH_DB, "
            "or the password in PGPASSWORD or ~/.pgpass"
        )
    return db or str((search_dir / "search.db").absolute())  # a URL would need quoting


def deadline(limit_s: float | None, grace_s: float, environment: Mapping[str, str]) -> float | None:
    """When to start nothing more: after the limit, and so that all has ended before Slurm does."""
    deadlines = []
    if limit_s is not None:
        deadlines.append(time.time() + limit_s)
    if end := environment.get("SLURM_JOB_END_TIME"):
        deadlines.append(float(end) - grace_s - END_MARGIN_S)
    return min(deadlines, default=None)


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `30m`, `2h`, `1d`, `30:00`, `1:30:00` or Slurm's `1-12:00:00`.

    Raises:
        typer.BadParameter: when it is none of these.
    """
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text):
        return float(match[1]) * units[match[2]]
    if match := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds
    raise typer.BadParameter(f"a duration such as 90s, 30m, 2h or 1:30:00, got {text!r}")


def is_first_rank() -> bool:
    """Is this process alone, or rank 0 of its launch? Known before MPI is initialised."""
    ranks = (os.environ[name] for name in WORLD_RANK_VARIABLES if name in os.environ)
    return next(ranks, "0") == "0"


def speaks_for_the_launch() -> bool:
    """Rank 0 tells what is wrong; the others wait, as Open MPI ends all when the first one ends."""
    if is_first_rank():
        return True
    time.sleep(HEAD_START_S)
    return False


def main(stop: StopRequest | None = None) -> NoReturn:
    """Run a command; the user's mistakes end in one line each and the exit code of their kind.

    `stop` is what a launch has listened with since the process began.
    """
    try:
        code = app(standalone_mode=False, obj=stop)
    except (ConfigError, StorageError) as error:
        code = _complain(error, exit_codes.CONFIG)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = _complain_of_usage(error)
    sys.exit(code or 0)


def _complain(error: Exception, code: int) -> int:
    if speaks_for_the_launch():
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
    return code


def _complain_of_usage(error: Exception) -> int:
    """Typer's own errors show themselves; all others are ours."""
    from oialr_search.evaluation.repeated_seeds import TrainingFailed

    if isinstance(error, TrainingFailed):
        return _complain(error, exit_codes.INTERNAL)
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if show is None or code is None:
        traceback.print_exception(error)
        return exit_codes.INTERNAL
    if speaks_for_the_launch():
        show()
    return int(code)


def _open(db: str | None, search_dir: Path) -> Storage:
    return open_storage(database_url(db, search_dir), read_only=True)


def _database_options(db: str | None, search_dir: Path) -> list[str]:
    """What to give another command so that it opens the same database; never a password."""
    if db is not None:
        return [] if os.environ.get("OIALR_SEARCH_DB") == db or has_password(db) else ["--db", db]
    return [] if search_dir == SEARCH_DIR else ["--search-dir", str(search_dir)]


def _format_of(file: Path | None) -> FileFormat:
    """The format that a file's name ends with."""
    suffix = "" if file is None else file.suffix.removeprefix(".").lower()
    return next((f for f in FileFormat if f.value == suffix), FileFormat.TABLE)


def _choose(
    storage: Storage, search: str | None, individual: int | None
) -> tuple[SearchRecord, IndividualRecord | None]:
    """The search asked for, or the individual asked for and the search it is of."""
    from oialr_search.analysis.leaderboard import choose_search

    chosen = choose_search(storage, search)
    if individual is None:
        return chosen, None
    record = storage.individual(individual)
    if record is None:
        raise StorageError(f"no individual {individual} in the database")
    if search is not None and record.search_id != chosen.id:
        raise StorageError(f"individual {individual} is not of search {search!r}")
    return next(s for s in storage.searches() if s.id == record.search_id), record


def _best_yaml(storage: Storage, search: SearchRecord) -> str:
    """The best individual's configuration, or why there is none."""
    from oialr_search.analysis import export as exporting

    try:
        return exporting.export(storage, search, exporting.best_individual(storage, search))
    except StorageError:
        return ""
    except (ConfigError, KeyError) as error:
        return f"# cannot be exported by this version: {error}"


def _write(path: Path, text: str) -> None:
    from oialr_search.analysis.export import write_aside

    try:
        write_aside(path, text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _epoch_printer(name: str, epochs: int) -> Any:
    """Prints a line an epoch, to standard error: standard output is for the result."""
    from oialr_training.protocol import Epoch, Started

    def report(event: Event) -> None:
        match event:
            case Started():
                print(f"layers: {event.layers}", file=sys.stderr)
                for warning in event.warnings:
                    print(f"warning: {warning}", file=sys.stderr)
            case Epoch():
                shown = _shown(event.metrics)
                print(f"{name} epoch {event.epoch}/{epochs}  {shown}", file=sys.stderr, flush=True)

    return report


def _shown(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
