"""A search from mpiexec to best.yaml, with real ranks, workers and databases."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import pty
import re
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.datasets import load_breast_cancer

from oialr_search.analysis.plots.names import PlotName
from oialr_training.data import LoadSettings
from oialr_training.protocol import Completed, write_result
from oialr_training.tasks import load_training

from ..conftest import (
    AUTOFORMER,
    BIN,
    CIFAR10,
    DIGITS,
    EXAMPLES,
    SHARED,
    SMALL_AUTOFORMER,
    SMALL_CIFAR10,
    Command,
    FinishedSearch,
    make_command,
    mpiexec,
    settings,
)
from ..oialr_training.test_data import make_images
from ..test_readme import COMMANDS


def query(database: Path, sql: str) -> list[dict[str, Any]]:
    """Rows of a plain SQL query."""
    connection = sqlite3.connect(database)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(sql)]
    finally:
        connection.close()


def test_exactly_the_individuals_asked_for_from_all_islands(digits_search: FinishedSearch) -> None:
    rows = query(digits_search.database, "select island, status, fitness from individuals")
    assert len(rows) == 4
    assert {row["island"] for row in rows} == {0, 1}
    assert {row["status"] for row in rows} == {"completed"}
    assert all(0 <= row["fitness"] <= 100 for row in rows)


def test_every_evaluation_converts_updates_and_truncates(digits_search: FinishedSearch) -> None:
    rows = query(
        digits_search.database,
        "select evaluation_id, count(*) updates, min(inner_rank * 1.0 / full_inner_rank) kept "
        "from rank_updates group by evaluation_id",
    )
    assert len(rows) == 4
    assert all(row["updates"] >= 4 and row["kept"] < 1.0 for row in rows)
    trainable = query(digits_search.database, "select trainable_percent p from evaluations")
    assert all(0 < row["p"] < 100 for row in trainable)


def test_what_every_evaluation_used_is_known_as_far_as_it_is_measured(
    digits_search: FinishedSearch,
) -> None:
    sql = "select samples_per_s speed, peak_host_memory_bytes bytes from evaluations"
    rows = query(digits_search.database, sql)
    assert all(row["speed"] > 1 and row["bytes"] > 100 << 20 for row in rows)


def test_training_loss_falls(digits_search: FinishedSearch) -> None:
    rows = query(
        digits_search.database,
        "select a.value first, b.value last from metrics a join metrics b using (evaluation_id) "
        "where a.name = 'train_loss' and b.name = 'train_loss' and a.epoch = 1 and b.epoch = 3",
    )
    assert len(rows) == 4
    assert all(row["last"] < row["first"] for row in rows)


def test_individuals_migrate(digits_search: FinishedSearch) -> None:
    rows = query(
        digits_search.database,
        "select m.source_island, m.target_island, i.island home from migrations m "
        "join individuals i on i.id = m.individual_id",
    )
    assert rows
    assert all(row["source_island"] != row["target_island"] for row in rows)
    assert all(row["home"] == row["source_island"] for row in rows)


def test_the_leaderboard_is_plain_sql_with_named_hyperparameters(
    digits_search: FinishedSearch,
) -> None:
    rows = query(digits_search.database, "select * from leaderboard limit 3")
    assert len(rows) == 3
    assert {"optimizer_lr", "oialr_cutoff_fraction", "scheduler_warmup_epochs"} <= set(rows[0])
    assert 5e-4 <= rows[0]["optimizer_lr"] <= 5e-3
    assert isinstance(rows[0]["oialr_delay_steps"], int)
    assert [row["fitness"] for row in rows] == sorted(row["fitness"] for row in rows)


def test_progress_is_plain_lines_of_rank_0_only(digits_search: FinishedSearch) -> None:
    lines = re.findall(r"\[(\d+)/4\] .*fitness \d", digits_search.output)
    assert lines == ["1", "2", "3", "4"]
    assert "\x1b" not in digits_search.output


def test_no_worker_is_left_and_no_stray_file(digits_search: FinishedSearch) -> None:
    folder = digits_search.command.folder
    left = [p for p in psutil.process_iter(["cmdline", "cwd"]) if p.info["cwd"] == str(folder)]
    assert not left
    names = {path.name for path in (folder / "searches" / "minivit_digits").iterdir()}
    books = {f"migrations-{island}.jsonl" for island in (0, 1)}  # of those that accepted somebody
    assert names & books
    records = {".lock", "search.json", "launch-000001.json"}
    assert names - books == records | {f"individual-{n:06d}" for n in range(1, 5)}
    files = {path.name for path in (folder / "searches").glob("*/individual-*/*")}
    assert files == {"individual.json", "attempt-1"}


@pytest.mark.parametrize("output", ["table", "json", "csv", "yaml"])
def test_the_leaderboard_in_every_format(digits_search: FinishedSearch, output: str) -> None:
    text = digits_search.command("leaderboard", "--top", "3", "--format", output).stdout
    best = query(digits_search.database, "select min(fitness) best from individuals")[0]["best"]
    match output:
        case "json":
            rows: Sequence[dict[str, Any]] = json.loads(text)
        case "csv":
            rows = list(csv.DictReader(io.StringIO(text)))
        case "yaml":
            rows = yaml.safe_load(text)
        case _:
            assert re.findall(r"^ +(\d+) ", text, re.MULTILINE) == ["1", "2", "3"]
            assert f"{best:.4g}" in text
            return
    assert [int(row["place"]) for row in rows] == [1, 2, 3]
    assert float(rows[0]["fitness"]) == best
    assert 5e-4 <= float(rows[0]["optimizer.lr"]) <= 5e-3


def test_a_narrow_terminal_gets_a_column_an_individual(digits_search: FinishedSearch) -> None:
    command, (ours, theirs) = digits_search.command, pty.openpty()
    environment = command.environment | {"COLUMNS": "80", "TERM": "dumb"}
    line = command.line("leaderboard", "--top", "3", ranks=0)
    subprocess.run(line, cwd=command.folder, env=environment, stdout=theirs, check=True)
    os.close(theirs)
    lines = os.read(ours, 1 << 16).decode().splitlines()
    os.close(ours)
    assert all(len(line) <= 80 for line in lines)
    assert ["place", "1", "2", "3"] in [line.split() for line in lines]
    assert any(line.split()[:1] == ["cutoff_fraction"] for line in lines)


def test_status_and_show(digits_search: FinishedSearch) -> None:
    status = json.loads(digits_search.command("status", "--format", "json").stdout)
    assert [row["island"] for row in status["islands"]] == [0, 1]
    assert sum(row["completed"] for row in status["islands"]) == status["ended"] == 4
    assert (status["launch"]["exit_code"], status["expected_end"]) == (0, None)
    story = yaml.safe_load(digits_search.command("show", "4", "--format", "yaml").stdout)
    assert story["individual"] == 4
    log = Path(story["evaluations"][0]["log"])
    assert digits_search.command("log", "4").stdout == log.read_text()
    assert all(ranks[0] >= ranks[-1] for ranks in story["evaluations"][0]["inner_ranks"].values())


@pytest.mark.slow
def test_the_best_trains_again_to_the_last_digit(digits_search: FinishedSearch) -> None:
    command = digits_search.command
    command("export", "-o", "best.yaml")
    config = load_training(command.folder / "best.yaml")
    assert config.provenance is not None
    assert config.provenance["search"] == "minivit_digits"
    assert config.num_threads is not None
    result = command("train", "best.yaml", "--output", "again", "--seeds", "2", "--format", "json")
    first = json.loads((command.folder / "again" / "seed-42" / "result.json").read_text())
    assert 100.0 - first["metrics"]["validation_top1"] == config.provenance["fitness"]
    stored = config.provenance["metrics"]
    for name in ("validation_loss", "train_loss", "trainable_percent"):
        assert first["metrics"][name] == stored[name]
    rows = {row["metric"]: row for row in json.loads(result.stdout)}
    assert {"test_loss", "test_top1", "trainable_percent", "compression_percent"} <= set(rows)
    assert rows["validation_loss"]["seeds"] == 2
    assert rows["validation_loss"]["standard_deviation"] > 0
    for name in ("log.txt", "metrics.jsonl", "result.json", "checkpoint.safetensors"):
        assert (command.folder / "again" / "seed-43" / name).stat().st_size > 0


def test_the_report_draws_all_that_was_recorded(
    digits_search: FinishedSearch, tmp_path: Path
) -> None:
    page, trained = tmp_path / "report.html", tmp_path / "trained"
    (trained / "seed-42").mkdir(parents=True)
    completed = Completed(
        metrics={"validation_top1": 90.0},
        trainable_percent=100.0,
        compression_percent=100.0,
        device="cpu",
        duration_s=9.0,
        at=0.0,
    )
    write_result(trained / "seed-42", completed)
    result = digits_search.command("report", "-o", page, "--compare", f"full rank={trained}")
    assert (result.stdout, result.stderr) == (f"report of minivit_digits written to {page}\n", "")
    text = page.read_text()
    assert set(re.findall(r'id="plot-(\w+)"', text)) == set(PlotName) - {PlotName.STABILITY}
    assert "untuned: the search file\\u0027s values" in text or "untuned: the search file's" in text
    assert "full rank" in text
    assert html.escape(digits_search.command("export").stdout.strip()) in text


def test_any_individual_can_be_exported(digits_search: FinishedSearch) -> None:
    text = digits_search.command("export", "--individual", "2").stdout
    stored = query(digits_search.database, "select hyperparameters h from individuals where id = 2")
    hyperparameters = json.loads(stored[0]["h"])
    exported = yaml.safe_load(text)
    assert exported["provenance"]["individual"] == 2
    assert exported["optimizer"]["lr"] == hyperparameters["optimizer.lr"]
    assert exported["oialr"]["delay_steps"] == hyperparameters["oialr.delay_steps"]


def test_a_file_that_only_rank_0_has_is_enough(command: Command) -> None:
    """The other ranks get the search file from rank 0; none waits for ever."""
    half = [str(BIN / "oialr-search"), "run", "--islands", "3"]
    line = [*mpiexec(), "-n", "1", *half, str(DIGITS), ":", "-n", "1", *half, "nofile.yaml"]
    result = subprocess.run(
        line,
        cwd=command.folder,
        env=command.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert "3 islands need at least 3 ranks, got 2" in result.stderr


@pytest.mark.slow
def test_cifar10_on_two_islands(tmp_path: Path, cifar10_dir: Path) -> None:
    command = make_command(tmp_path)
    options = ["--islands", "2", "--evaluations", "4", "--data-dir", str(cifar10_dir)]
    command("run", CIFAR10, *options, *settings(SMALL_CIFAR10), ranks=2)
    database = command.folder / "searches" / "search.db"
    assert len(query(database, "select id from individuals where status = 'completed'")) == 4
    shrunk = query(
        database,
        "select min(step) first, min(inner_rank * 1.0 / full_inner_rank) kept from rank_updates "
        "group by evaluation_id",
    )
    assert len(shrunk) == 4
    assert all(row["first"] >= 4 and row["kept"] < 1.0 for row in shrunk)
    command("export", "-o", "best.yaml")
    command("train", "best.yaml", "--data-dir", cifar10_dir, "--output", "again")
    config = load_training(tmp_path / "best.yaml")
    assert config.provenance is not None
    result = json.loads((tmp_path / "again" / "seed-42" / "result.json").read_text())
    assert 100.0 - result["metrics"]["validation_top1"] == config.provenance["fitness"]
    assert result["metrics"]["validation_loss"] == config.provenance["metrics"]["validation_loss"]


@pytest.mark.slow
def test_autoformer_on_two_islands(tmp_path: Path) -> None:
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no ETTm2 in {SHARED / 'data'}")
    command = make_command(tmp_path)
    data = ["--data-dir", SHARED / "data"]
    options = ["--islands", "2", "--evaluations", "3", *data, *settings(SMALL_AUTOFORMER)]
    command("run", AUTOFORMER, *options, ranks=2)
    database = command.folder / "searches" / "search.db"
    rows = query(database, "select fitness, metrics from evaluations")
    assert len(rows) == 3
    for row in rows:
        assert row["fitness"] == json.loads(row["metrics"])["validation_mse"]
    shrunk = query(
        database, "select min(inner_rank * 1.0 / full_inner_rank) kept from rank_updates"
    )
    assert shrunk[0]["kept"] < 1.0
    command("export", "-o", "best.yaml")
    assert list(yaml.safe_load((tmp_path / "best.yaml").read_text()))[-1] == "provenance"
    trained = command("train", "best.yaml", *data, "--output", "again")
    assert "encoder_embedding.values (32x21 is smaller than min_dim=24)" in trained.stderr
    config = load_training(tmp_path / "best.yaml")
    assert config.provenance is not None
    result = json.loads((tmp_path / "again" / "seed-42" / "result.json").read_text())
    assert result["metrics"]["validation_mse"] == config.provenance["fitness"]
    network = config.network(cast(Any, None)).eval()
    network.load_state_dict(load_file(tmp_path / "again" / "seed-42" / "checkpoint.safetensors"))
    load_settings = LoadSettings(batch_size=32, seed=0, device=torch.device("cpu"), num_threads=1)
    test = config.load_data(SHARED / "data")(load_settings).test
    assert config.measure(network, test)["mse"] == pytest.approx(result["metrics"]["test_mse"])


@pytest.mark.slow
def test_any_network_on_a_folder_of_pictures(tmp_path: Path) -> None:
    make_images(tmp_path / "pictures", per_class=8, classes=4)
    shutil.copy(EXAMPLES / "pictures.yaml", tmp_path)
    command = make_command(tmp_path)
    small = {
        "model.name": "timm/vit_tiny_patch16_224",
        "model.args.depth": "2",
        "data.img_size": "32",
        "epochs": "3",
        "batch_size": "8",
        "scheduler.warmup_epochs": "1",
        "space.model.args.depth": "{low: 1, high: 3}",
        "space.oialr.delay_steps": "{low: 2, high: 4}",
        "space.oialr.update_frequency": "{low: 2, high: 3}",
    }
    options = [*settings(small), "--data-dir", tmp_path / "pictures", "--evaluations", "4"]
    command("run", "pictures.yaml", *options, ranks=2)
    rows = query(
        command.folder / "searches" / "search.db",
        "select i.status, count(u.step) updates from individuals i "
        "join evaluations e on e.individual_id = i.id "
        "left join rank_updates u on u.evaluation_id = e.id group by i.id",
    )
    assert [row["status"] for row in rows if row["updates"]] == ["completed"] * 4
    command("export", "-o", "best.yaml")
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["model"]["args"]["depth"] in (
        1,
        2,
        3,
    )
    command("train", "best.yaml", "--data-dir", tmp_path / "pictures", "--output", "again")
    result = json.loads((tmp_path / "again" / "seed-42" / "result.json").read_text())
    provenance = yaml.safe_load((tmp_path / "best.yaml").read_text())["provenance"]
    assert 100 - result["metrics"]["validation_top1"] == provenance["fitness"]
    assert result["metrics"]["validation_loss"] == provenance["metrics"]["validation_loss"]


@pytest.mark.slow
def test_a_task_of_one_s_own_from_another_folder(tmp_path: Path) -> None:
    """The example of the README, with nothing of the repository on Python's path."""
    for name in ("tabular.py", "tabular.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    load_breast_cancer(as_frame=True).frame.to_csv(tmp_path / "table.csv", index=False)
    command = make_command(tmp_path)
    options = ["--task-path", tmp_path, "--data-dir", tmp_path]
    command("run", "tabular.yaml", *options, "--evaluations", "4", ranks=2)
    rows = query(command.folder / "searches" / "search.db", "select status from individuals")
    assert [row["status"] for row in rows] == ["completed"] * 4
    command("export", "-o", "best.yaml", "--task-path", tmp_path)
    command("train", "best.yaml", *options, "--output", "again")
    result = json.loads((tmp_path / "again" / "seed-42" / "result.json").read_text())
    provenance = yaml.safe_load((tmp_path / "best.yaml").read_text())["provenance"]
    assert result["metrics"]["validation_loss"] == provenance["fitness"]


def test_the_readme_s_commands_run_in_their_order(digits_search: FinishedSearch) -> None:
    for line in COMMANDS:
        words = shlex.split(line)[1:]
        if words[0] == "dashboard":  # it does not end by itself, and its port may be in use
            process = digits_search.command.start(*words, "--port", "0")
            assert process.stdout is not None
            assert process.stdout.readline().startswith("http://127.0.0.1:")
            process.terminate()
            assert process.wait(timeout=60) == 0
        else:
            digits_search.command(*words)
    assert (digits_search.command.folder / "trainings" / "best" / "seed-44").is_dir()
