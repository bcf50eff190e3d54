import itertools

import pytest
import torch
from torch import nn

from oialr import OIALR, OIALRError, OIALRSettings
from oialr.update_times import conversion_step, update_number, window_size


@pytest.mark.parametrize(
    ("delay", "frequency", "instants"),
    [
        (0, 3, [3, 6, 9, 12]),
        (1, 3, [1, 4, 7, 10]),
        (5, 3, [5, 8, 11]),
        (5, 1, [5, 6, 7, 8, 9, 10, 11, 12]),
        (5, 100, [5]),
        (13, 1, []),
    ],
)
@pytest.mark.parametrize("warmup", [True, False])
def test_instants(delay: int, frequency: int, instants: list[int], warmup: bool) -> None:
    settings = OIALRSettings(
        delay_steps=delay, update_frequency=frequency, cutoff_fraction=0, full_rank_warmup=warmup
    )
    found = {step: u for step in range(13) if (u := update_number(settings, step))}
    assert found == {step: u for u, step in enumerate(instants, start=1)}
    assert conversion_step(settings) == (delay if warmup else 0)


def test_window_against_exact_arithmetic() -> None:
    for num_layers, percent, update in itertools.product(
        [1, 2, 3, 7, 10, 23, 24, 100], [1, 5, 7, 10, 30, 33, 50, 70, 100], range(1, 120)
    ):
        exact = -(-num_layers * percent * update // 100)
        expected = min(num_layers, max(1, exact))
        assert window_size(num_layers, percent / 100, update) == expected


def test_window_where_floats_are_fuzzy() -> None:
    assert 6 * 0.1 * 5 > 3
    assert window_size(6, 0.1, 5) == 3
    assert window_size(6, 1e-12, 5) == 1


def make_training(**settings: object) -> tuple[nn.Module, OIALR]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    values = {"delay_steps": 2, "update_frequency": 2, "cutoff_fraction": 0.1} | settings
    return model, OIALR(model, optimizer, OIALRSettings(**values))


def test_updates_grow_from_the_last_layer() -> None:
    _, oialr = make_training(layer_fraction=0.3)
    reached = {}
    for step in range(1, 10):
        updates = oialr.step()
        assert all(update.step == step == oialr.steps for update in updates)
        reached[step] = [update.layer for update in updates]
        assert oialr.converted == (step >= 2)
    assert reached == {
        **{step: [] for step in (1, 3, 5, 7, 9)},
        2: ["3", "4"],
        4: ["2", "3", "4"],
        6: ["0", "1", "2", "3", "4"],
        8: ["0", "1", "2", "3", "4"],
    }


def test_a_window_that_does_not_grow_holds_all_layers() -> None:
    _, oialr = make_training(layer_fraction=0.1, growing_window=False)
    reached = [[update.layer for update in oialr.step()] for _ in range(6)]
    all_layers = ["0", "1", "2", "3", "4"]
    assert reached == [[], all_layers, [], all_layers, [], all_layers]


@pytest.mark.parametrize(
    ("delay", "warmup", "first_update"), [(0, True, 2), (0, False, 2), (3, False, 3)]
)
def test_low_rank_from_the_first_step(delay: int, warmup: bool, first_update: int) -> None:
    _, oialr = make_training(delay_steps=delay, full_rank_warmup=warmup)
    assert oialr.converted
    assert oialr.steps == 0
    instants = [step for step in range(1, 6) if oialr.step()]
    assert instants[0] == first_update


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("delay_steps", -1),
        ("update_frequency", 0),
        ("cutoff_fraction", 1.0),
        ("cutoff_fraction", -0.1),
        ("cutoff_fraction", float("nan")),
        ("layer_fraction", 0.0),
        ("layer_fraction", 1.1),
        ("last_layer", "head"),
        ("fused_projections", "split"),
        ("optimizer_state", "keep"),
        ("min_dim", 0),
        ("max_aspect_ratio", 1.0),
        ("max_cut_fraction", 0.0),
        ("min_inner_rank_fraction", 1.5),
    ],
)
def test_wrong_settings_are_refused_with_rule_and_value(field: str, value: object) -> None:
    good = {"delay_steps": 1, "update_frequency": 1, "cutoff_fraction": 0.1}
    with pytest.raises(OIALRError) as refusal:
        OIALRSettings(**(good | {field: value}))
    message = str(refusal.value)
    assert "must hold" in message
    assert message.endswith(f"got {field}={value!r}")
