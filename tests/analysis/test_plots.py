"""Figures: what they show is what the database holds, in files that need nothing else."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from oialr.observation import observed_weights
from oialr_search.analysis.importance import as_study, importances
from oialr_search.analysis.plots import palette, space
from oialr_search.analysis.plots.ancestors import MANY_ANCESTORS, ancestors, tree_of
from oialr_search.analysis.plots.axes import Axis, axes_of
from oialr_search.analysis.plots.bases import inner_ranks, stability
from oialr_search.analysis.plots.catalogue import PLOTS, Source, draw
from oialr_search.analysis.plots.convergence import convergence, in_order, steps_by_island
from oialr_search.analysis.plots.names import PlotName
from oialr_search.analysis.plots.style import in_network_order
from oialr_search.analysis.plots.tradeoff import front_of, pareto
from oialr_search.analysis.plots.trainings import Training, learning_rates, metrics_over_epochs
from oialr_search.space.hyperparameters import Hyperparameter, SearchSpace
from oialr_search.space.search_file import load_search
from oialr_search.storage import open_storage
from oialr_search.storage.records import (
    EpochRecord,
    IndividualRecord,
    Outcome,
    Status,
    StorageError,
)
from oialr_training.protocol import Observation, RankUpdate

from ..conftest import AUTOFORMER, CIFAR10, DIGITS, TINY, Command, settings
from ..invented import BEGAN, ended, search_record, statuses_of, store_search
from ..storage.storage_examples import launched_search, started_evaluation
from .browser import needs_browser

LAYERS = ["patch_embed.proj", "blocks.2.attn.qkv", "blocks.2.attn.proj", "blocks.10.mlp.fc1"]
INTERVAL, LAGS, STEPS = 20, (1, 5), 120


def some_observations(layers: Sequence[str] = LAYERS) -> list[Observation]:
    """Observations as `Storage` gives them: by step, earlier step and layer; no two alike."""
    return [
        Observation(
            step=step,
            earlier_step=step - lag * INTERVAL,
            layer=layer,
            stability=1 - (10 * number + lag) / (100 + step),
            mixing_similarity=1 - (20 * number + lag) / (100 + step),
            relative_mixing_similarity=1 - (30 * number + lag) / (100 + step),
        )
        for step in range(INTERVAL, STEPS + 1, INTERVAL)
        for lag in sorted(LAGS, reverse=True)
        if step >= lag * INTERVAL
        for number, layer in enumerate(sorted(layers))
    ]


def some_rank_updates() -> list[RankUpdate]:
    """Basis updates from the last layer on: the growing window."""
    return [
        RankUpdate(step=s, layer=layer, inner_rank=r, full_inner_rank=64, stability=1.0)
        for s, r, reached in ((60, 32, LAYERS[2:]), (80, 16, LAYERS[1:]), (120, 8, LAYERS[1:]))
        for layer in sorted(reached)
    ]


def heatmaps(figure: Any) -> list[Any]:
    """A figure's heatmaps, row by row."""
    return [trace for trace in figure.data if trace.type == "heatmap"]


def test_each_name_has_a_plot() -> None:
    assert set(PLOTS) == set(PlotName)


def test_stability_shows_each_observation_where_it_ends() -> None:
    observations = some_observations()
    figure = stability(observations, [], "")
    panels = heatmaps(figure)
    wanted = [(metric, lag) for metric in ("stability", "mixing_similarity") for lag in LAGS]
    assert len(panels) == len(wanted)
    titles = [annotation.text for annotation in figure.layout.annotations]
    for (metric, lag), panel, title in zip(wanted, panels, titles, strict=True):
        shown = {
            (LAYERS[row], panel.x[column + 1]): value
            for row, values in enumerate(panel.z)
            for column, value in enumerate(values)
        }
        assert shown == {
            (o.layer, o.step): getattr(o, metric)
            for o in observations
            if o.step - o.earlier_step == lag * INTERVAL
        }
        assert all(
            end - begin == INTERVAL for begin, end in zip(panel.x, panel.x[1:], strict=False)
        )
        assert title.endswith(f", over {lag * INTERVAL} steps")


def test_the_color_scale_is_the_same_for_every_training() -> None:
    figure = stability(some_observations(), [], "")
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert {panel.coloraxis for panel in heatmaps(figure)} == {"coloraxis"}
    figure = inner_ranks(some_rank_updates(), STEPS, "")
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 100)


def test_what_was_not_observed_stays_empty() -> None:
    left_out = [o for o in some_observations() if (o.layer, o.step) != (LAYERS[1], 60)]
    left_out = [o for o in left_out if o.step != 100]
    panel = heatmaps(stability(left_out, [], ""))[0]
    assert list(panel.x) == [0, 20, 40, 60, 80, 100, 120]
    assert [row[2] is None for row in panel.z] == [False, True, False, False]
    assert [row[4] for row in panel.z] == [None] * len(LAYERS)


def test_a_single_observation_is_a_figure() -> None:
    only = Observation(
        step=100,
        earlier_step=0,
        layer="head",
        stability=0.5,
        mixing_similarity=0.25,
        relative_mixing_similarity=0.125,
    )
    first, second = heatmaps(stability([only], [], ""))
    assert (list(first.x), first.z[0][0], second.z[0][0]) == ([0, 100], 0.5, 0.25)


def test_where_eq_5_was_not_observed_the_relative_similarity_is_shown() -> None:
    old = [dataclasses.replace(o, mixing_similarity=math.nan) for o in some_observations()]
    figure = stability(old, [], "")
    titled = list(zip(heatmaps(figure), figure.layout.annotations, strict=True))
    for panel, annotation in titled[len(LAGS) :]:
        assert annotation.text.startswith("Mixing similarity, relative to the norms")
        assert {value for row in panel.z for value in row if value is not None} <= {
            o.relative_mixing_similarity for o in old
        }


def test_layers_are_named_from_the_input_on_top() -> None:
    axis = stability(some_observations(), [], "").layout.yaxis
    assert list(axis.ticktext) == LAYERS
    assert axis.range[0] > axis.range[1]


def test_the_names_of_many_layers_do_not_touch() -> None:
    layers = [f"blocks.{block}.mlp.fc{layer}" for block in range(100) for layer in (1, 2)]
    figure = stability(some_observations(layers), [], "")
    layout = figure.layout
    height = layout.height - layout.margin.t - layout.margin.b
    top, bottom = layout.yaxis.domain[::-1]
    pixels_a_layer = (top - bottom) * height / len(layers)
    first, second = layout.yaxis.tickvals[:2]
    assert (second - first) * pixels_a_layer >= layout.yaxis.tickfont.size
    assert len(heatmaps(figure)[0].z) == len(layers)


@pytest.mark.parametrize("file", [DIGITS, AUTOFORMER])
def test_layers_are_in_the_order_of_the_network(file: Path) -> None:
    network = load_search(file, (), {}).training.network(cast(Any, None))
    layers = list(observed_weights(network))
    assert len(layers) > 10
    assert in_network_order(sorted(layers)) == layers


def test_numbers_in_names_count() -> None:
    layers = [
        "conv1",
        "layer1.2.conv1",
        "layer1.10.conv1",
        "layer2.0.conv1",
        "q[0]",
        "q[1]",
        "q[10]",
    ]
    assert in_network_order(reversed(layers)) == layers


def test_basis_updates_are_marked_on_every_panel() -> None:
    figure = stability(some_observations(), some_rank_updates(), "")
    marks = [trace for trace in figure.data if trace.type == "scatter"]
    assert [list(trace.x) for trace in marks] == [[60, 80, 120]] * 4
    assert [trace.showlegend for trace in marks] == [True, False, False, False]
    assert {shape.x0 for shape in figure.layout.shapes} == {60}
    full_rank = stability(some_observations(), [], "")
    assert len(full_rank.data) == 4
    assert not full_rank.layout.shapes


def test_inner_ranks_hold_until_the_next_update() -> None:
    (panel,) = heatmaps(figure := inner_ranks(some_rank_updates(), 200, ""))
    assert list(panel.x) == [0, 60, 80, 120, 200]
    assert list(figure.layout.yaxis.ticktext) == LAYERS[1:]
    assert [list(row) for row in panel.z] == [
        [100, 100, 25, 12.5],
        [100, 50, 25, 12.5],
        [100, 50, 25, 12.5],
    ]
    ends = [note.text.strip() for note in figure.layout.annotations[1:]]
    assert ends == ["8 of 64"] * 3


def test_inner_ranks_of_a_single_layer_are_a_figure() -> None:
    only = [update for update in some_rank_updates() if update.layer == LAYERS[1]]
    (panel,) = heatmaps(inner_ranks(only, 200, ""))
    assert [list(row) for row in panel.z] == [[100, 25, 12.5]]


def test_inner_ranks_of_the_last_step_can_be_seen() -> None:
    (panel,) = heatmaps(inner_ranks(some_rank_updates(), STEPS, ""))
    assert panel.x[-1] > panel.x[-2] == STEPS
    assert panel.z[0][-1] == 12.5


def fill(database: Path) -> None:
    """A search of four individuals: the best has no observations, the next two have."""
    with open_storage(f"sqlite:///{database}", create=True) as storage:
        search, launch = launched_search(storage, name="watched")
        for number, fitness in enumerate((1.0, 2.0, 3.0)):
            _, evaluation = started_evaluation(storage, search, launch, number)
            storage.add_epoch(
                evaluation,
                EpochRecord(epoch=1, step=STEPS, metrics={"train_loss": 1.0}),
                some_rank_updates() if fitness == 2.0 else [],
                some_observations() if fitness > 1.0 else [],
            )
            completed = Outcome(status=Status.COMPLETED, exit_code=0, fitness=fitness)
            storage.finish_evaluation(evaluation, completed)
        started_evaluation(storage, search, launch, 3)


@pytest.fixture
def watched(command: Command) -> Command:
    """Commands in a folder with the database of `fill`."""
    (command.folder / "searches").mkdir()
    fill(command.folder / "searches" / "search.db")
    return command


def written(command: Command) -> set[str]:
    """Files beside the folder of the search."""
    return {path.name for path in command.folder.iterdir() if path.is_file()}


def test_the_page_is_of_the_best_that_was_observed_and_needs_no_network(watched: Command) -> None:
    result = watched("plot", "stability")
    assert result.stdout == "stability written to stability.html\n"
    assert not result.stderr
    assert written(watched) == {"stability.html"}
    page = (watched.folder / "stability.html").read_text()
    assert "search watched, individual 2, task minivit_digits, fitness 2 (top1)" in page
    assert not re.search(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)\s*=", page)
    assert len(page) > 1_000_000  # plotly.js is in it
    watched("plot", "stability", "-o", "again.html")
    assert (watched.folder / "again.html").read_text() == page


def test_an_individual_can_be_asked_for(watched: Command) -> None:
    watched("plot", "stability", "--individual", "3", "-o", "three.html")
    assert "individual 3, task" in (watched.folder / "three.html").read_text()
    watched("plot", "inner_ranks", "--search", "watched")
    assert "individual 2, task" in (watched.folder / "inner_ranks.html").read_text()


@needs_browser
@pytest.mark.parametrize(
    ("file", "beginning"),
    [
        ("a.png", b"\x89PNG\r\n"),
        pytest.param("a.pdf", b"%PDF-", marks=pytest.mark.slow),
        pytest.param("A.SVG", b"<svg", marks=pytest.mark.slow),
    ],
)
def test_pictures(watched: Command, file: str, beginning: bytes) -> None:
    result = watched("plot", "stability", "-o", file)
    assert not result.stderr
    assert written(watched) == {file}
    assert (watched.folder / file).read_bytes().startswith(beginning)


NO_ONE = "no observations; a search records them with `--set observation.interval_steps=100`"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["stability", "--individual", "1"], f"individual 1 has {NO_ONE}"),
        (["stability", "--individual", "4"], f"individual 4 has {NO_ONE}"),
        (["inner_ranks", "--individual", "3"], "individual 3 has no inner ranks; "),
        (["stability", "--individual", "5"], "no individual 5 in the database"),
        (["stability", "--search", "other"], "no search named 'other' in the database"),
        (["stability", "-o", "a.jpeg"], "must be one of .html, .png, .pdf, .svg, got a.jpeg"),
        (["stability", "-o", "figure"], "must be one of .html, .png, .pdf, .svg, got figure"),
        (["stability", "-o", "missing/a.html"], "cannot write missing/a.html: No such file"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    watched: Command, options: list[str], message: str
) -> None:
    result = watched("plot", *options, check=False)
    assert result.returncode == 78
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not written(watched)


def test_a_picture_without_a_browser_is_one_line(watched: Command) -> None:
    nowhere = Command(watched.folder, watched.environment | {"BROWSER_PATH": "/nowhere/chrome"})
    result = nowhere("plot", "stability", "-o", "a.pdf", check=False)
    assert result.returncode == 78
    (line,) = result.stderr.splitlines()
    assert "Debian package chromium" in line
    assert "-o a.html" in line
    assert not written(watched)


def test_an_unknown_name_is_wrong_usage(watched: Command) -> None:
    result = watched("plot", "stabilty", check=False)
    assert result.returncode == 2
    assert "'stability'" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("full_rank", [False, True])
def test_a_search_that_observes_can_be_drawn(command: Command, full_rank: bool) -> None:
    values = TINY | {"observation.interval_steps": "20", "observation.lags": "[1, 2]"}
    values |= {"search.islands": "1", "search.name": "watched"}
    if full_rank:
        values = {k: v for k, v in values.items() if not k.startswith("space.oialr.")}
        values |= {"oialr": "null"}
    command("run", DIGITS, "--evaluations", "1", *settings(values))
    command("plot", "stability")
    page = (command.folder / "stability.html").read_text()
    for words in ("search watched, individual 1", "blocks.0.mlp.fc2", "over 40 steps"):
        assert words in page
    assert ("basis update" in page) is not full_rank


OF_A_SEARCH = [name for name in PlotName if name is not PlotName.STABILITY]


@pytest.fixture(scope="module")
def plausible(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """200 individuals on 4 islands, with failures and migrations; a search at full rank beside."""
    path = tmp_path_factory.mktemp("plausible") / "search.db"
    with open_storage(f"sqlite:///{path}", create=True) as storage:
        full_rank = load_search(CIFAR10, ("oialr=null", "search.name=baseline"))
        store_search(storage, full_rank, {10**6: Status.COMPLETED}, search_id=2)
        statuses = statuses_of(200)
        search = store_search(storage, load_search(CIFAR10), statuses, islands=4, epochs=30)
        yield Source(storage=storage, search=search)


def traces(figure: Any) -> dict[str, Any]:
    """A figure's traces by name."""
    return {trace.name: trace for trace in figure.data if trace.name}


def titles(figure: Any) -> list[str]:
    """What the axes are called."""
    layout = figure.to_plotly_json()["layout"]
    axes = [value for key, value in layout.items() if key.startswith(("xaxis", "yaxis"))]
    return [axis["title"]["text"] for axis in axes if axis.get("title", {}).get("text")]


def subtitle(figure: Any) -> str:
    """Which search it is, and what is left out."""
    return str(figure.layout.title.subtitle.text)


@pytest.mark.parametrize("name", OF_A_SEARCH)
def test_each_figure_names_its_search_and_fits_a_page(plausible: Source, name: PlotName) -> None:
    figure = draw(name, plausible)
    assert "search minivit_cifar10" in subtitle(figure)
    assert len(figure.to_json()) < 500_000
    if name not in (PlotName.PARALLEL_COORDINATES, PlotName.INNER_RANKS):
        assert titles(figure)


def test_convergence_shows_whoever_finished(plausible: Source) -> None:
    figure = draw(PlotName.CONVERGENCE, plausible)
    order = in_order(plausible.individuals)
    shown = {
        (x, y): (number, island)
        for trace in figure.data
        if trace.mode == "markers" and not trace.name
        for x, y, (number, island) in zip(trace.x, trace.y, trace.customdata, strict=True)
    }
    assert shown == {
        (place, i.fitness): (i.id, i.island)
        for place, i in enumerate(order, start=1)
        if i.fitness is not None
    }
    best = plausible.by_fitness[0]
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [line.name for line in lines] == [f"island {island}" for island in range(4)]
    assert min(line.y[-1] for line in lines) == best.fitness
    assert all(list(line.y) == sorted(line.y, reverse=True) for line in lines)
    assert len({line.line.dash for line in lines}) == len(lines)  # in print, too
    failed = sum(i.fitness is None and i.finished_at is not None for i in plausible.individuals)
    assert len(traces(figure)[f"no fitness ({failed})"].x) == failed


def test_an_immigrant_counts_from_its_arrival() -> None:
    from oialr_search.storage.records import MigrationRecord

    finished = [
        ended(1, 5.0),
        ended(2, 9.0, island=1),
        ended(3, 8.0, island=1),
        ended(4),
    ]
    arrival = MigrationRecord(
        id=1,
        search_id=1,
        individual_id=1,
        source_island=0,
        target_island=1,
        accepted_at=BEGAN + timedelta(seconds=2),
    )
    steps = steps_by_island(finished, [arrival])
    assert [(s.finished, s.fitness, s.source_island) for s in steps[1]] == [
        (2, 9.0, None),
        (2, 5.0, 0),
    ]
    figure = convergence(finished, [arrival], "fitness", "")
    mark = traces(figure)["new best by migration (1 of 1 migrations)"]
    assert (list(mark.x), list(mark.y)) == ([2], [5.0])
    assert list(traces(figure)["island 1"].y) == [9.0, 5.0, 5.0]


def test_many_islands_are_one_legend_entry() -> None:
    figure = convergence([ended(n, float(n), island=n) for n in range(1, 40)], [], "fitness", "")
    assert [t.name for t in figure.data if t.showlegend and t.mode == "lines"] == [
        "each of 39 islands"
    ]


def test_far_away_fitnesses_do_not_flatten_the_others() -> None:
    shown = palette.fitness_range([*(1.0 + n / 100 for n in range(99)), 1e12])
    assert shown.high < 4
    assert shown.note == "1 beyond the axis, up to 1e+12"
    same = palette.fitness_range([2.0, 2.0])
    assert same.low < 2.0 < same.high
    assert not same.note


@pytest.mark.parametrize("number", [1, 20, 10_000])
def test_many_individuals_are_thinned_and_it_is_said(number: int) -> None:
    individuals = [ended(n, float((n * 7919) % number)) for n in range(1, number + 1)]
    thinned = palette.thin(individuals, 100)
    assert len(thinned.drawn) == min(number, 100)
    assert [i.id for i in thinned.drawn] == sorted(i.id for i in thinned.drawn)
    assert min(i.fitness or 0 for i in thinned.drawn) == 0.0
    assert ("100 of 10,000 individuals drawn" in thinned.note) is (number > 100)
    figure = convergence(individuals, [], "fitness", "")
    assert len(figure.to_json()) < 300_000


def test_importance_finds_what_decides() -> None:
    searched = SearchSpace(
        (
            Hyperparameter(name="a", kind="float", low=1e-4, high=1.0, scale="log"),
            Hyperparameter(name="b", kind="int", low=0, high=9),
            Hyperparameter(name="c", kind="bool", choices=(False, True)),
            Hyperparameter(name="d", kind="choice", choices=("x", "y", 3)),
        )
    )
    individuals = []
    for n in range(1, 121):
        a, b, c, d = 10 ** -((n * 7 % 41) / 10.25), n % 10, n % 2 == 0, ("x", "y", 3)[n % 3]
        values = {"a": a, "b": b, "c": c, "d": d}
        individuals.append(ended(n, abs(math.log10(a) + 1), hyperparameters=values))
    study = as_study(individuals, searched)
    assert [t.params for t in study.trials] == [dict(i.hyperparameters) for i in individuals]
    assert [t.value for t in study.trials] == [i.fitness for i in individuals]
    parts = importances(individuals, searched)
    assert list(parts) == ["PED-ANOVA", "fANOVA"]
    figure = space.importance(parts, "")
    for method, part in parts.items():
        assert set(part) == {"a", "b", "c", "d"}
        assert max(part, key=lambda name: part[name]) == "a"
        assert sum(part.values()) == pytest.approx(1.0)
        bars = traces(figure)[method]
        shown = dict(zip(bars.y, bars.x, strict=True))
        assert shown == {name: pytest.approx(100 * value) for name, value in part.items()}


def test_importance_of_few_is_called_what_it_is(tmp_path: Path) -> None:
    with open_storage(f"sqlite:///{tmp_path}/search.db", create=True) as storage:
        few = store_search(
            storage, load_search(CIFAR10), dict.fromkeys(range(1, 6), Status.COMPLETED)
        )
        figure = draw(PlotName.IMPORTANCE, Source(storage=storage, search=few))
        assert "Too few to rely on: 5 individuals for 8 hyperparameters" in subtitle(figure)
        file = load_search(CIFAR10, ["search.name=one"])
        one = store_search(storage, file, {9: Status.COMPLETED}, search_id=2)
        with pytest.raises(StorageError, match="importance needs two"):
            draw(PlotName.IMPORTANCE, Source(storage=storage, search=one))


def test_where_all_are_alike_no_variance_is_explained() -> None:
    only = SearchSpace((Hyperparameter(name="a", kind="float", low=0.0, high=1.0),))
    individuals = [ended(n, 1.0, hyperparameters={"a": n / 30}) for n in range(1, 30)]
    parts = importances(individuals, only)
    assert list(parts) == ["PED-ANOVA"]
    assert list(traces(space.importance(parts, ""))) == ["PED-ANOVA"]


def test_importance_of_values_that_the_space_no_longer_holds() -> None:
    searched = SearchSpace(
        (
            Hyperparameter(name="a", kind="float", low=0.0, high=1.0),
            Hyperparameter(name="b", kind="choice", choices=("x", "y")),
        )
    )
    individuals = [
        ended(n, abs(n / 20 - 1), hyperparameters={"a": n / 20, "b": "xyz"[n % 3]})
        for n in range(1, 61)
    ]
    parts = importances(individuals, searched)
    assert all(max(part, key=lambda name: part[name]) == "a" for part in parts.values())
    assert set(parts) == {"PED-ANOVA", "fANOVA"}


def test_values_lie_where_their_genes_are() -> None:
    file = load_search(CIFAR10, ["space.oialr.full_rank_first_layer={choices: [false, true]}"])
    search_space = file.space
    axes = axes_of(search_record(file))
    for gene in (0.0, 0.3, 1.0):
        hyperparameters = search_space.decode({h.name: gene for h in search_space.hyperparameters})
        individual = ended(1, 1.0, hyperparameters=hyperparameters)
        for axis, h in zip(axes, search_space.hyperparameters, strict=True):
            place = axis.place(axis.value_of(individual))
            tolerance = 0.5 if axis.choices else 0.05 if h.kind == "int" else 1e-9
            assert place == pytest.approx(gene, abs=tolerance)
            places = [p for p, _ in axis.ticks()]
            assert places == sorted(places)
            assert places[0] == 0.0
            assert places[-1] == 1.0


def test_parallel_coordinates_lead_through_the_values(plausible: Source) -> None:
    figure = draw(PlotName.PARALLEL_COORDINATES, plausible)
    best = plausible.by_fitness[0]
    line = traces(figure)[f"individual {best.id}"]
    expected = [axis.place(best.hyperparameters[axis.name]) for axis in plausible.axes]
    assert list(line.y)[: len(expected)] == expected
    assert line.y[len(expected)] == 0.0  # nobody is better
    drawn = sum(list(trace.x).count(0) for trace in figure.data) - 1
    assert drawn == len(plausible.completed)


def test_slices_show_each_value_and_fitness(plausible: Source) -> None:
    figure = draw(PlotName.SLICE, plausible)
    panels = [trace for trace in figure.data if not trace.name]
    assert len(panels) == len(plausible.axes)
    for axis, panel in zip(plausible.axes, panels, strict=True):
        assert list(zip(panel.x, panel.y, strict=True)) == [
            (i.hyperparameters[axis.name], i.fitness) for i in plausible.completed
        ]
    assert figure.layout.xaxis.type == "log"


def test_hostile_texts_are_shown_and_not_obeyed() -> None:
    hostile = "<a href='https://example.org'>x</a>"
    axis = Axis(name="a.<b>bold</b>", choices=(hostile, True))
    individuals = [
        ended(1, 1.0, hyperparameters={axis.name: hostile}),
        ended(2, 2.0, hyperparameters={axis.name: True}),
    ]
    for draw_it in (space.slices, space.parallel_coordinates):
        text = draw_it(individuals, [axis], "fitness", individuals[0], "").to_json()
        assert "<a href" not in text
        assert "\\u003ca" not in text.lower()
        assert "<b>bold" not in text
        assert "\\u003cb\\u003ebold" not in text.lower()


def test_choices_keep_bools_and_numbers_apart() -> None:
    axis = Axis(name="a", choices=(1, True, "1"))
    values = [ended(n, 1.0, hyperparameters={"a": v}) for n, v in enumerate((1, True, "1"))]
    assert [axis.value_of(individual) for individual in values] == [0, 1, 2]


def test_nobody_beats_the_pareto_front(plausible: Source) -> None:
    def both(i: IndividualRecord) -> tuple[float, float]:
        assert i.evaluation is not None
        assert i.fitness is not None
        assert i.evaluation.trainable_percent is not None
        return i.fitness, i.evaluation.trainable_percent

    front = {both(i) for i in front_of(plausible.completed)}
    everyone = {both(i) for i in plausible.completed}
    assert front == {
        (f, t) for f, t in everyone if not any(a <= f and b <= t for a, b in everyone - {(f, t)})
    }
    figure = draw(PlotName.PARETO, plausible)
    stairs = traces(figure)[f"Pareto front ({len(front)})"]
    assert set(zip(stairs.y, stairs.x, strict=True)) == front
    assert plausible.baseline is not None
    assert list(traces(figure)[f"full rank (individual {plausible.baseline.id})"].x) == [100.0]


def test_one_individual_is_a_pareto_front(plausible: Source) -> None:
    only = plausible.by_fitness[0]
    figure = pareto([only], None, "fitness", only, "")
    assert list(traces(figure)["Pareto front (1)"].y) == [only.fitness]


def test_lineage_has_all_parents_left_of_their_children(plausible: Source) -> None:
    best = plausible.by_fitness[0]
    everyone = {i.id: i for i in plausible.individuals}
    tree = tree_of(best, everyone)
    level = {i: number for number, ids in enumerate(tree.levels) for i in ids}
    assert tree.levels[-1] == [best.id]
    assert len(level) <= MANY_ANCESTORS + 1
    for parent, child in tree.edges:
        assert level[parent] < level[child]
        assert parent in everyone[child].parents
    figure = draw(PlotName.LINEAGE, plausible)
    shown = {
        d[0] for trace in figure.data if trace.customdata is not None for d in trace.customdata
    }
    assert shown == set(tree.members)


def test_a_long_lineage_is_cut_and_it_is_said() -> None:
    chain = {n: ended(n, 1.0 / n, parents=(n - 1, n - 1) if n > 1 else ()) for n in range(1, 500)}
    figure = ancestors(chain[499], chain, "")
    assert f"{499 - MANY_ANCESTORS - 1} older ancestors are not drawn" in subtitle(figure)


def epochs_of(*values: float, name: str = "lr") -> list[EpochRecord]:
    """Epochs with one metric."""
    return [
        EpochRecord(epoch=n, step=10 * n, metrics={name: value})
        for n, value in enumerate(values, start=1)
    ]


def test_learning_rates_are_those_of_the_epochs() -> None:
    best = [Training(name="one", epochs=epochs_of(0.1, 0.2, math.nan))]
    figure = learning_rates(best, [Training(name="untuned", epochs=epochs_of(0.3))], "")
    one, untuned = traces(figure)["one"], traces(figure)["untuned"]
    assert (list(one.x), list(one.y)) == ([1, 2, 3], [0.1, 0.2, None])
    assert (list(untuned.y), untuned.mode) == ([0.3], "markers")


def test_metrics_over_epochs_has_the_best_the_rest_and_the_baseline() -> None:
    def training(name: str, *values: float) -> Training:
        epochs = [
            EpochRecord(epoch=n, step=n, metrics={"validation_top1": v, "trainable_percent": 50.0})
            for n, v in enumerate(values, start=1)
        ]
        return Training(name=name, epochs=epochs)

    figure = metrics_over_epochs(
        [training("best", 1.0, 2.0)],
        [training("x", 0.5, math.nan), training("y", 0.25)],
        [training("full", 1.5)],
        "validation_top1",
        "validation top-1 (%)",
        "",
    )
    assert [trace.name for trace in figure.data] == ["others", "best", "full"] * 2
    assert list(figure.data[0].y) == [0.5, None, None, 0.25, None]
    assert list(figure.data[1].y) == [1.0, 2.0]
    assert list(figure.data[4].y) == [50.0, 50.0]
    assert [trace.showlegend for trace in figure.data] == [True] * 3 + [False] * 3
    assert "validation top-1 (%)" in titles(figure)


def test_a_search_without_results_is_one_line_a_figure(tmp_path: Path) -> None:
    with open_storage(f"sqlite:///{tmp_path}/search.db", create=True) as storage:
        for number, status in enumerate((Status.FAILED, Status.RUNNING), start=1):
            file = load_search(CIFAR10, [f"search.name=search{number}"])
            statuses = dict.fromkeys(range(10 * number, 10 * number + 3), status)
            search = store_search(storage, file, statuses, search_id=number, epochs=0)
            for name in PlotName:
                with pytest.raises(StorageError, match=f"search{number}") as raised:
                    draw(name, Source(storage=storage, search=search))
                assert "\n" not in str(raised.value)
        launched_search(storage, name="empty")
        empty = storage.find_search("empty")
        assert empty is not None
        for name in PlotName:
            with pytest.raises(StorageError, match="search 'empty' has no individual yet"):
                draw(name, Source(storage=storage, search=empty))


def test_what_has_no_effect_is_said(watched: Command) -> None:
    result = watched("plot", "convergence", "--individual", "1", "-o", "a.html")
    assert result.stderr == "warning: --individual has no effect on convergence\n"
    page = (watched.folder / "a.html").read_text()
    assert "sendChartToCloud" in page.rpartition("newPlot")[2]


def test_a_search_that_observed_nothing_says_how_to(plausible: Source) -> None:
    with pytest.raises(StorageError, match=re.escape(NO_ONE)):
        draw(PlotName.STABILITY, plausible)
