"""The report: what it says is what the database holds, in one page that obeys no text in it."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from oialr_search.analysis.plots.catalogue import Source
from oialr_search.analysis.report import (
    NOT_MEASURED,
    Contender,
    costs,
    failure_kinds,
    mean_and_deviation,
    read_contender,
    report,
    results,
)
from oialr_search.space.hyperparameters import Hyperparameter, SearchSpace
from oialr_search.space.search_file import load_search
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import EvaluationRecord, Outcome, SearchRecord, Status
from oialr_training.errors import ConfigError
from oialr_training.protocol import Completed, Failed, Resources, write_result

from ..conftest import CIFAR10, Command
from ..invented import statuses_of, store_search
from ..storage.storage_examples import (
    SPACE,
    epoch_record,
    launched_search,
    new_launch,
    new_proposal,
    new_runner,
    started_evaluation,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = (
    "</script><script>alert(1)</script><img src=//example.org/x onerror=alert(2)>&amp;\x1b[31m"
)


class Page(HTMLParser):
    """The elements of a page outside its scripts, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Source, str]]:
    """A search of 60 individuals and its report."""
    path = tmp_path_factory.mktemp("report") / "search.db"
    with open_storage(f"sqlite:///{path}", create=True) as storage:
        statuses = statuses_of(60, failing=0.2)
        search = store_search(storage, load_search(CIFAR10), statuses, islands=4, epochs=30)
        source = Source(storage=storage, search=search)
        yield source, report(source, [], "task: minivit_cifar10\n", AT)


def test_the_page_needs_nothing_else(page: tuple[Source, str]) -> None:
    _, text = page
    tags = Page(text).tags
    for _, attributes in tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#")
    policies = [a["content"] for t, a in tags if t == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    assert (policies[0] or "").startswith("default-src 'none'")
    assert "url(" not in text[: text.index("</style>")]
    assert text.count("plotly.js v") == 1
    assert len(text) < 6_000_000


def test_the_page_says_what_the_database_holds(page: tuple[Source, str]) -> None:
    source, text = page
    words = Page(text).text
    best = source.by_fitness[0]
    assert best.evaluation is not None
    assert f"individual {best.id}" in words
    assert f"{best.evaluation.metrics['validation_top1']:.2f}" in words
    for name in best.hyperparameters:
        assert name in words
    assert "diverged: train_loss is nan after epoch 2" in words
    assert "f823ad8" in words
    assert "2.9.1" in words
    assert NOT_MEASURED in words
    assert "--compare baseline=" in words
    assert "No figure: no individual of search 'minivit_cifar10' can be drawn" in words
    anchors = {a["id"] for _, a in Page(text).tags if a.get("id")}
    links = {a["href"] for t, a in Page(text).tags if t == "a"}
    assert {(link or "").removeprefix("#") for link in links} <= anchors
    assert len([a for a in anchors if (a or "").startswith("plot-")]) == 9


def test_costs_add_up(page: tuple[Source, str]) -> None:
    source, _ = page
    evaluations = source.storage.finished_since(source.search.id)
    hours = sum(e.duration_s or 0 for e in evaluations) / 3600
    for table in costs(evaluations):
        *rows, everything = table.rows
        assert everything[1:3] == [str(len(evaluations)), f"{hours:.2f}"]
        assert sum(int(row[1]) for row in rows) == len(evaluations)

    def having(evaluation: EvaluationRecord, **resources: Any) -> EvaluationRecord:
        return dataclasses.replace(evaluation, resources=Resources(**resources))

    measured = [having(e, gpu_energy_j=3.6e6) for e in evaluations[:2]]
    assert costs(measured)[0].rows[-1][-1] == "GPU 2 kWh"
    used = [
        having(e, peak_host_memory_bytes=n << 30, samples_per_s=10.0 * n)
        for n, e in enumerate(evaluations[:3], start=1)
    ]
    nothing = having(used[0])
    for known in (used, [*used, nothing]):
        assert costs(known)[0].rows[-1][4:7] == ["3.00 GiB", "not measured", "20"]
    assert costs([*measured, *evaluations[2:]])[0].rows[-1][-1] == (
        f"GPU 2 kWh (2 of {len(evaluations)} measured)"
    )


def test_failures_of_a_kind_are_told_once(page: tuple[Source, str]) -> None:
    source, _ = page
    evaluations = source.storage.finished_since(source.search.id)
    failed = [e for e in evaluations if e.status is not Status.COMPLETED]
    renumbered = [
        dataclasses.replace(e, reason=(e.reason or "").replace("epoch 2", f"epoch {n}"))
        for n, e in enumerate(failed)
    ]
    kinds = failure_kinds(renumbered)
    assert len(kinds) == len(failure_kinds(evaluations)) <= 4
    assert sum(kind.number for _, kind in kinds) == len(failed) > 5


def completed(folder: Path, seed: int, top1: float) -> None:
    """What `oialr-search train` leaves."""
    path = folder / f"seed-{seed}"
    path.mkdir(parents=True)
    metrics = {"validation_loss": 0.5, "validation_top1": top1, "test_top1": top1 - 1}
    write_result(
        path,
        Completed(
            metrics=metrics,
            trainable_percent=100.0,
            compression_percent=100.0,
            device="cpu",
            duration_s=7200.0,
            at=0.0,
        ),
    )


def test_seeds_are_a_mean_and_a_deviation(tmp_path: Path, page: tuple[Source, str]) -> None:
    source, _ = page
    values = [80.0, 81.0, 83.0]
    for seed, top1 in enumerate(values):
        completed(tmp_path / "baseline", seed, top1)
    contender = read_contender(f"base={tmp_path / 'baseline'}")
    assert (contender.name, len(contender.runs)) == ("base", 3)
    other = Contender(name="other", runs=[{"validation_top1": 82.0, "validation_loss": 0.7}])
    table = results([contender, other], source.search)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    deviation = statistics.stdev(values)
    assert row["validation top-1 (%)"] == f"81.33\u00a0±\u00a0{deviation:.2f}"
    assert row["time (h)"] == "2.00\u00a0±\u00a00.00"
    assert row["seeds"] == "3"
    columns = list(table.columns)
    assert table.best == {
        (0, columns.index("validation loss")),
        (1, columns.index("validation top-1 (%)")),
    }
    assert table.rows[1][columns.index("trainable (%)")] == "–"
    assert mean_and_deviation([float("nan"), 1.0], 2) == "not a number"


def test_the_best_s_time_is_of_all_its_attempts_as_a_contender_s(tmp_path: Path) -> None:
    """The last attempt of a training of half an hour took over its epochs and ended at once."""
    with open_storage(f"sqlite:///{tmp_path}/search.db", create=True) as storage:
        ids = launched_search(storage, settings=load_search(CIFAR10).as_json())
        _, evaluation = started_evaluation(storage, *ids)
        for epoch in range(1, 4):
            storage.add_epoch(evaluation, epoch_record(epoch, epoch_s=600.0))
        completed = Outcome(status=Status.COMPLETED, fitness=1.0, trainable_percent=9.0)
        storage.finish_evaluation(evaluation, completed)
        [search] = storage.searches()
        text = report(Source(storage=storage, search=search), [], "", AT)
    assert "time (min)" in Page(text).text
    assert "30.00" in Page(text).text


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "failed" / "seed-1").mkdir(parents=True)
    write_result(tmp_path / "failed" / "seed-1", Failed(reason="no", at=0.0, cause="training"))
    (tmp_path / "broken" / "seed-1").mkdir(parents=True)
    (tmp_path / "broken" / "seed-1" / "result.json").write_bytes(b"\x00{")
    for assignment, message in (
        ("baseline", "takes NAME=FOLDER"),
        ("=x", "takes NAME=FOLDER"),
        (f"a={tmp_path}/missing", "no folder"),
        (f"a={tmp_path}", "no completed training"),
        (f"a={tmp_path}/failed", "no completed training"),
        (f"a={tmp_path}/broken", "cannot read"),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            read_contender(assignment)
        assert "\n" not in str(raised.value)


def store_hostile_search(storage: Storage) -> SearchRecord:
    """A failure and a success whose every text is hostile."""
    hostile = Hyperparameter(name="optimizer.name", kind="choice", choices=("adamw", HOSTILE))
    space = SearchSpace((*SPACE.hyperparameters[:3], hostile))
    search_id, launch_id = launched_search(storage, name=HOSTILE, metric=HOSTILE, space=space)
    storage.start_launch(
        new_launch(search_id, hostname=HOSTILE, command_line=HOSTILE, git_revision=HOSTILE)
    )
    launch_id += 1
    hyperparameters = {
        "optimizer.lr": 0.001,
        "oialr.delay_steps": 100,
        "oialr.full_rank_first": True,
        "optimizer.name": HOSTILE,
    }
    for generation, outcome in enumerate(
        (
            Outcome(status=Status.FAILED, reason=HOSTILE, log_tail=HOSTILE),
            Outcome(status=Status.COMPLETED, fitness=1.0, metrics={"loss": float("nan")}),
            Outcome(status=Status.COMPLETED, fitness=2.0, trainable_percent=10.0),
        )
    ):
        claim = storage.claim(
            search_id,
            new_proposal(generation, hyperparameters=hyperparameters),
            9,
            new_runner(launch_id, hostname=HOSTILE, device=HOSTILE, search_folder=HOSTILE),
        )
        assert claim is not None
        storage.finish_evaluation(claim.evaluation.id, outcome)
    search = storage.find_search(HOSTILE)
    assert search is not None
    return search


def test_hostile_texts_are_shown_and_not_obeyed(kind: str, new_url: Callable[[str], str]) -> None:
    with open_storage(new_url(kind), create=True) as storage:
        search = store_hostile_search(storage)
        contender = Contender(name=HOSTILE, runs=[{"validation_top1": 1.0}])
        text = report(Source(storage=storage, search=search), [contender], HOSTILE, AT)
    parsed = Page(text)
    assert "img" not in {tag for tag, _ in parsed.tags}
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert parsed.text.count("<script>alert(1)</script>") > 5
    assert {name for _, a in parsed.tags for name in a if name.startswith("on")} == set()
    assert not re.search(r"<img src=//", text)


def test_a_search_without_results_has_a_report(kind: str, new_url: Callable[[str], str]) -> None:
    with open_storage(new_url(kind), create=True) as storage:
        for number, status in enumerate((Status.FAILED, Status.RUNNING), start=1):
            running = status is Status.RUNNING
            file = load_search(CIFAR10, [f"search.name=search{number}"])
            statuses = dict.fromkeys(range(10 * number, 10 * number + 4), status)
            search = store_search(storage, file, statuses, search_id=number, epochs=0)
            words = Page(report(Source(storage=storage, search=search), [], "", AT)).text
            assert "No individual is completed yet." in words
            assert ("4 running" in words) is running
            assert ("None: every evaluation that ended has completed." in words) is running
        launched_search(storage, name="empty")
        empty = storage.find_search("empty")
        assert empty is not None
        words = Page(report(Source(storage=storage, search=empty), [], "", AT)).text
        assert words.count("search 'empty' has no individual yet") == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "x"], "takes NAME=FOLDER"),
        (["--search", "other"], "no search named 'other'"),
        (["-o", "missing/a.html"], "cannot write missing/a.html: No such file"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    seen_urls: dict[str, str], command: Command, options: list[str], message: str
) -> None:
    result = command("report", "--db", seen_urls["sqlite"], *options, check=False)
    assert result.returncode == 78
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
