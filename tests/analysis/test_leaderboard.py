"""`leaderboard`: what is shown, `--where`, `--pareto`, formats, files, `--watch`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from oialr_search.analysis.choosing import choose_search
from oialr_search.analysis.leaderboard import leaderboard
from oialr_search.analysis.where import parse_condition
from oialr_search.space.pareto import pareto_front
from oialr_search.storage import open_storage
from oialr_search.storage.leaderboard import all_columns
from oialr_search.storage.records import Status
from oialr_search.storage.selection import Selection
from oialr_training.errors import ConfigError

from ..seen import COMPLETED, FAILURES, RESUMED, RUNNING

Row = dict[str, Any]
EVERYONE = tuple(Status)


def rows_of(url: str, where: str = "", pareto: Sequence[str] = (), **changes: Any) -> list[Row]:
    with open_storage(url, read_only=True) as storage:
        search = choose_search(storage, None)
        condition = parse_condition(where, all_columns(search)) if where else None
        top = changes.pop("top", None)
        selection = Selection(where=condition, **changes)
        return leaderboard(storage, search, top, selection, pareto)


def test_a_row_says_all(url: str) -> None:
    best = rows_of(url)[0]
    assert best == {
        "place": 1, "individual": RESUMED, "fitness": 2.0, "deviation": None, "seeds": 1,
        "validation_loss": 1.0,
        "validation_top1": 98.0, "trainable_percent": 40.0, "compression_percent": 80.0,
        "optimizer.lr": 0.01, "oialr.delay_steps": 500, "oialr.full_rank_first": False,
        "optimizer.name": "adamw", "island": 1, "generation": 5, "duration_s": 90.0,
        "world_rank": 1, "hostname": "node1", "device": "cuda:1",
    }  # fmt: skip
    assert [row["place"] for row in rows_of(url, top=3)] == [1, 2, 3]


def test_the_view_says_the_same(url: str) -> None:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        seen = connection.exec_driver_sql("SELECT * FROM leaderboard").mappings().all()
    engine.dispose()
    rows = rows_of(url, "island_rank >= 0 and train_loss >= 0")
    names = {"individual": "individual_id"}
    told = [{names.get(n, n).replace(".", "_"): row[n] for n in row} for row in rows]
    assert len(seen) == len(told) == len(COMPLETED)
    for of_view, row in zip(seen, told, strict=True):
        assert of_view["search"] == "seen"
        assert {n: v for n, v in of_view.items() if n != "search"} == {
            name: row[name] for name in of_view if name != "search"
        }


def test_what_is_named_is_shown(url: str) -> None:
    (row,) = rows_of(url, "gpu_energy_j <= 100 and train_loss > 0")
    assert (row["individual"], row["gpu_energy_j"], row["train_loss"]) == (1, 100.0, 0.5)
    assert "cpu_energy_j" not in row
    rows = rows_of(url, pareto=["fitness", "gpu_energy_j"])  # the best was not measured
    assert [row["individual"] for row in rows if row["pareto"]] == [2, 1]
    assert rows[0]["gpu_energy_j"] is None


def test_islands_and_statuses(url: str) -> None:
    first = rows_of(url, islands=(0,))
    assert [row["individual"] for row in first] == [7, 1, 3]
    assert [row["place"] for row in first] == [3, 5, 6]  # in the whole search
    others = rows_of(url, statuses=(Status.FAILED, Status.RUNNING, Status.TIMED_OUT))
    assert [row["individual"] for row in others] == [*FAILURES, RUNNING]
    assert [row["reason"] for row in others] == [*(reason for _, reason in FAILURES.values()), None]
    assert {row["place"] for row in others} == {None}
    assert len(rows_of(url, statuses=EVERYONE)) == len(COMPLETED) + len(FAILURES) + 1
    assert [row["individual"] for row in rows_of(url, "attempt = 2")] == [RESUMED]
    assert rows_of(url, "attempt = 2", statuses=EVERYONE)[0]["attempt"] == 2


CONDITIONS: dict[str, Callable[[Row], Any]] = {
    "trainable_percent < 15": lambda r: r["trainable_percent"] < 15,
    "fitness<=3.5 AND optimizer.lr > 1e-3": lambda r: (
        r["fitness"] <= 3.5 and r["optimizer.lr"] > 1e-3
    ),
    "lr = .01 or delay_steps in (100, 800.0)": lambda r: (
        r["optimizer.lr"] == 0.01 or r["oialr.delay_steps"] in (100, 800)
    ),
    "not (place > 2 or island == 0)": lambda r: not (r["place"] > 2 or r["island"] == 0),
    "optimizer.name = 'sgd'": lambda r: r["optimizer.name"] == "sgd",
    "name <> 'sgd'": lambda r: r["optimizer.name"] != "sgd",
    'optimizer_name in ("sgd", "its")': lambda r: r["optimizer.name"] == "sgd",
    "full_rank_first": lambda r: r["oialr.full_rank_first"],
    "not oialr.full_rank_first and fitness != 2": lambda r: (
        not r["oialr.full_rank_first"] and r["fitness"] != 2
    ),
    "oialr.full_rank_first = false": lambda r: not r["oialr.full_rank_first"],
    "island not in (0) and duration_s >= 90": lambda r: r["island"] != 0,
    "val_top1 > 95 and train_loss is not null": lambda r: r["validation_top1"] > 95,
    "train_loss is null": lambda r: False,
    "generation > 1.5": lambda r: r["generation"] > 1.5,  # not rounded to 2
    "generation >= 1e30 or individual = 1": lambda r: r["individual"] == 1,
    "device = 'cuda:1' and world_rank = 1": lambda r: r["world_rank"] == 1,
    "status = 'completed' and reason is null": lambda r: True,
    "fitness > 3 and fitness > 4 or fitness < 2.5": lambda r: (
        r["fitness"] > 4 or r["fitness"] < 2.5
    ),
}


@pytest.mark.parametrize("where", CONDITIONS)
def test_a_condition_finds_what_it_says(url: str, where: str) -> None:
    everyone = rows_of(url)
    wanted = [row for row in everyone if CONDITIONS[where](row)]
    found = rows_of(url, where)  # with what is named beside the usual columns
    assert [{name: row[name] for name in everyone[0]} for row in found] == wanted
    assert where == "status = 'completed' and reason is null" or len(wanted) < len(everyone)


def test_what_is_null_fulfils_no_comparison(url: str) -> None:
    named = [row["individual"] for row in rows_of(url, "reason = 'x'", statuses=EVERYONE)]
    other = rows_of(url, "not reason = 'x'", statuses=EVERYONE)
    assert named == []
    assert [row["individual"] for row in other] == list(FAILURES)
    unplaced = rows_of(url, "place is null", statuses=EVERYONE)
    assert [row["individual"] for row in unplaced] == [*FAILURES, RUNNING]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("trainable_percen < 15", "unknown column `trainable_percen`; did you mean `trainable_p"),
        ("optimiser.lr < 15", "did you mean `optimizer.lr`?"),
        ("delay_step < 15", "did you mean `oialr.delay_steps`?"),
        ("xyzzy < 15", "unknown column `xyzzy`; one of place, individual"),
        ("fitness", "a comparison should follow `fitness`, got the end"),
        ("fitness <", "`fitness` is a number, got the end"),
        ("fitness < 'a'", "`fitness` is a number, got `'a'`"),
        ("fitness < 1 2", "`and` or `or` should come before `2`"),
        ("(fitness < 1", "`)` should stand where there is the end"),
        ("fitness < 1)", "`and` or `or` should come before `)`"),
        ("optimizer.name = sgd", "text stands in quotes: `optimizer.name = 'sgd'`"),
        ("optimizer.name = 3", "`optimizer.name` is text, got `3`"),
        ("full_rank_first = 1", "`oialr.full_rank_first` is true or false, got `1`"),
        ("full_rank_first < true", "not more or less"),
        ("reason = null", "`reason is null` asks for what is missing"),
        ("fitness in ()", "`fitness` is a number, got `)`"),
        ("fitness not 3", "`in` should follow `not`"),
        ("fitness < 1; drop table individuals", "cannot read '; drop table individuals'"),
        ("1 = 1", "a column should stand where there is `1`"),
        ("fitness = 'x", 'cannot read "\'x"'),
        ("fitness < 0x10", "cannot read '0x10'"),
        ("fitness < __import__('os')", "`fitness` is a number, got `__import__`"),
        ("(" * 10_000, "too many parentheses"),
        ("", ""),
    ],
)
def test_a_wrong_condition_is_one_line(seen_urls: dict[str, str], where: str, message: str) -> None:
    if not where:
        assert len(rows_of(seen_urls["sqlite"], where)) == len(COMPLETED)
        return
    with pytest.raises(ConfigError) as error:
        rows_of(seen_urls["sqlite"], where)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["'; DROP TABLE individuals; --", "x' OR '1'='1", '"', "\\", "%s"])
def test_text_is_never_part_of_the_statement(url: str, text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    assert rows_of(url, f"optimizer.name = {quoted} or device in ({quoted})") == []
    assert len(rows_of(url)) == len(COMPLETED)


def slow_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Everyone against everyone."""
    return [
        i
        for i, p in enumerate(points)
        if not any(
            all(a <= b for a, b in zip(q, p, strict=True)) and tuple(q) != tuple(p) for q in points
        )
    ]


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_the_pareto_front_is_that_of_the_definition(dimensions: int) -> None:
    draw = random.Random(dimensions)
    for size in (0, 1, 2, 60):
        for values in (3, 1000):  # few values: many ties
            points = [[draw.randrange(values) for _ in range(dimensions)] for _ in range(size)]
            assert pareto_front(points) == slow_front(points)


def test_the_front_is_marked_and_whole(url: str) -> None:
    rows = rows_of(url, pareto=["fitness", "trainable_percent"], top=2)
    assert [(row["individual"], row["pareto"]) for row in rows] == [(5, True), (2, True), (7, True)]
    rows = rows_of(url, pareto=["fitness", "trainable_percent"], top=5, islands=(1,))
    marked = {row["individual"] for row in rows if row["pareto"]}
    assert marked == {5, 2, 6}
    # higher is better for top1 by itself, for the delay by `:max`
    best = rows_of(url, pareto=["validation_top1", "oialr.delay_steps:max"])
    points = [[r["fitness"], -r["oialr.delay_steps"]] for r in best]
    assert [n for n, r in enumerate(best) if r["pareto"]] == slow_front(points)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("fitnes", "`--pareto`: unknown column `fitnes`; did you mean `fitness`?"),
        ("optimizer.name", "`optimizer.name` is no number"),
        ("fitness:best", "`:min` or `:max` may follow fitness, got `:best`"),
    ],
)
def test_a_wrong_objective(seen_urls: dict[str, str], objective: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        rows_of(seen_urls["sqlite"], pareto=["fitness", objective])
