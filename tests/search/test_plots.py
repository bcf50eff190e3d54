"""Figures: what they show is what the database holds, in files that need nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from oialr_search.analysis.plots.bases import inner_ranks, stability
from oialr_search.analysis.plots.catalogue import PLOTS
from oialr_search.analysis.plots.names import PlotName
from oialr_search.analysis.plots.style import in_network_order
from oialr_search.config import load_search
from oialr_search.storage import (
    EpochRecord,
    Observation,
    Outcome,
    RankUpdate,
    Status,
    open_storage,
)
from workers.oialr.observation import observed_weights
from workers.tasks import task_of

from ..conftest import AUTOFORMER, DIGITS, TINY, Command, FinishedSearch, settings
from ..storage.storage_examples import launched_search, started_evaluation

LAYERS = ["patch_embed.proj", "blocks.2.attn.qkv", "blocks.2.attn.proj", "blocks.10.mlp.fc1"]
INTERVAL, LAGS, STEPS = 20, (1, 5), 120
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

needs_browser = pytest.mark.skipif(
    "BROWSER_PATH" not in os.environ and not any(map(shutil.which, BROWSERS)),
    reason="a png, pdf or svg is drawn by a browser: install chromium",
)


def some_observations(layers: Sequence[str] = LAYERS) -> list[Observation]:
    """Observations as `Storage` gives them: by step, earlier step and layer; no two alike."""
    return [
        Observation(
            step=step,
            earlier_step=step - lag * INTERVAL,
            layer=layer,
            stability=1 - (10 * number + lag) / (100 + step),
            mixing_similarity=1 - (20 * number + lag) / (100 + step),
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
        step=100, earlier_step=0, layer="head", stability=0.5, mixing_similarity=0.25
    )
    first, second = heatmaps(stability([only], [], ""))
    assert (list(first.x), first.z[0][0], second.z[0][0]) == ([0, 100], 0.5, 0.25)


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
    network = task_of(load_search(file, (), {}).training).build_model()
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
    [("a.png", b"\x89PNG\r\n"), ("a.pdf", b"%PDF-"), ("a.svg", b"<svg"), ("A.SVG", b"<svg")],
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


def test_a_search_that_observed_nothing_says_how_to(digits_search: FinishedSearch) -> None:
    result = digits_search.command("plot", "stability", check=False)
    assert result.returncode == 78
    (line,) = result.stderr.splitlines()
    assert NO_ONE in line
    assert not (digits_search.command.folder / "stability.html").exists()


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


def test_the_commands_do_not_wait_for_plotly() -> None:
    code = "import sys, oialr_search.cli; sys.exit('plotly' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
