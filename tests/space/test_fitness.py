"""What was measured → fitness, objectives, constraints."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from oialr_search.space.expressions import parse_bounds, parse_expression
from oialr_search.space.fitness import Aims, Measured, NotMeasured, fitness_of
from oialr_search.space.search_file import load_search, stored_search_settings
from oialr_training.config import Metrics
from oialr_training.errors import ConfigError
from oialr_training.protocol import Completed, Resources
from oialr_training.tasks import known_metrics

from ..conftest import AUTOFORMER, DIGITS
from ..oialr_training.margins import Margins

METRICS = known_metrics("minivit_digits")
TWO = "objectives=[duration_s, validation_loss]"


def test_a_loss_is_its_own_fitness() -> None:
    assert fitness_of({"validation_loss": 0.25}, "validation_loss", METRICS) == 0.25


def test_a_percentage_to_maximise_is_turned_round() -> None:
    assert fitness_of({"validation_top1": 96.0}, "validation_top1", METRICS) == 4.0


def test_a_high_metric_that_is_no_percentage_is_negated() -> None:
    metrics = Margins.all_metrics()
    assert fitness_of({"validation_margin": 96.0}, "validation_margin", metrics) == -96.0
    assert fitness_of({"validation_margin": -0.5}, "validation_margin", metrics) == 0.5
    assert fitness_of({"validation_margin": math.inf}, "validation_margin", metrics) is None


def test_the_fitness_of_an_unknown_metric_is_one_line() -> None:
    with pytest.raises(ConfigError, match="no metric 'validation_margin' of this task"):
        fitness_of({"validation_margin": 1.0}, "validation_margin", Metrics(searched=()))


def test_no_number_is_no_fitness() -> None:
    for value in (math.nan, math.inf, -math.inf):
        assert fitness_of({"validation_loss": value}, "validation_loss", METRICS) is None
    assert fitness_of({}, "validation_loss", METRICS) is None


def completed(**metrics: float) -> Completed:
    return Completed(
        metrics={"epoch": 4.0, "validation_loss": 0.5, "validation_top1": 90.0, **metrics},
        trainable_percent=20.0,
        compression_percent=80.0,
        device="cpu",
        duration_s=8.0,
        at=0.0,
        resources=Resources(samples_per_s=64.0),
    )


def aims(**search: Any) -> Aims:
    changed = [f"search.{key}={value}" for key, value in search.items()]
    return load_search(DIGITS, changed).aims


def measured(result: Completed | None = None, **search: Any) -> Measured:
    return aims(**search).measured(result or completed(), {"optimizer.lr": 0.25}, [])


def test_a_metric_alone_is_what_it_always_was() -> None:
    for name, result in {"validation_top1": 10.0, "validation_loss": 0.5}.items():
        assert measured(metric=name) == Measured(
            fitness=result, objectives=[], constraints=[], violation=0.0
        )


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("validation_loss + 0.1 * trainable_percent / 100", 0.52),
        ("-validation_top1", -90.0),
        ("(100 - validation_top1) * log(duration_s) / log(2)", 30.0),
        ("log10(validation_loss / 0.005)", 2.0),
        ("sqrt(samples_per_s) + optimizer.lr ** 2", 8.0625),
        ("max(validation_loss, abs(-2), exp(0)) - min(1, compression_percent)", 1.0),
    ],
)
def test_an_expression_is_minimised(expression: str, value: float) -> None:
    assert measured(fitness=expression).fitness == pytest.approx(value, rel=1e-12)


def test_no_value_of_an_expression_is_no_fitness() -> None:
    for wrong in (
        "1 / (duration_s - 8)",
        "log(-duration_s)",
        "(-duration_s) ** 0.5",
        "9 ** 9 ** 9",
    ):
        expression = f"validation_loss + {wrong}"
        with pytest.raises(NotMeasured, match=r"validation_loss \+ .* is (nan|inf)"):
            measured(fitness=expression)
    with pytest.raises(NotMeasured, match=r"^validation_loss is nan$"):
        measured(completed(validation_loss=math.nan), fitness="validation_loss * 0")
    with pytest.raises(NotMeasured, match=r"^gpu_energy_j was not measured$"):
        measured(fitness="gpu_energy_j")


def test_objectives_are_minimised_each_its_own_way() -> None:
    found = measured(
        objectives="[validation_top1, trainable_percent, 'duration_s:max', 'validation_top1:min']"
    )
    assert found.objectives == [10.0, 20.0, -8.0, 90.0]
    assert found.fitness == 10.0


def test_constraints_say_by_how_much_they_are_not_met() -> None:
    conditions = "['trainable_percent <= 16', '10 <= duration_s <= 20', 'optimizer.lr >= 0.2']"
    found = measured(subject_to=conditions)
    assert found.constraints == pytest.approx([4.0, 2.0, -12.0, -0.05])
    assert found.violation == pytest.approx(4 / 16 + 2 / 10)
    assert measured(subject_to="trainable_percent <= 20").violation == 0.0
    assert measured(subject_to="trainable_percent <= 0").violation == 20.0
    assert measured(subject_to="duration_s >= samples_per_s / 4").violation == 8.0


def test_the_window_is_the_mean_of_the_last_epochs() -> None:
    epochs = [{"validation_top1": v, "lr": 1.0} for v in (10.0, 80.0, 84.0, 91.0)]
    three = aims(fitness_window=3)
    assert three.measured(completed(), {}, epochs).fitness == 15.0
    assert three.measured(completed(epoch=2.0), {}, epochs[1:3]).fitness == 18.0
    trainable = aims(fitness="validation_loss * 0 + trainable_percent", fitness_window=3)
    losses = [{"validation_loss": 1.0} for _ in epochs]
    assert trainable.measured(completed(), {}, losses).fitness == 20.0
    for unknown in (epochs[2:], [*epochs[:3], {}]):
        with pytest.raises(NotMeasured, match=r"^validation_top1 was not measured$"):
            three.measured(completed(), {}, unknown)
    epochs[2]["validation_top1"] = math.nan
    with pytest.raises(NotMeasured, match=r"^validation_top1 is nan$"):
        three.measured(completed(), {}, epochs)


def test_the_metric_of_curves_is_the_first_that_is_named(tmp_path: Any) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(DIGITS.read_text().replace("  metric: validation_top1\n", ""))
    for changes, metric in (
        (["search.fitness=gpu_energy_j"], "validation_loss"),
        (["search.fitness=trainable_percent - validation_top1"], "validation_top1"),
        (["search.objectives=[trainable_percent, validation_top1]"], "validation_top1"),
        (
            ["search.fitness=1 - validation_top1", "search.metric=validation_loss"],
            "validation_loss",
        ),
    ):
        file = load_search(path, changes)
        assert file.search.metric == file.aims.metric == metric
        stored = stored_search_settings(file.as_json(), "stored")
        assert stored == file.search
    with pytest.raises(ConfigError, match=r"^`search.metric` is missing \(.*search.yaml\)$"):
        load_search(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["fitness=validation_los"], "unknown column `validation_los`; did you mean `validation_l"),
        (["fitness=optimizer.lrr"], "`search.fitness`: unknown column `optimizer.lrr`; did you"),
        (["fitness=test_loss"], "unknown column `test_loss`"),
        (["fitness=validation_loss +"], "cannot read 'validation_loss +'"),
        (["fitness=validation_loss if 1 else 2"], "is no arithmetic on columns"),
        (["fitness=__import__('os')"], "unknown function `__import__`; one of log, log10"),
        (["fitness=(duration_s, 1)"], "`(duration_s, 1)` is no arithmetic on columns"),
        (["fitness=validation_loss.real.x"], "unknown column `validation_loss.real.x`"),
        (["fitness=validation_loss < 3"], "`validation_loss < 3` is no arithmetic"),
        (["fitness=logs(validation_loss)"], "unknown function `logs`; did you mean `log`?"),
        (["fitness=log(validation_loss, 2)"], "`log` takes one argument"),
        (["fitness=max(validation_loss)"], "`max` takes two or more arguments"),
        (["fitness=log(x=validation_loss)"], "`log(x=validation_loss)` is no arithmetic"),
        (["fitness=validation_top1"], "grows with a better validation_top1: write `100 - valid"),
        (["fitness=2 * validation_top1 + duration_s"], "grows with a better validation_top1"),
        (["fitness=-validation_loss"], "with a better validation_loss: write `validation_loss` wi"),
        (["objectives=[validation_loss]"], "`search.objectives`"),
        (["objectives=[2 * validation_top1, duration_s]"], "`search.objectives` is minimised, but"),
        (["objectives=['validation_top1:up', duration_s]"], "`:min` or `:max` may follow"),
        (["objectives=[a, b]"], "`search.objectives`: unknown column `a`"),
        (["objectives=[validation_loss, duration_s]", "fitness=duration_s"], "for one aim"),
        (["subject_to=trainable_percent"], "a condition is such as `trainable_percent <= 15`"),
        (["subject_to=trainable_percent < 15"], "a condition is by <= or >="),
        (["subject_to=15 <= 16"], "a condition is on a column"),
        (["subject_to=trainable <= 16"], "unknown column `trainable`; did you mean"),
        (["fitness_window=13"], "`search.fitness_window` is at most `epochs` = 12, got 13"),
        (["fitness_window=0"], "`search.fitness_window`"),
        ([TWO, "engine=pso"], "the engine `pso` knows no `search.objectives`"),
        ([TWO, "repeats={}"], "`search.repeats` measures the best again"),
        ([TWO, "until={no_improvement_in: 9}"], "`search.until.no_improvement_in` looks at one"),
        (["fitness=" + "(" * 400 + "1" + ")" * 400], "cannot read '((("),
        (["fitness=" + "1 + " * 400 + "1"], "it has at most 1000 characters, got 1601"),
    ],
)
def test_a_wrong_aim_is_one_clear_line(changes: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_search(DIGITS, [f"search.{change}" for change in changes])
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)
    assert str(DIGITS) in str(caught.value)


def test_the_window_needs_the_last_epoch() -> None:
    with pytest.raises(ConfigError, match="needs `result_epoch: last`, got 'best'"):
        load_search(AUTOFORMER, ["search.fitness_window=2", "result_epoch=best"])


def test_aims_that_turn_with_the_value_are_not_refused() -> None:
    """Close to 90 %, for whatever reason: no way is the better one everywhere."""
    assert measured(fitness="abs(validation_top1 - 89)").fitness == 1.0
    assert measured(fitness="0 * validation_top1").fitness == 0.0


def test_aims_go_from_rank_to_rank() -> None:
    before = aims(objectives="[validation_top1, duration_s]", subject_to="duration_s <= 3")
    again = pickle.loads(pickle.dumps(before))
    assert again.measured(completed(), {}, []) == before.measured(completed(), {}, [])


def test_an_expression_shows_as_it_is_read() -> None:
    assert parse_expression(" a+ b.c*2", ["a", "b.c"], "key").text == "a + b.c * 2"
    (bound,) = parse_bounds("a>=1", ["a"], "key")
    assert bound.text == "1 <= a"
