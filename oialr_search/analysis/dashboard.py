"""optuna-dashboard over a search, for the browsers of this machine; it only reads.

Its page asks again and again for `/api/studies/ID?after=N`, the trials from the first on that had
not ended when it asked before. That answer is made here, of texts that are kept trial by trial:
optuna-dashboard makes each anew, and looks through all trials of a search that has ended. The rest
is its own.
"""

from __future__ import annotations

import getpass
import json
import numbers
import os
import re
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from socketserver import ThreadingMixIn
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard._serializer import serialize_distribution, serialize_study_detail

from oialr_search.analysis.distributions import Space
from oialr_search.analysis.optuna_view import CONSTRAINTS, SearchStorage
from oialr_search.space.pareto import pareto_front
from oialr_search.storage.database import Storage
from oialr_search.storage.records import StorageError, StorageUnavailable
from oialr_search.terminal.values import without_noise
from oialr_training.errors import ConfigError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
LOG_LIMIT_BYTES = 2**20
TRIALS_AT_ONCE = 1000  # in one piece of an answer
MANY_TRIALS = 1000  # of more the page cannot draw the epochs: each is a line of its own
NOTE = (
    "A trial's number counts the individuals of the search from 0; the individual's own number, "
    "as `oialr-search show` takes it, is its trial_id.\n\n"
    "Failed and timed out individuals are *Fail*; lost ones, which wait to be repeated, *Waiting*. "
    "Intermediate values are those of the fitness, by epoch; of a search of more than "
    f"{MANY_TRIALS} individuals, the page has those that run and those that were the best so far; "
    "one that was open before has the others until it is loaded again."
)
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


def serve(storage: Storage, port: int) -> None:
    """Serve until SIGINT or SIGTERM, which end the process; 0 is any free port.

    Raises:
        ConfigError: when the port is in use.
    """
    app = _Application(storage)
    try:
        server = make_server(HOST, port, app, _Server, _Handler)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {HOST}:{port}: {error.strerror}; choose another --port"
        ) from None
    with server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)
        port = server.server_port
        print(f"http://{HOST}:{port}/dashboard/ shows the searches until Ctrl-C")
        print(
            "from another machine, the same address after: "
            f"ssh -L {port}:{HOST}:{port} {getpass.getuser()}@{socket.gethostname()}",
            flush=True,
        )
        # The first page need not wait for what can be read while a browser is opened.
        threading.Thread(target=app.read_ahead, daemon=True).start()
        server.serve_forever()


def make_app(storage: Storage) -> WSGIApplication:
    """Make the application that answers for all searches of a database."""
    return _Application(storage)


class _Server(ThreadingMixIn, WSGIServer):
    """Answers several requests at once; what is under way does not hold up the end."""

    daemon_threads = True
    block_on_close = False


class _Handler(WSGIRequestHandler):
    """Says nothing of requests."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


class _Application:
    """What is ours, before optuna-dashboard gets a request."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._view = SearchStorage(storage)
        self._pages: dict[int, _Page] = {}
        self._lock = threading.Lock()
        self._theirs: WSGIApplication = optuna_dashboard.wsgi(self._view)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        answer = self._answer(environ, start_response)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else answer

    def read_ahead(self) -> None:
        """Read the search launched last."""
        with suppress(StorageError):  # who asks for it, will be told
            for search in self._storage.searches()[:1]:
                self._study(search.id, 0)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            refusal = _reason("the dashboard of a search only reads")
            return _answer(start_response, "405 Method Not Allowed", [refusal], Allow="GET, HEAD")
        if not _is_here(environ.get("HTTP_HOST", HOST)):
            return _answer(start_response, "403 Forbidden", [_reason("it answers to 127.0.0.1")])
        try:
            if found := re.fullmatch(r"/individuals/(\d{1,18})/log", path):
                status, pieces = self._log(int(found[1]))
                return _answer(start_response, status, pieces, TEXT)
            if found := re.fullmatch(r"/api/studies/(\d{1,9})/?", path):
                after = parse_qs(environ.get("QUERY_STRING", "")).get("after", ["0"])[0]
                status, pieces = self._study(int(found[1]), int(after) if after.isdigit() else 0)
                return _answer(start_response, status, pieces)
        except StorageUnavailable as error:
            return _answer(start_response, "503 Service Unavailable", [_reason(str(error))])
        return self._theirs(environ, start_response)

    def _study(self, study_id: int, after: int) -> tuple[str, Sequence[bytes]]:
        studies = [study for study in self._view.get_all_studies() if study._study_id == study_id]
        if not studies:
            return "404 Not Found", [_reason(f"no search {study_id}")]
        trials = self._view.get_all_trials(study_id, deepcopy=False)
        with self._lock:
            page = self._pages.setdefault(study_id, _Page(study_id))
            page.update(trials, self._view.space(study_id))
            detail = serialize_study_detail(
                studies[0],
                [],  # the trials come as texts
                [],
                page.union,
                page.union,
                list(page.attributes.items()),
                page.has_intermediate_values,
                {},
                [],
            )
            detail["note"] = {"version": 1, "body": NOTE}
            del detail["trials"], detail["best_trials"]
            texts = page.texts[after:]
            best = [page.texts[number] for number in page.best]
        head = json.dumps(detail)[:-1].encode()
        pieces = [head, b', "best_trials": [', *best, b'], "trials": [', *_joined(texts), b"]}"]
        return "200 OK", pieces

    def _log(self, individual_id: int) -> tuple[str, Sequence[bytes]]:
        """The log of an individual's latest evaluation, or of a huge one its end."""
        individual = self._storage.individual(individual_id)
        if individual is None or individual.evaluation is None:
            return "404 Not Found", [f"no individual {individual_id} with a log\n".encode()]
        evaluation = individual.evaluation
        path = Path(evaluation.log_path)
        try:
            if path.is_file():
                return "200 OK", _tail(path)
            mistake = "no such file"
        except OSError as error:
            mistake = str(error.strerror)
        where = f"{path} of {evaluation.hostname} cannot be read here: {mistake}\n"
        if evaluation.log_tail is None:
            return "404 Not Found", [where.encode(errors="replace")]
        stored = f"[{where.strip()}; its end, from the database:]\n{evaluation.log_tail}"
        return "200 OK", [stored.encode(errors="replace")]


class _Page:
    """What the page of a study is made of, brought up to date trial by trial."""

    def __init__(self, study_id: int) -> None:
        self._study_id = study_id
        self._trials: Sequence[FrozenTrial] = []
        self._with_epochs: list[bool] = []  # of trials
        self._distributions: dict[str, dict[str, Any]] = {}
        self.texts: list[bytes] = []  # of trials, as JSON
        self.union: list[tuple[str, Any]] = []
        self.attributes: dict[str, bool] = {}  # is it a number, of all trials?
        self.has_intermediate_values = False
        self.best: list[int] = []  # the front, where there are several objectives

    def update(self, trials: Sequence[FrozenTrial], space: Space) -> None:
        """Take in the trials that are others than before."""
        if trials is self._trials or len(trials) < len(self._trials):
            return  # another thread has brought what is newer
        self.union = sorted(space.items())
        self._distributions = {n: serialize_distribution(d) for n, d in self.union}
        known, many = len(self._trials), len(trials) > MANY_TRIALS
        best: tuple[float, float] | None = None
        with_epochs = list[bool]()
        for number, trial in enumerate(trials):
            standing = _standing(trial)
            better = standing is not None and (best is None or standing < best)
            best = standing if better else best
            with_epochs.append(better or not many or not trial.state.is_finished())
            same = number < known and trial is self._trials[number]
            if same and with_epochs[number] == self._with_epochs[number]:
                continue
            self._note_attributes(trial)
            said = self._as_json(trial, with_epochs=with_epochs[number])
            self.texts[number : number + 1] = [json.dumps(said, separators=(",", ":")).encode()]
        self._trials, self._with_epochs = trials, with_epochs
        self.best = _best(trials, best)

    def _note_attributes(self, trial: FrozenTrial) -> None:
        for name, value in trial.user_attrs.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            self.attributes[name] = self.attributes.get(name, True) and is_number
        self.has_intermediate_values |= bool(trial.intermediate_values)

    def _as_json(self, trial: FrozenTrial, *, with_epochs: bool) -> dict[str, Any]:
        """A trial as optuna-dashboard says it, with a note that leads to the log."""
        individual = trial._trial_id
        note = f"[log](/individuals/{individual}/log) of individual {individual}"
        said: dict[str, Any] = {
            "trial_id": individual,
            "study_id": self._study_id,
            "number": trial.number,
            "state": trial.state.name.capitalize(),
            "params": [
                {
                    "name": name,
                    "param_internal_value": trial.distributions[name].to_internal_repr(value),
                    "param_external_value": value if isinstance(value, str) else _as_text(value),
                    "param_external_pytyp": str(type(value)),
                    "distribution": self._distributions[name],
                }
                for name, value in trial.params.items()
            ],
            "fixed_params": [],
            "user_attrs": [
                {"key": name, "value": value if isinstance(value, str) else _as_text(value)}
                for name, value in trial.user_attrs.items()
            ],
            "note": {"version": 1, "body": note},
            "artifacts": [],
            "constraints": [],
            "intermediate_values": [
                {"step": epoch, "value": _figure(value)}
                for epoch, value in trial.intermediate_values.items()
                if with_epochs
            ],
        }
        if excesses := _excesses(trial):
            said["constraints"] = excesses
        if trial.values is not None:
            said["values"] = [_figure(value) for value in trial.values]
        if trial.datetime_start is not None:
            said["datetime_start"] = trial.datetime_start.isoformat()
        if trial.datetime_complete is not None:
            said["datetime_complete"] = trial.datetime_complete.isoformat()
        return said


def _standing(trial: FrozenTrial) -> tuple[float, float] | None:
    """By how much constraints are not met, then the fitness; None: it has none."""
    if trial.state is not TrialState.COMPLETE:
        return None
    return sum(max(excess, 0.0) for excess in _excesses(trial)), trial.values[0]


def _excesses(trial: FrozenTrial) -> list[float]:
    found: list[float] = trial.system_attrs.get(CONSTRAINTS, [])
    return found


def _best(trials: Sequence[FrozenTrial], best: tuple[float, float] | None) -> list[int]:
    """The first with the best standing; with several objectives the front of who stands so."""
    if best is None:
        return []
    standings = [(number, _standing(trial)) for number, trial in enumerate(trials)]
    alike = [number for number, standing in standings if standing and standing[0] == best[0]]
    if len(trials[alike[0]].values) > 1:
        return [alike[place] for place in pareto_front([trials[n].values for n in alike])]
    return [next(number for number, standing in standings if standing == best)]


def _as_text(value: Any) -> str:
    if isinstance(value, float):
        value = without_noise(value)
    return str(value) if isinstance(value, numbers.Real) else json.dumps(value)


def _figure(value: float) -> float | str:
    """A number to be read, or what JSON has no number for: "nan", "inf", "-inf"."""
    return without_noise(value) if value - value == 0 else str(value)


def _joined(texts: Sequence[bytes]) -> Iterator[bytes]:
    """The texts with commas between them, in pieces that are few and not too long."""
    remaining = iter(texts)
    comma = b""
    while batch := list(islice(remaining, TRIALS_AT_ONCE)):
        yield comma + b",".join(batch)
        comma = b","


def _tail(path: Path) -> Sequence[bytes]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - LOG_LIMIT_BYTES, 0))
        content = file.read(LOG_LIMIT_BYTES)
    if size <= LOG_LIMIT_BYTES:
        return [content]
    return [f"[the last {LOG_LIMIT_BYTES} of {size} bytes of {path}]\n".encode(), content]


def _is_here(host: str) -> bool:
    """Was this machine meant, not a name that a web page had pointed to it?"""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return name in (HOST, "localhost")


def _reason(text: str) -> bytes:
    return json.dumps({"reason": text}).encode()


def _answer(
    start_response: StartResponse,
    status: str,
    pieces: Sequence[bytes],
    content_type: str = JSON,
    **headers: str,
) -> Iterable[bytes]:
    start_response(
        status,
        [
            ("Content-Type", content_type),
            ("Content-Length", str(sum(map(len, pieces)))),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
            *headers.items(),
        ],
    )
    return pieces
