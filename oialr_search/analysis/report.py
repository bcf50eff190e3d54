"""A search as one page that needs nothing else: results, figures, failures and what it cost."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from oialr_search.analysis import leaderboard, status
from oialr_search.analysis.choice import Choice, final_choice
from oialr_search.analysis.export import export
from oialr_search.analysis.labels import fitness_label, metric_label, status_label
from oialr_search.analysis.plots.catalogue import Source, draw
from oialr_search.analysis.plots.names import PlotName
from oialr_search.analysis.plots.writing import IN_PAGE
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    EvaluationRecord,
    IndividualRecord,
    LaunchRecord,
    SearchRecord,
    Status,
    StorageError,
)
from oialr_search.terminal.values import number, shown
from oialr_training.errors import ConfigError, ProtocolError
from oialr_training.protocol import RESULT_FILE, Completed, decode
from oialr_training.yaml_files import dump_yaml

TOP = 10  # of the leaderboard
MANY_FAILURES = 20  # kinds of them
LOG_CHARACTERS = 2000
PRINTED_WIDTH = 690.0  # pixels between the margins of a page
NOT_MEASURED = "not measured"

FIGURES = {
    PlotName.CONVERGENCE: "How the best fitness of each island fell. A diamond is an individual "
    "that came from another island and was better than all there.",
    PlotName.PARETO: "What fewer trainable parameters cost. Nobody is better than one of the front "
    "in one of the two without being worse in the other.",
    PlotName.EPOCHS: "The best individuals over their training, the others in grey.",
    PlotName.LEARNING_RATES: "The learning rates of the best individuals, and those of the search "
    "file itself.",
    PlotName.INNER_RANKS: "The inner rank of each layer over the training of the best individual.",
    PlotName.IMPORTANCE: "How much of the fitness each hyperparameter decides. PED-ANOVA asks what "
    "sets the best tenth apart, fANOVA which hyperparameter explains the variance of all; they "
    "need not agree.",
    PlotName.SLICE: "Fitness over each hyperparameter; darker individuals are later ones.",
    PlotName.PARALLEL_COORDINATES: "Each line is an individual; logarithmic where the search is.",
    PlotName.LINEAGE: "From whom the best individual was bred.",
    PlotName.STABILITY: "How far the bases and mixings of each layer turned (the paper's "
    "Figure 1).",
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the table of results: one configuration, trained with one seed or several."""

    name: str
    runs: Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as they are read; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()  # row and column of the best values
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure's place in the page; without a picture, why there is none."""

    name: str
    explanation: str
    html: str = ""
    print_zoom: float = 1.0
    missing: str = ""


@dataclass(kw_only=True)
class FailureKind:
    """Evaluations that ended alike."""

    status: Status
    number: int = 0
    hosts: set[str] = field(default_factory=set)
    latest: EvaluationRecord | None = None


def progress_of(state: Mapping[str, Any]) -> str:
    """How far the search is, and what became of its last launch."""
    text = f"{state['ended']} of {state['expected']} individuals evaluated"
    launch = state["launch"]
    if launch is None:
        return text
    if launch["ended_at"] is None:
        return f"{text}; launch {launch['launch']} on {launch['hostname']} runs, or was killed"
    return f"{text}; launch {launch['launch']} ended with exit code {launch['exit_code']}"


def best_yaml(source: Source) -> str:
    """The best individual's configuration, why there is none, or nothing while nobody is best."""
    storage, search = source.storage, source.search
    try:
        return export(storage, search, final_choice(storage, search).individual)
    except StorageError:
        return ""
    except (ConfigError, KeyError) as error:
        return f"# cannot be exported by this version: {error}"


def report(source: Source, contenders: Sequence[Contender], best_yaml: str, at: datetime) -> str:
    """The page; `best_yaml` is the best individual's configuration, empty while there is none."""
    storage, search = source.storage, source.search
    launches = storage.launches(search.id)
    evaluations = storage.finished_since(search.id)
    completed = any(individual.fitness is not None for individual in source.individuals)
    choice = final_choice(storage, search) if completed else None
    best = choice.individual if choice else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    return environment.get_template("report.html.jinja").render(
        search=search,
        at=at.isoformat(sep=" ", timespec="seconds"),
        progress=progress_of(status.status(storage, search, at)),
        best=best,
        key_figures=key_figures(source.everyone, evaluations, choice, search),
        results=results([*contenders, *_best_row(best, storage)], search),
        compared=bool(contenders),
        configuration=configuration(search, best),
        best_yaml=best_yaml,
        leaderboard=leaders(
            leaderboard.for_people(leaderboard.leaderboard(storage, search, TOP)), search
        ),
        figures=[_figure(name, source) for name in FIGURES],
        failures=failure_kinds(evaluations),
        many_failures=MANY_FAILURES,
        log_characters=LOG_CHARACTERS,
        costs=costs(evaluations),
        launches=_launches(launches),
        versions=Table(
            columns=["package", "version"],
            rows=sorted(launches[-1].versions.items()) if launches else [],
        ),
        settings=dump_yaml(dict(search.settings)),
        status_label=status_label,
        plotly=get_plotlyjs(),
    )


def read_contender(assignment: str) -> Contender:
    """NAME=FOLDER: the trainings that `oialr-search train` left in a folder.

    Raises:
        ConfigError: when there are none.
    """
    name, equals, folder = assignment.partition("=")
    if not (name and equals and folder):
        raise ConfigError(f"`--compare` takes NAME=FOLDER, got {assignment!r:.200}")
    if not Path(folder).is_dir():
        raise ConfigError(f"no folder {folder} to compare with, asked for as {name!r:.80}")
    runs = []
    for path in sorted(Path(folder).glob(f"seed-*/{RESULT_FILE}")):
        try:
            result = decode(path.read_bytes())
        except (OSError, ProtocolError) as error:
            raise ConfigError(f"cannot read {path}: {error!s:.200}") from None
        if isinstance(result, Completed):
            runs.append(
                {
                    **result.metrics,
                    "duration_s": result.duration_s,
                    **result.share_of_parameters,
                }
            )
    if not runs:
        raise ConfigError(
            f"{folder} holds no completed training; `oialr-search train FILE --output {folder}` "
            f"leaves them as seed-*/{RESULT_FILE}"
        )
    return Contender(name=name, runs=runs)


def results(contenders: Sequence[Contender], search: SearchRecord) -> Table:
    """The paper's Tables 3 and 4: mean ± standard deviation of the sample."""
    metrics = [name for name in _metric_names(search) if any(name in c.runs[0] for c in contenders)]
    shares = ("compression_percent", "trainable_percent")
    columns = [*metrics, "duration_s"]
    columns += [name for name in shares if any(name in c.runs[0] for c in contenders)]
    values = {
        (row, column): [run[name] for run in contender.runs if name in run]
        for row, contender in enumerate(contenders)
        for column, name in enumerate(columns, start=1)
    }
    longest = max(
        (v for row in range(len(contenders)) for v in values[row, len(metrics) + 1]), default=0.0
    )
    unit, seconds = _time_unit(longest)
    rows = []
    for row, contender in enumerate(contenders):
        cells = []
        for column, name in enumerate(columns, start=1):
            scale = seconds if name == "duration_s" else 1.0
            cells.append(
                mean_and_deviation([v / scale for v in values[row, column]], _digits(name))
            )
        rows.append([contender.name, *cells, str(len(contender.runs))])
    return Table(
        columns=["", *(_heading(name, search, unit) for name in columns), "seeds"],
        rows=rows,
        best=_best_cells(values, metrics, len(contenders), search),
    )


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """The mean, and with two values or more the sample's standard deviation."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return "not a number"
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f}\u00a0±\u00a0{statistics.stdev(values):.{digits}f}"  # in one line


def key_figures(
    individuals: Sequence[IndividualRecord],
    evaluations: Sequence[EvaluationRecord],
    choice: Choice | None,
    search: SearchRecord,
) -> list[tuple[str, str]]:
    """What one asks first."""
    counts = Counter(individual.status for individual in individuals)
    by_status = ", ".join(f"{counts[s]:,} {status_label(s)}" for s in Status if counts[s])
    figures = [
        (
            "individuals",
            f"{len(individuals):,} of {max(search.evaluations_total, len(individuals)):,}: "
            + by_status,
        )
    ]
    best = choice.individual if choice else None
    if choice is not None and best is not None and best.evaluation is not None:
        figures.append(
            ("best", f"individual {best.id}, {fitness_label(search)} = {shown(best.fitness)}")
        )
        figures.append(("chosen by", choice.how))
        figures += [
            (metric_label(name, search), number(value))
            for name in (search.metric, "trainable_percent", "compression_percent")
            if (value := _figure_of(best.evaluation, name)) is not None
        ]
    figures.append(("time", f"{_hours(evaluations):,.2f} hours of training, all attempts together"))
    figures.append(("energy", _energy(evaluations)))
    return figures


def configuration(search: SearchRecord, best: IndividualRecord | None) -> Table:
    """Each hyperparameter: where it was searched, and what came out."""
    rows = []
    for hyperparameter in search.space.hyperparameters:
        name = hyperparameter.name
        rows.append(
            [
                name,
                shown(best.hyperparameters.get(name), "–") if best else "–",
                shown(search.of_search_file(name), "–"),
                _range(hyperparameter),
            ]
        )
    heading = f"individual {best.id}" if best else "best"
    return Table(columns=["hyperparameter", heading, "search file", "searched"], rows=rows)


def leaders(rows: Sequence[Mapping[str, Any]], search: SearchRecord) -> Table:
    """The leaderboard, turned: a column an individual, as a row would be too long to print."""
    left_out = ("place", "individual", "island", "generation", "duration_s")
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in left_out]
    return Table(
        columns=["individual", *(str(row["individual"]) for row in rows)],
        rows=[
            [_heading(name, search), *(shown(row.get(name), "–") for row in rows)] for name in names
        ],
    )


def failure_kinds(evaluations: Iterable[EvaluationRecord]) -> list[tuple[str, FailureKind]]:
    """Reasons, whatever the numbers in them, and who ended so; the most frequent first."""
    kinds: dict[tuple[Status, str], FailureKind] = {}
    for evaluation in evaluations:
        if evaluation.status is Status.COMPLETED:
            continue
        reason = re.sub(r"\d+(\.\d+)?", "#", evaluation.reason or "")
        kind = kinds.setdefault((evaluation.status, reason), FailureKind(status=evaluation.status))
        kind.number += 1
        kind.hosts.add(evaluation.hostname)
        kind.latest = evaluation
    found = sorted(kinds.values(), key=lambda kind: -kind.number)
    return [(kind.latest.reason or "no reason", kind) for kind in found if kind.latest]


def costs(evaluations: Sequence[EvaluationRecord]) -> list[Table]:
    """Hours and energy by how the evaluations ended, and by where they ran."""
    by_status: dict[str, list[EvaluationRecord]] = {}
    by_place: dict[str, list[EvaluationRecord]] = {}
    for evaluation in evaluations:
        by_status.setdefault(status_label(evaluation.status), []).append(evaluation)
        place = f"{evaluation.hostname}, {evaluation.device or 'cpu'}"
        by_place.setdefault(place, []).append(evaluation)
    groups = {"by how they ended": by_status, "by node and device": by_place}
    return [
        Table(
            title=f"Evaluations {title}",
            columns=[
                "",
                "evaluations",
                "hours on a GPU",
                "hours on a CPU",
                "most memory, host",
                "most memory, GPU",
                "samples a second (median)",
                "energy",
            ],
            rows=[
                [name, *_cost(members)]
                for name, members in [*sorted(group.items()), ("all", list(evaluations))]
            ],
        )
        for title, group in groups.items()
    ]


def _cost(evaluations: Sequence[EvaluationRecord]) -> list[str]:
    on_cpu = [e for e in evaluations if e.device in (None, "cpu")]
    on_gpu = [e for e in evaluations if e.device not in (None, "cpu")]
    used = [e.resources for e in evaluations]
    rates = [r.samples_per_s for r in used if r.samples_per_s is not None]
    return [
        f"{len(evaluations):,}",
        f"{_hours(on_gpu):,.2f}",
        f"{_hours(on_cpu):,.2f}",
        _most_memory(r.peak_host_memory_bytes for r in used),
        _most_memory(r.peak_gpu_memory_bytes for r in used),
        f"{statistics.median(rates):,.4g}" if rates else NOT_MEASURED,
        _energy(evaluations),
    ]


def _most_memory(peaks: Iterable[int | None]) -> str:
    known = [peak for peak in peaks if peak is not None]
    return f"{max(known) / 2**30:,.2f} GiB" if known else NOT_MEASURED


def _hours(evaluations: Iterable[EvaluationRecord]) -> float:
    return sum(evaluation.duration_s or 0.0 for evaluation in evaluations) / 3600


def _energy(evaluations: Sequence[EvaluationRecord]) -> str:
    """Sums of what was measured, and of how many evaluations it was."""
    texts, used = [], [e.resources for e in evaluations]
    for kind, joules in (
        ("GPU", [r.gpu_energy_j for r in used if r.gpu_energy_j is not None]),
        ("CPU", [r.cpu_energy_j for r in used if r.cpu_energy_j is not None]),
    ):
        if joules:
            of = (
                ""
                if len(joules) == len(evaluations)
                else f" ({len(joules):,} of {len(evaluations):,} measured)"
            )
            texts.append(f"{kind} {sum(joules) / 3.6e6:,.4g} kWh{of}")
    return ", ".join(texts) or NOT_MEASURED


def _best_row(best: IndividualRecord | None, storage: Storage) -> list[Contender]:
    if best is None or best.evaluation is None:
        return []
    evaluation = best.evaluation
    run = dict(evaluation.metrics)
    # As a worker counts: with the epochs of earlier attempts that this one took over.
    epochs_s = [epoch.metrics.get("epoch_s", math.nan) for epoch in storage.epochs(evaluation.id)]
    seconds = sum(epochs_s) if epochs_s else math.nan
    for name, value in (
        ("duration_s", seconds if math.isfinite(seconds) else None),
        ("trainable_percent", evaluation.trainable_percent),
        ("compression_percent", evaluation.compression_percent),
    ):
        if value is not None:
            run[name] = value
    return [Contender(name=f"best of the search (individual {best.id})", runs=[run])]


def _metric_names(search: SearchRecord) -> list[str]:
    metrics = search.metrics()
    names = metrics.names or list(search.metric_names)
    at_the_end = [metric.name for metric in metrics.at_the_end]
    return [*names, *(name for name in at_the_end if name not in names)]


def _best_cells(
    values: Mapping[tuple[int, int], Sequence[float]],
    metrics: Sequence[str],
    num_rows: int,
    search: SearchRecord,
) -> frozenset[tuple[int, int]]:
    """Where a column of metrics has its best mean; nowhere if there is one row only."""
    cells, known = set(), search.metrics()
    for column, name in enumerate(metrics, start=1):
        means = {
            row: statistics.fmean(values[row, column])
            for row in range(num_rows)
            if values[row, column] and all(map(math.isfinite, values[row, column]))
        }
        metric = known.find(name)
        if len(means) > 1 and metric:
            best = min(means.values(), key=metric.fitness)
            cells |= {(row, column) for row, mean in means.items() if mean == best}
    return frozenset(cells)


def _figure_of(evaluation: EvaluationRecord, name: str) -> float | None:
    if name in ("trainable_percent", "compression_percent"):
        value: float | None = getattr(evaluation, name)
        return value
    return evaluation.metrics.get(name)


def _heading(name: str, search: SearchRecord, time_unit: str = "s") -> str:
    short = {
        "duration_s": f"time ({time_unit})",
        "compression_percent": "compression (%)",
        "trainable_percent": "trainable (%)",
    }
    return short.get(name) or metric_label(name, search)


def _digits(name: str) -> int:
    return 4 if name.endswith(("loss", "mse", "mae")) else 2


def _time_unit(seconds: float) -> tuple[str, float]:
    units = (("h", 3600.0), ("min", 60.0))
    return next((unit for unit in units if seconds >= 2 * unit[1]), ("s", 1.0))


def _figure(name: PlotName, source: Source) -> Figure:
    try:
        figure = draw(name, source)
    except StorageError as error:
        return Figure(name=name, explanation=FIGURES[name], missing=str(error))
    html: str = figure.to_html(
        include_plotlyjs=False,
        full_html=False,
        div_id=f"plot-{name}",
        config=IN_PAGE,
    )
    width = float(figure.layout.width)
    return Figure(
        name=name,
        explanation=FIGURES[name],
        html=html,
        print_zoom=min(1.0, round(PRINTED_WIDTH / width, 3)),
    )


def _launches(launches: Sequence[LaunchRecord]) -> Table:
    return Table(
        columns=[
            "launch",
            "began (UTC)",
            "ended",
            "exit",
            "ranks",
            "islands",
            "node",
            "revision",
            "command",
        ],
        rows=[
            [
                str(launch.id),
                f"{launch.started_at:%Y-%m-%d %H:%M:%S}",
                f"{launch.ended_at:%Y-%m-%d %H:%M:%S}" if launch.ended_at else "–",
                "–" if launch.exit_code is None else str(launch.exit_code),
                str(launch.world_size),
                str(launch.num_islands),
                launch.hostname,
                (launch.git_revision or "–")[:12],
                launch.command_line,
            ]
            for launch in launches
        ],
    )


def _range(h: Hyperparameter) -> str:
    only = "".join(
        f"; where {name} is {' or '.join(map(shown, wanted))}" for name, wanted in h.when
    )
    if h.choices is not None:
        return ", ".join(map(shown, h.choices)) + only
    low, high = h.bounds
    scale = ", logarithmic" if h.scale == "log" else ""
    step = f" by {number(h.step)}" if h.step is not None else ""
    return f"{number(low)} to {number(high)}{step}{scale}{only}"


def _printable(value: Any) -> Any:
    """Logs may hold anything; a page holds no control characters and nothing but Unicode."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        value = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", value)
        return value.encode("utf-8", "replace").decode()
    return value
