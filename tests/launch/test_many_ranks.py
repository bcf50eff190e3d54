"""Many ranks on one machine, whose evaluations cost nothing: each individual is stored once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oialr_search.evaluation.files import (
    EVALUATION_FILE,
    INDIVIDUAL_FILE,
    OUTCOME_FILE,
    REQUEST_FILE,
)
from oialr_search.storage import open_storage
from oialr_search.storage.records import Status, individual_folder

from ..conftest import ROOT, mpiexec
from ..storage.postgres_server import started_server

NAME = "minivit_digits"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An SQLite file that does not exist yet, or a PostgreSQL server that is as it comes."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/search.db"
        return
    with started_server() as server:
        yield server.url


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_each_individual_is_stored_once(tmp_path: Path, database_url: str) -> None:
    run(tmp_path, database_url, ranks=4, evaluations=100, seconds=0.0)
    check(tmp_path, database_url, ranks=4, evaluations=100)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_64_ranks_store_each_individual_once(
    tmp_path: Path, database_url: str, seconds: float
) -> None:
    run(tmp_path, database_url, ranks=64, evaluations=20_000, seconds=seconds)
    check(tmp_path, database_url, ranks=64, evaluations=20_000)


def run(folder: Path, url: str, *, ranks: int, evaluations: int, seconds: float) -> None:
    """Search on four islands to the end."""
    command = [*mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py"]
    command += [str(ROOT / "benchmarks" / "instant_search.py"), str(folder), "--db", url]
    command += ["--evaluations", str(evaluations), "--seconds", str(seconds), "--islands", "4"]
    path = f"{ROOT}{os.pathsep}{ROOT / 'workers'}"
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60 + evaluations
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


def check(folder: Path, url: str, *, ranks: int, evaluations: int) -> None:
    """The database, the folders and the ranks all know each individual once."""
    with open_storage(url, read_only=True) as storage:
        [search] = storage.searches()
        [launch] = storage.launches(search.id)
        individuals = storage.individuals(search.id)
        finished = storage.finished_since(search.id)
        progress = storage.progress(search.id)
        islands = storage.islands(search.id)
        migrations = storage.migrations(search.id)
        assert storage.unfinished(search.id) == []

    assert launch.exit_code == 0
    assert [individual.status for individual in individuals] == [Status.COMPLETED] * evaluations
    places = {(i.island, i.island_rank, i.generation) for i in individuals}
    assert len(places) == evaluations
    assert {place[:2] for place in places} <= {(i, r) for i in range(4) for r in range(ranks // 4)}
    assert [evaluation.finish_number for evaluation in finished] == [*range(1, evaluations + 1)]
    ids = [individual.id for individual in individuals]
    assert sorted(evaluation.individual_id for evaluation in finished) == ids
    assert {(e.status, e.attempt, e.last_epoch) for e in finished} == {(Status.COMPLETED, 1, 1)}
    assert progress.running == []
    assert progress.counts[Status.COMPLETED] == evaluations
    assert sum(island.counts[Status.COMPLETED] for island in islands) == evaluations
    assert {m.individual_id for m in migrations} <= set(ids)

    for individual in individuals:
        path = Path(individual_folder(str(folder / NAME), individual.id))
        assert {p.name for p in path.iterdir()} == {INDIVIDUAL_FILE, "attempt-1"}
        written = {EVALUATION_FILE, REQUEST_FILE, OUTCOME_FILE, "log.txt"}
        assert {p.name for p in (path / "attempt-1").iterdir()} == written
    assert len(list((folder / NAME).glob("individual-*"))) == evaluations
    assert list((folder / NAME).glob("worker-*")) == []

    costs = [json.loads(path.read_text()) for path in folder.glob("cost-*.json")]
    assert [cost["exit_code"] for cost in costs] == [0] * ranks
    assert sum(cost["started"] for cost in costs) == evaluations
