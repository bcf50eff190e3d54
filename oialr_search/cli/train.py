"""`export`, `train`: an individual as a training configuration, trained again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oialr_search.cli.options import (
    SEARCH_DIR,
    DatabaseOption,
    DataDirOption,
    FormatOption,
    SearchDirOption,
    SearchOption,
    SetOption,
    TaskPathOption,
    WorkerCommandOption,
    WorkerPythonOption,
    open_database,
)
from oialr_search.terminal.tables import Format, print_rows, write_file
from oialr_search.terminal.values import shown
from oialr_training.errors import ConfigError

if TYPE_CHECKING:
    from oialr_training.protocol import Event


def export(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; by default, print.")
    ] = None,
    individual: Annotated[
        int | None,
        typer.Option(
            help="Number of the individual; by default the best of the confirmed, else who is "
            "expected to be best."
        ),
    ] = None,
    knee: Annotated[
        bool,
        typer.Option(
            "--knee",
            help="The knee of the Pareto front: the least sum of the objectives, each from 0 to 1 "
            "on the front; without objectives of fitness and trainable parameters.",
        ),
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION", help="Of those that fulfil it: 'trainable_percent <= 10'."
        ),
    ] = None,
    db: DatabaseOption = None,
    search_dir: SearchDirOption = SEARCH_DIR,
    search: SearchOption = None,
    task_path: TaskPathOption = None,
) -> None:
    """Write an individual's complete training configuration as YAML.

    Example: `oialr-search export -o best.yaml`
    """
    from oialr_search.analysis.choice import final_choice, measured_as
    from oialr_search.analysis.choosing import choose
    from oialr_search.analysis.export import chosen_of
    from oialr_search.analysis.export import export as yaml_of
    from oialr_training.yaml_files import parse_yaml

    if individual is not None and (knee or at):
        raise typer.BadParameter("--individual names one: without --knee and --at")
    with open_database(db, search_dir) as storage:
        chosen, record = choose(storage, search, individual)
        if knee or at:
            record = chosen_of(storage, chosen, at=at, at_knee=knee)
        how = "" if record is None else measured_as(record)
        if record is None:
            choice = final_choice(storage, chosen)
            record, how = choice.individual, choice.how
        text = yaml_of(storage, chosen, record)
    if output is None:
        print(text, end="")
        return
    write_file(output, text.encode())
    print(f"individual {record.id} ({how}) written to {output}")
    line = parse_yaml(text, "export")["provenance"].get("command_line")
    if line is not None:
        print(line)


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
    task_path: TaskPathOption = None,
    worker_python: WorkerPythonOption = None,
    worker_command: WorkerCommandOption = None,
    output_format: FormatOption = Format.TABLE,
) -> None:
    """Train a configuration; print mean and standard deviation over the seeds.

    Example: `oialr-search train best.yaml --seeds 3`
    """
    from oialr_search.evaluation import devices, repeated_seeds
    from oialr_search.space.workers import WorkerConfig
    from oialr_training.tasks import load_training
    from oialr_training.validation import validate

    overrides = [*(assignments or ()), *([f"device={device}"] if device is not None else ())]
    config = load_training(file, overrides)
    try:
        gpu = devices.choose_gpu(config.device, devices.visible_gpus(os.environ), 0)
    except LookupError as error:
        raise ConfigError(f"{error} ({file})") from None
    given = {"python": worker_python, "command": worker_command or ""}
    start = validate(WorkerConfig, given, "--worker-python, --worker-command", prefix="worker.")
    settings = devices.WorkerSettings(gpu=gpu, num_threads=len(devices.affinity()), start=start)
    folder = output or Path("trainings") / file.stem
    folders = {seed: folder / f"seed-{seed}" for seed in range(config.seed, config.seed + seeds)}
    for seed_folder in folders.values():
        repeated_seeds.refuse_completed(seed_folder)
    results = []
    try:
        for seed, seed_folder in folders.items():
            results.append(
                repeated_seeds.train(
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
            print_rows(repeated_seeds.summary(results), output_format, title=title)


def _epoch_printer(name: str, epochs: int | None) -> Callable[[Event], None]:
    """Prints a line an epoch, to standard error: standard output is for the result."""
    from oialr_training.protocol import Epoch, Started

    def report(event: Event) -> None:
        match event:
            case Started():
                if event.layers:
                    print(f"layers: {event.layers}", file=sys.stderr)
                for warning in event.warnings:
                    print(f"warning: {warning}", file=sys.stderr)
            case Epoch():
                head = f"{name} epoch {event.epoch}" + (f"/{epochs}" if epochs else "")
                metrics = [f"{metric} {shown(value)}" for metric, value in event.metrics.items()]
                print(head, *metrics, sep="  ", file=sys.stderr, flush=True)

    return report
