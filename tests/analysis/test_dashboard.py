"""The dashboard: what its page asks for is answered, nothing is written, a browser shows it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna_dashboard
import pytest

from oialr_search.analysis import dashboard
from oialr_search.analysis.dashboard import LOG_LIMIT_BYTES, make_app
from oialr_search.analysis.optuna_view import SearchStorage
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import EpochRecord, Status

from ..conftest import Command
from ..invented import statuses_of
from .browser import Look, look, needs_browser
from .growing import COMPLETED, METRIC, SPACE, fill, go_on, proposal

NUM_INDIVIDUALS = 100
SEARCH_ID = 3


class Answer:
    """What an application answers."""

    def __init__(self, app: Any, path: str, method: str = "GET", **environ: str) -> None:
        request: dict[str, Any] = {"REQUEST_METHOD": method, **environ}
        request["PATH_INFO"], _, request["QUERY_STRING"] = path.partition("?")
        setup_testing_defaults(request)
        pieces = app(request, self._start)
        self.body = b"".join(pieces)

    def _start(self, status: str, headers: list[tuple[str, str]], *_: Any) -> None:
        self.status, self.headers = int(status.split()[0]), dict(headers)

    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Storage]]:
    """A search with individuals of all kinds, and its URL; read it only."""
    folder = tmp_path_factory.mktemp("dashboard")
    url = f"sqlite:///{folder}/search.db"
    with open_storage(url, create=True) as storage:
        fill(storage, statuses_of(NUM_INDIVIDUALS), folder)
        yield url, storage


@pytest.fixture(scope="module")
def app(filled: tuple[str, Storage]) -> Any:
    return make_app(filled[1])


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Storage]:
    """A database to change."""
    with open_storage(f"sqlite:///{tmp_path}/search.db", create=True) as storage:
        yield storage


@pytest.fixture(scope="module")
def address(filled: tuple[str, Storage], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `oialr-search dashboard` answers, as it says itself."""
    command = Command(tmp_path_factory.mktemp("command"), dict(os.environ))
    process = command.start("dashboard", "--db", filled[0], "--port", "0")
    assert process.stdout is not None
    first, second = process.stdout.readline(), process.stdout.readline()
    found = re.match(r"http://127\.0\.0\.1:(\d+)/", first)
    assert found, first + second
    port = found[1]
    assert re.search(rf"ssh -L {port}:127\.0\.0\.1:{port} \S+@\S+$", second)
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")


def test_the_detail_is_what_optuna_dashboard_would_say(
    filled: tuple[str, Storage], app: Any
) -> None:
    theirs = optuna_dashboard.wsgi(SearchStorage(filled[1]))
    expected = Answer(theirs, f"/api/studies/{SEARCH_ID}").json()
    found = Answer(app, f"/api/studies/{SEARCH_ID}").json()
    assert len(found["trials"]) == NUM_INDIVIDUALS
    assert {trial["state"] for trial in found["trials"]} == {
        "Complete",
        "Fail",
        "Pruned",
        "Running",
    }
    for trial in (*found["trials"], *found["best_trials"]):
        individual = trial["trial_id"]
        assert f"(/individuals/{individual}/log)" in trial["note"]["body"]
        trial["note"] = {"version": 0, "body": ""}
    assert "trial_id" in found.pop("note")["body"]
    expected.pop("note")
    for name in ("union_user_attrs", "intersection_search_space", "union_search_space"):
        key = "key" if name == "union_user_attrs" else "name"
        for detail in (expected, found):
            detail[name].sort(key=lambda entry: entry[key])
    assert found == to_be_read(expected)


def to_be_read(detail: Any) -> Any:
    """Figures in seven digits."""
    for trial in (*detail["trials"], *detail["best_trials"]):
        if "values" in trial:
            trial["values"] = [float(f"{value:.7g}") for value in trial["values"]]
        for value in trial["intermediate_values"]:
            if value["value"] != "nan":
                value["value"] = float(f"{value['value']:.7g}")
        for param in trial["params"]:
            if param["param_external_pytyp"] == "<class 'float'>":
                value = float(param["param_external_value"])
                param["param_external_value"] = str(float(f"{value:.7g}"))
        for attribute in trial["user_attrs"]:
            with suppress(ValueError):
                if not attribute["value"].isdigit():
                    attribute["value"] = str(float(f"{float(attribute['value']):.7g}"))
    return detail


@pytest.mark.parametrize("after", [0, 1, 40, NUM_INDIVIDUALS - 1, NUM_INDIVIDUALS, 10**6])
def test_only_trials_after_a_number_are_told(app: Any, after: int) -> None:
    answer = Answer(app, f"/api/studies/{SEARCH_ID}?after={after}")
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    numbers = [trial["number"] for trial in answer.json()["trials"]]
    assert numbers == list(range(after, NUM_INDIVIDUALS))


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/dashboard", b"Optuna Dashboard"),
        (f"/dashboard/studies/{SEARCH_ID}/analytics", b"Optuna Dashboard"),
        ("/static/bundle.js", b"createElement"),
        ("/favicon.ico", b""),
        ("/api/meta", b'"artifact_is_available": false'),
        ("/api/studies", b'"study_name": "minivit_digits"'),
        (f"/api/studies/{SEARCH_ID}/param_importances", b"optimizer.lr"),
        *((f"/api/studies/{SEARCH_ID}/plot/{name}", b"optimizer.lr") for name in ("slice", "rank")),
        (f"/csv/{SEARCH_ID}", b"Param optimizer.lr"),
    ],
)
def test_what_else_the_page_asks_for(app: Any, path: str, content: bytes) -> None:
    answer = Answer(app, path, HTTP_ACCEPT_ENCODING="identity")
    assert answer.status == 200
    assert content in answer.body


@pytest.mark.parametrize("path", ["/api/studies/9", "/individuals/99999/log", "/nothing"])
def test_what_is_not_there_is_not_found(app: Any, path: str) -> None:
    assert Answer(app, path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/api/studies", f"/api/studies/{SEARCH_ID}", "/x"])
def test_nothing_can_be_written(app: Any, method: str, path: str) -> None:
    answer = Answer(app, path, method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert "only reads" in answer.json()["reason"]


def test_a_head_has_no_body(app: Any) -> None:
    answer = Answer(app, f"/api/studies/{SEARCH_ID}", "HEAD")
    assert (answer.status, answer.body) == (200, b"")


def test_another_name_for_this_machine_is_refused(app: Any) -> None:
    assert Answer(app, "/api/studies", HTTP_HOST="evil.example:8080").status == 403
    assert Answer(app, "/api/studies", HTTP_HOST="localhost:8080").status == 200


def test_the_page_of_a_search_that_grows(growing: Storage, tmp_path: Path) -> None:
    app = make_app(growing)
    assert Answer(app, "/api/studies").json() == {"study_summaries": []}
    search = fill(growing, {2: Status.COMPLETED, 7: Status.RUNNING}, tmp_path)
    assert len(Answer(app, f"/api/studies/{search.id}").json()["trials"]) == 2
    generation, runner = go_on(growing, search)
    [trial] = Answer(app, f"/api/studies/{search.id}?after=1").json()["trials"]
    assert (trial["number"], trial["state"]) == (1, "Waiting")
    for _ in range(2):
        claim = growing.claim(search.id, proposal(search, generation), 100, runner)
        assert claim is not None
        growing.finish_evaluation(claim.evaluation.id, COMPLETED)
    detail = Answer(app, f"/api/studies/{search.id}?after=1").json()
    assert [trial["number"] for trial in detail["trials"]] == [1, 2]
    assert [trial["number"] for trial in detail["best_trials"]] == [1]
    assert detail["trials"][0]["values"] == [1.25]
    assert {"key": "train_loss", "value": "nan"} in detail["trials"][0]["user_attrs"]


def test_of_many_trials_few_have_lines(
    filled: tuple[str, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "MANY_TRIALS", NUM_INDIVIDUALS - 1)
    detail = Answer(make_app(filled[1]), f"/api/studies/{SEARCH_ID}").json()
    drawn = [trial for trial in detail["trials"] if trial["intermediate_values"]]
    best: list[float] = []
    for trial in detail["trials"]:
        if trial["state"] == "Complete" and (not best or trial["values"][0] < best[-1]):
            best += trial["values"]
    assert [trial["values"][0] for trial in drawn if "values" in trial] == best
    assert sum(trial["state"] == "Running" for trial in drawn) == 4
    assert len(drawn) == len(best) + 4
    assert detail["has_intermediate_values"]


def test_a_page_that_lived_is_as_one_that_begins(
    growing: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "MANY_TRIALS", 4)
    search = fill(growing, dict.fromkeys((2, 3, 4), Status.COMPLETED), tmp_path)
    lived = make_app(growing)

    def trials(app: Any) -> Any:
        return Answer(app, f"/api/studies/{search.id}").json()["trials"]

    assert all(trial["intermediate_values"] for trial in trials(lived))
    generation, runner = go_on(growing, search)
    evaluations = []
    for number in range(2):
        rank = replace(runner, world_rank=number)
        claim = growing.claim(search.id, proposal(search, generation + number), 100, rank)
        assert claim is not None
        evaluations.append(claim.evaluation.id)
        growing.add_epoch(evaluations[-1], EpochRecord(epoch=1, step=9, metrics={METRIC: 99.0}))
    assert trials(lived) == trials(make_app(growing))  # more than four
    # The later one ends first, and is the best so far only until the earlier one ends.
    for evaluation, fitness in zip(reversed(evaluations), (1.0, 0.5), strict=True):
        growing.finish_evaluation(evaluation, replace(COMPLETED, fitness=fitness))
        assert trials(lived) == trials(make_app(growing))
    assert [bool(trial["intermediate_values"]) for trial in trials(lived)][3:] == [True, False]


def test_figures_have_no_rounding_noise(growing: Storage, tmp_path: Path) -> None:
    search = fill(growing, {2: Status.RUNNING}, tmp_path)
    generation, runner = go_on(growing, search)
    claim = growing.claim(search.id, proposal(search, generation), 100, runner)
    assert claim is not None
    metrics = {METRIC: 97.91666666666667}
    growing.add_epoch(claim.evaluation.id, EpochRecord(epoch=1, step=9, metrics=metrics))
    outcome = replace(COMPLETED, fitness=100 - metrics[METRIC], metrics=metrics)
    growing.finish_evaluation(claim.evaluation.id, outcome)
    [trial] = Answer(make_app(growing), f"/api/studies/{search.id}").json()["trials"]
    assert trial["values"] == [2.083333]
    assert trial["intermediate_values"] == [{"step": 1, "value": 2.083333}]
    assert {"key": METRIC, "value": "97.91667"} in trial["user_attrs"]


def test_logs_are_opened(growing: Storage, tmp_path: Path) -> None:
    fill(growing, {2: Status.COMPLETED, 3: Status.FAILED, 4: Status.QUEUED}, tmp_path)
    app = make_app(growing)
    missing = Answer(app, "/individuals/2/log")
    assert missing.status == 404
    assert b"of node01 cannot be read here: no such file" in missing.body
    stored = Answer(app, "/individuals/3/log")
    assert stored.status == 200
    assert b"its end, from the database:]\nTraceback" in stored.body
    assert Answer(app, "/individuals/4/log").status == 404

    log = tmp_path / "individual-000002" / "attempt-1" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"epoch 1 <b>\xff\n")
    answer = Answer(app, "/individuals/2/log")
    assert (answer.status, answer.body) == (200, b"epoch 1 <b>\xff\n")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    with log.open("wb") as file:
        file.truncate(2**40)  # takes no room
        file.seek(2**40)
        file.write(b"the end")
    answer = Answer(app, "/individuals/2/log")
    assert answer.body.startswith(f"[the last {LOG_LIMIT_BYTES} of {2**40 + 7} bytes".encode())
    assert answer.body.endswith(b"the end")
    assert len(answer.body) < LOG_LIMIT_BYTES + 1000
    log.unlink()
    os.mkfifo(log)  # nobody writes: who reads, waits
    assert Answer(app, "/individuals/2/log").status == 404


@pytest.mark.parametrize("path", ["/individuals/2/../../etc/passwd", "/individuals/-1/log"])
def test_no_other_file_is_opened(app: Any, path: str) -> None:
    assert Answer(app, path).status == 404


def test_the_command_serves(address: str) -> None:
    with urllib.request.urlopen(f"{address}/api/studies", timeout=60) as answer:
        [study] = json.load(answer)["study_summaries"]
    assert study["study_name"] == "minivit_digits"
    request = urllib.request.Request(f"{address}/api/studies", b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(request, timeout=60)


def test_a_port_in_use_is_one_line(filled: tuple[str, Storage], command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = command("dashboard", "--db", filled[0], "--port", port, check=False)
    assert result.returncode == 78
    assert re.fullmatch(rf"error: cannot listen on 127\.0\.0\.1:{port}: .*\n", result.stderr)


def test_interrupted_it_ends_quietly(filled: tuple[str, Storage], command: Command) -> None:
    process = command.start("dashboard", "--db", filled[0], "--port", "0")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in rest


@needs_browser
def test_a_browser_shows_the_search(address: str, pytestconfig: pytest.Config) -> None:
    folder = pytestconfig.getoption("pictures")

    def picture(name: str) -> Path | None:
        return folder and Path(folder, f"dashboard-{name}.png")

    study = f"{address}/dashboard/studies/{SEARCH_ID}"
    drawn = "document.querySelectorAll('.js-plotly-plot .main-svg').length"
    overview, analytics, trials = look(
        Look(study, f"{drawn} > 3", picture("search")),
        Look(f"{study}/analytics", f"{drawn} > 3", picture("analytics")),
        Look(
            f"{study}/trials?numbers=41",
            "document.body.innerText.includes('of individual')",
            picture("individual"),
        ),
    )
    assert "minivit_digits" in overview
    assert "optimizer.lr" in overview
    assert analytics
    assert "Trial 41" in trials
    for name in (*SPACE, "trainable_percent", "log of individual"):
        assert name in trials
