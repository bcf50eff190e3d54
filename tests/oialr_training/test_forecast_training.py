"""Autoformer on ETTm2 in the training loop: schedules, early stopping, the best epoch, OIALR."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from oialr import LowRankLinear
from oialr_training.errors import ConfigError, DivergedError
from oialr_training.protocol import Completed, Epoch, Event, Started
from oialr_training.tasks import load_training, validate_training
from oialr_training.tasks.autoformer import AutoformerETTm2
from oialr_training.tasks.measures import measure_forecast
from oialr_training.training import Trained, Training, set_up, settings_without_effect, train

from ..conftest import SEARCH_SPACES, SHARED

TRAININGS = SEARCH_SPACES / "training"
DATA = SHARED / "data"
SMALL = {
    "num_threads": 1,
    "epochs": 2,
    "pred_len": 24,
    "data.train_subset": 640,
    "data.validation_subset": 100,
    "data.test_subset": 100,
    "model.d_model": 32,
    "model.d_ff": 64,
    "model.num_heads": 4,
    "model.encoder_layers": 1,
}
EARLY_OIALR = {"oialr.delay_steps": 20, "oialr.update_frequency": 10, "oialr.layer_fraction": 0.5}


def config(kind: str, **changes: Any) -> AutoformerETTm2:
    """A shipped training, made small."""
    changes = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    assignments = [f"{k}={'null' if v is None else v}" for k, v in changes.items()]
    trained = load_training(TRAININGS / f"autoformer_ettm2_96_{kind}.yaml", assignments)
    assert isinstance(trained, AutoformerETTm2)
    return trained


def prepare(trained: AutoformerETTm2) -> Training:
    if not DATA.is_dir():
        pytest.skip(f"no ETTm2 in {DATA}")
    return set_up(trained, trained.load_data(DATA))


def scripted(training: Training, losses: list[float]) -> Training:
    """The training with these validation losses, one an epoch; the test measures the network."""
    validation_losses: Iterator[float] = iter(losses)

    class Scripted(AutoformerETTm2):
        def measure(self, model: nn.Module, batches: Any) -> dict[str, float]:
            if batches.batches is training.splits.validation:
                return {"loss": next(validation_losses)}
            return measure_forecast(model, batches)

    config = Scripted.model_validate(training.config.model_dump())
    return dataclasses.replace(training, config=config)


def run(training: Training) -> tuple[Trained, list[Epoch]]:
    """Train to the end; the result, and the epochs that were reported."""
    events: list[Event] = []
    trained = train(training, events.append, evaluate_test=True)
    return trained, [event for event in events if isinstance(event, Epoch)]


def repeat_last_mse(training: Training) -> float:
    """Test MSE of repeating the last value."""

    class RepeatLast(nn.Module):
        def forward(self, values: Tensor, _: Tensor, __: Tensor) -> Tensor:
            return values[:, -1:].expand(-1, 96, -1)

    return measure_forecast(RepeatLast(), training.splits.test)["mse"]


@pytest.mark.slow
def test_oialr_learns_to_forecast_and_its_ranks_shrink() -> None:
    more = {"pred_len": 96, "optimizer.lr": 1e-3, "data.train_subset": 6400}
    more |= {"data.validation_subset": 600, "data.test_subset": 1000}
    training = prepare(config("untuned", **EARLY_OIALR, **more))
    assert training.oialr is not None
    assert training.oialr.converted  # no full-rank warm-up
    trained, epochs = run(training)
    updates = [update for epoch in epochs for update in epoch.rank_updates]
    assert min(update.inner_rank / update.full_inner_rank for update in updates) < 0.6
    percents = [epoch.metrics["trainable_percent"] for epoch in epochs]
    assert 100 > percents[0] > percents[1]
    assert trained.completed.metrics["test_mse"] < 0.9 * repeat_last_mse(training)


def test_the_result_is_that_of_the_best_epoch() -> None:
    training = scripted(prepare(config("untuned", epochs=4, **EARLY_OIALR)), [3.0, 1.0, 2.0, 1.0])
    trained, epochs = run(training)
    completed = trained.completed
    assert completed.metrics.items() >= epochs[1].metrics.items()
    assert completed.metrics["epoch"] == 2
    assert completed.trainable_percent == epochs[1].metrics["trainable_percent"]
    assert completed.trainable_percent > epochs[3].metrics["trainable_percent"]
    # The network too: as of then, not as of now.
    assert inner_ranks(trained.model) > inner_ranks(training.model)
    measured = measure_forecast(trained.model.eval(), training.splits.test)
    assert completed.metrics["test_mse"] == measured["mse"]
    assert completed.metrics["test_mae"] == measured["mae"]


def inner_ranks(model: nn.Module) -> list[int]:
    return [m.inner_rank for m in model.modules() if isinstance(m, LowRankLinear)]


def test_the_last_epoch_is_the_result_if_so_configured() -> None:
    small = config("baseline", result_epoch="last", early_stopping_patience=None)
    trained, epochs = run(scripted(prepare(small), [1.0, 2.0]))
    assert trained.completed.metrics["epoch"] == 2
    assert trained.completed.metrics.items() >= epochs[1].metrics.items()


@pytest.mark.slow
def test_a_validation_loss_that_is_no_number_is_never_the_best() -> None:
    trained, _ = run(scripted(prepare(config("baseline", epochs=3)), [math.nan, 2.0, math.nan]))
    assert trained.completed.metrics["epoch"] == 2
    for losses in ([math.nan, math.nan], [math.inf, math.nan]):
        with pytest.raises(DivergedError, match=r"validation_loss is (nan|inf)"):
            run(scripted(prepare(config("baseline")), losses))


def test_without_a_choice_of_epochs_a_validation_loss_that_is_no_number_is_a_failure() -> None:
    small = config("baseline", result_epoch="last")
    with pytest.raises(DivergedError, match="validation_loss is nan after epoch 1"):
        run(scripted(prepare(small), [math.nan, 1.0]))


@pytest.mark.parametrize(
    ("patience", "losses", "num_epochs"),
    [
        (2, [3.0, 2.0, 2.0, 2.5, 1.0], 4),
        pytest.param(2, [3.0, 4.0, 2.0, 3.0, 1.0], 5, marks=pytest.mark.slow),
        (1, [3.0, math.nan, 1.0, 1.0, 1.0], 2),
        pytest.param(None, [1.0, 2.0, 3.0, 4.0, 5.0], 5, marks=pytest.mark.slow),
    ],
)
def test_training_ends_early_after_epochs_without_a_lower_validation_loss(
    patience: int | None, losses: list[float], num_epochs: int
) -> None:
    small = config("baseline", epochs=5, early_stopping_patience=patience)
    _, epochs = run(scripted(prepare(small), losses))
    assert len(epochs) == num_epochs


@pytest.mark.parametrize("kind", ["baseline", "tuned"])
def test_the_learning_rate_follows_table_5(kind: str) -> None:
    """type1: lr, lr, lr/2, lr/4; or a rise to lr in three epochs, then a cosine."""
    planned = config(kind, epochs=6)
    rates = [planned.learning_rate(step, steps_per_epoch=20) for step in range(120)]
    if kind == "baseline":
        expected = [4e-4 * factor for factor in (1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)]
        assert rates == pytest.approx([rate for rate in expected for _ in range(20)])
    else:
        assert rates[:60] == pytest.approx([1e-4 + i * 0.0099 / 60 for i in range(60)])
        assert rates[60] == pytest.approx(0.01)
        decay = math.cos(math.pi * 30**0.85 / 60**0.85)
        assert rates[90] == pytest.approx(4e-4 + 0.5 * 0.0096 * (1 + decay))


def test_the_rate_told_of_an_epoch_is_its_last() -> None:
    small = config("baseline", epochs=4, early_stopping_patience=None)
    _, epochs = run(prepare(small))
    rates = [epoch.metrics["lr"] for epoch in epochs]
    assert rates == pytest.approx([4e-4, 4e-4, 2e-4, 1e-4])


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({"oialr.delay_steps": 20}, []),
        ({"oialr.delay_steps": 21}, ["inner ranks are never cut: `oialr.delay_steps` = 21"]),
        (
            {"oialr.delay_steps": 21, "oialr.full_rank_warmup": "true"},
            ["OIALR never starts: `oialr.delay_steps` = 21"],
        ),
        (
            {"oialr.delay_steps": 0, "oialr.update_frequency": 30},
            ["inner ranks are never cut: `oialr.update_frequency` = 30"],
        ),
        (
            {"oialr.delay_steps": 20, "validation": "test"},
            ["`data.validation_subset` has no effect"],
        ),
    ],
)
def test_settings_without_effect_are_told(changes: dict[str, Any], warnings: list[str]) -> None:
    told = settings_without_effect(prepare(config("untuned", epochs=1, **changes)))
    assert len(told) == len(warnings)
    assert all(line.startswith(start) for line, start in zip(told, warnings, strict=True))


def test_another_label_len_reaches_data_and_network() -> None:
    training = prepare(config("baseline", label_len=30))
    (_, _, output_marks), _ = next(training.splits.validation.epoch(0))
    assert output_marks.shape[1] == 30 + 24
    assert run(training)[0].completed.metrics["test_mse"] > 0


def test_the_run_says_which_layers_stay_dense() -> None:
    events: list[Event] = []
    train(prepare(config("untuned", epochs=1)), events.append)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert "encoder_embedding.values (32x21 is smaller than min_dim=24)" in started.layers
    assert "encoder.layers.0.attention.query_projection (full_rank_first_layer)" in started.layers
    assert "decoder.layers.0.feed_forward.contract (full_rank_last_layer)" in started.layers
    assert "key_projection" not in started.layers


def test_embeddings_convert_where_they_are_not_too_thin() -> None:
    small = config("untuned", **{"oialr.min_dim": 6, "oialr.max_aspect_ratio": 10})
    training = prepare(small)
    assert training.oialr is not None
    converted = training.oialr.low_rank_layers
    assert "decoder_embedding.values" in converted
    assert "decoder.layers.0.feed_forward.expand" in converted
    dense = prepare(config("baseline"))
    inputs, _ = next(training.splits.validation.epoch(0))
    found, expected = (t.model.eval()(*inputs) for t in (training, dense))  # the same seed
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["baseline", "untuned", "tuned"])
@pytest.mark.parametrize("pred_len", [96, 192, 336, 720])
def test_the_shipped_trainings_are_the_paper_s_size(kind: str, pred_len: int) -> None:
    trained = load_training(TRAININGS / f"autoformer_ettm2_{pred_len}_{kind}.yaml")
    assert isinstance(trained, AutoformerETTm2)
    assert trained.pred_len == pred_len
    assert (trained.oialr is None) == (kind == "baseline")
    with torch.device("meta"):
        model = trained.network(cast(Any, None))
    assert sum(p.numel() for p in model.parameters()) == 10_536_967


def test_measuring_weighs_every_value_alike() -> None:
    class Zero(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return torch.zeros_like(values)

    class TwoBatches:
        num_batches = 2

        def epoch(self, number: int) -> Any:
            yield (torch.empty(3, 2, 7),), torch.full((3, 2, 7), 2.0)
            yield (torch.empty(1, 2, 7),), torch.full((1, 2, 7), -6.0)

    assert measure_forecast(Zero(), TwoBatches()) == {"loss": 12.0, "mse": 12.0, "mae": 3.0}


def test_completed_goes_through_the_protocol_with_its_metrics() -> None:
    trained, _ = run(prepare(config("baseline", epochs=1)))
    assert isinstance(trained.completed, Completed)
    for name in ("validation_mse", "validation_mae", "test_mse", "test_mae"):
        assert 0 < trained.completed.metrics[name] < 10


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model.factor": 20, "pred_len": 1, "label_len": 1}, "for L = 2 steps"),
        ({"label_len": 97}, "`label_len <= seq_len` must hold, got label_len=97, seq_len=96"),
        ({"model.moving_average": 24}, "`moving_average` must be odd, got 24 in `model`"),
        ({"model.num_heads": 5}, "`num_heads` must divide `d_model`"),
        ({"model.factor": 40}, "got model.factor=40"),
        ({"scheduler": {"name": "linear"}}, "`scheduler.name` is one of 'cosine', 'type1'"),
        ({"scheduler": {"name": "type1", "min_lr": 1.0}}, "unknown key `scheduler.min_lr`"),
        ({"pred_len": None}, "`pred_len` should be a valid integer, got None"),
        ({"criterion": {}}, "unknown key `criterion`"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], line: str) -> None:
    content = config("baseline").model_dump(mode="json")
    for path, value in changes.items():
        *sections, key = path.split(".")
        section = content
        for name in sections:
            section = section[name]
        section[key] = value
    with pytest.raises(ConfigError) as caught:
        validate_training(content, "test")
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
