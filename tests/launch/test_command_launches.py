"""Searches of a script of one's own with real ranks and workers, these in another environment."""

from __future__ import annotations

import json
import sqlite3
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from oialr_search.analysis.plots.names import PlotName

from ..conftest import ROOT, Command, make_command

SCRIPT = """
import argparse, json, os, pathlib, signal, sys
from oialr_search_report import report, state_dir
from beside import loss_of
parser = argparse.ArgumentParser()
for name in ("lr", "seed", "epochs"):
    parser.add_argument(f"--{name}", type=float)
given = parser.parse_args()
path = pathlib.Path(state_dir()) / "epoch"
begin = int(path.read_text()) if path.exists() else 0
print("begins after", begin, "in", sys.prefix)
for epoch in range(begin + 1, int(given.epochs) + 1):
    path.write_text(str(epoch))
    if epoch == 2 and "individual-000002" in str(path):
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    if report(epoch=epoch, validation_loss=loss_of(given.lr) / epoch, accuracy=50 + given.lr):
        sys.exit(75)
"""
SEARCH = """
command: "{python} train.py --lr {optimizer.lr} --seed {seed} --epochs {epochs}"
metrics: {validation_loss: lower, accuracy: {better: higher, percent: true}}
epochs: 4
optimizer: {lr: 0.5}
search: {name: mine, metric: validation_loss, evaluations: 6, islands: 2, start_with: [file]}
space: {optimizer.lr: {low: 1.0e-3, high: 1.0, scale: log}}
"""
NETWORKS_ONLY = {"inner_ranks", "stability", "learning_rates", "pareto"}


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Another environment's, which has what this one has and the training side."""
    try:
        venv.create(tmp_path / "env", with_pip=False)
    except OSError as error:
        pytest.skip(f"no second environment can be made: {error}")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = tmp_path / "env" / "lib" / version / "site-packages"
    paths = [sysconfig.get_paths()["purelib"], str(ROOT / "workers")]
    (packages / "more.pth").write_text("".join(f"{path}\n" for path in paths))
    return tmp_path / "env" / "bin" / "python"


@pytest.fixture
def command(tmp_path: Path) -> Command:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("def loss_of(lr):\n    return abs(lr - 0.1) + 0.01\n")
    (tmp_path / "search.yaml").write_text(SEARCH)
    return make_command(tmp_path)


@pytest.mark.slow
def test_a_script_of_one_s_own_is_searched_looked_at_and_run_again(
    command: Command, tmp_path: Path, python: Path
) -> None:
    command("run", "search.yaml", "--worker-python", python, ranks=2)
    database = tmp_path / "searches" / "search.db"
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "select individual_id, attempt, status, resumed_epoch, last_epoch, log_path"
            " from evaluations order by individual_id, attempt"
        ).fetchall()
        (versions,) = connection.execute("select versions from launches").fetchone()
    assert [(*row[:4], row[4] or 1) for row in rows if row[0] == 2] == [
        (2, 1, "failed", 0, 1),  # whether its first epoch was heard or not
        (2, 2, "completed", 1, 4),
    ]
    assert {row[2:5] for row in rows if row[0] != 2} == {("completed", 0, 4)}
    log = Path(rows[0][5]).read_text()
    assert f"begins after 0 in {python.parent.parent}" in log
    assert json.loads(versions)["worker python"] == sys.version.split()[0]
    assert not list(tmp_path.glob("searches/mine/individual-*/state"))

    for look in (["leaderboard"], ["status"], ["show", "2"], ["report", "-o", "report.html"]):
        command(*look)
    for name in PlotName:
        result = command("plot", name, "-o", "plot.html", check=False)
        assert result.returncode == (78 if name in NETWORKS_ONLY else 0), (name, result.stderr)
        assert "Traceback" not in result.stderr
    said = command("export", "-o", "best.yaml").stdout
    content = yaml.safe_load((tmp_path / "best.yaml").read_text())
    line = f"--lr {content['optimizer']['lr']} --seed 42 --epochs 4"
    assert line in said
    assert line in content["provenance"]["command_line"]
    command("train", "best.yaml", "--worker-python", python, "--output", "again")
    result = json.loads((tmp_path / "again" / "seed-42" / "result.json").read_text())
    assert result["metrics"]["validation_loss"] == content["provenance"]["fitness"]


@pytest.mark.slow
def test_what_is_wrong_is_one_line_before_the_search_starts(
    command: Command, tmp_path: Path
) -> None:
    for options, line in (
        (["--set", "command=no-such-program {optimizer.lr}"], "no program 'no-such-program'"),
        (["--worker-python", "/nowhere/python"], "cannot start '/nowhere/python' of `worker`"),
        (["--set", "search.metric=accurracy"], "did you mean `accuracy`?"),
    ):
        result = command("run", "search.yaml", *options, ranks=2, check=False)
        assert result.returncode == 78, result.stderr
        errors = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
        assert len(errors) == 1
        assert line in errors[0]
        assert not (tmp_path / "searches" / "search.db").exists()
