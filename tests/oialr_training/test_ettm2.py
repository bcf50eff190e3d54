"""ETTm2 against the authors' numbers; its windows, their order, and errors in one clear line.

In the synthetic file the first column is the row's number, so that a window tells where it is from.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from oialr_training.data import Batches, LoadSettings, Splits, ettm2
from oialr_training.errors import DataError
from oialr_training.sections import ETTm2Data

from ..conftest import SHARED

pytestmark = pytest.mark.filterwarnings("error")

LINES = list[str]
REAL = SHARED / "data"
REFERENCE = SHARED / "reference" / "autoformer" / "ettm2_windows.npz"
CPU = torch.device("cpu")
PARTS = ("train", "validation", "test")
ROWS = {"train": slice(0, 34560), "validation": slice(34464, 46080), "test": slice(45984, 57600)}
REFERENCE_NAMES = {"train": "train", "validation": "val", "test": "test"}
NUM_ROWS = 57_600
# Mean and standard deviation of the row numbers 0 ... 34559.
ROW_MEAN, ROW_STD = 34_559 / 2, ((34_560**2 - 1) / 12) ** 0.5


def load(
    folder: Path | None,
    *,
    batch_size: int = 100_000,
    seed: int = 1,
    seq_len: int = 96,
    pred_len: int = 96,
    validate_on_test: bool = False,
    **subsets: int,
) -> Splits:
    settings = LoadSettings(batch_size=batch_size, seed=seed, device=CPU, num_threads=1)
    return ettm2.load(
        ETTm2Data(**subsets),
        folder,
        seq_len=seq_len,
        label_len=48,
        pred_len=pred_len,
        validate_on_test=validate_on_test,
    )(settings)


def row_numbers(values: Tensor) -> Tensor:
    """(windows, steps, 7) of the synthetic file → (windows, steps) rows they come from."""
    return (values[..., 0].double() * ROW_STD + ROW_MEAN).round().long()


def first_rows(part: Batches, epoch: int = 1) -> list[list[int]]:
    """The first input row of each window, batch by batch."""
    return [row_numbers(inputs[0])[:, 0].tolist() for inputs, _ in part.epoch(epoch)]


def refused(folder: Path | None, **options: int) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="session")
def lines() -> LINES:
    """A right file, line by line."""
    dates = pd.date_range("2016-07-01", periods=NUM_ROWS, freq="15min").strftime(ettm2.DATE_FORMAT)
    noise = np.random.default_rng(0).integers(0, 10, NUM_ROWS)
    header = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"
    rows = zip(dates, noise, strict=True)
    return [
        header,
        *(f"{d},{n},{x},{x}.5,-{x},0.{x},{n % 7},1e{x}" for n, (d, x) in enumerate(rows)),
    ]


@pytest.fixture(scope="session")
def folder(lines: LINES, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ettm2")
    (folder / "ETTm2.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def reference() -> dict[str, np.ndarray]:
    if not REFERENCE.is_file() or not (REAL / "ETTm2.csv.gz").is_file():
        pytest.skip(f"no {REFERENCE} or no ETTm2 in {REAL}")
    with np.load(REFERENCE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def real_rows(reference: dict[str, np.ndarray]) -> tuple[np.ndarray, pd.DatetimeIndex]:
    """The real numbers and dates."""
    return ettm2.read(REAL / "ETTm2.csv.gz")


@pytest.fixture(scope="session")
def real_parts(reference: dict[str, np.ndarray]) -> dict[str, tuple[tuple[Tensor, ...], Tensor]]:
    """Each part of the real data as one batch, in the order in which it comes."""
    splits = load(REAL)
    return {name: next(getattr(splits, name).epoch(1)) for name in PARTS}


def test_the_scaler_is_the_authors(
    reference: dict[str, np.ndarray], real_rows: tuple[np.ndarray, pd.DatetimeIndex]
) -> None:
    mean, scale = ettm2.fit_scaler(real_rows[0])
    np.testing.assert_allclose(mean, reference["scaler/mean"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(scale, reference["scaler/scale"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(scale**2, reference["scaler/var"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("part", PARTS)
def test_every_row_and_time_feature_is_the_authors(
    reference: dict[str, np.ndarray],
    real_rows: tuple[np.ndarray, pd.DatetimeIndex],
    part: str,
) -> None:
    numbers, dates = real_rows
    name = REFERENCE_NAMES[part]
    values, marks = ettm2.standardize(numbers)[ROWS[part]], ettm2.time_features(dates)[ROWS[part]]
    assert len(values) == reference[f"rows/{name}"]
    for found, key in ((values, "data_colsum"), (marks, "stamp_colsum")):
        np.testing.assert_allclose(found.sum(0), reference[f"{name}/{key}"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("pred_len", [96, 192, 336, 720])
def test_there_are_as_many_windows_as_the_authors_have(
    reference: dict[str, np.ndarray], pred_len: int
) -> None:
    splits = load(REAL, batch_size=1, pred_len=pred_len)
    for name in PARTS:
        expected = reference[f"n/{REFERENCE_NAMES[name]}/{pred_len}"]
        assert getattr(splits, name).num_batches == expected


@pytest.mark.parametrize("part", PARTS)
def test_windows_are_the_authors(
    reference: dict[str, np.ndarray],
    real_parts: dict[str, tuple[tuple[Tensor, ...], Tensor]],
    part: str,
) -> None:
    (values, input_marks, output_marks), targets = real_parts[part]
    name = REFERENCE_NAMES[part]
    expected = {
        key: torch.from_numpy(reference[f"{name}/{key}"]).float()
        for key in ("seq_x", "seq_y", "seq_x_mark", "seq_y_mark")
    }
    for number, index in enumerate(reference[f"{name}/idx"]):
        position = int(index)
        if part == "train":  # shuffled: the window is wherever its inputs are
            same = (values - expected["seq_x"][number]).abs().amax((1, 2)) < 1e-5
            assert same.sum() == 1
            position = int(same.nonzero())
        for found, key in (
            (values[position], "seq_x"),
            (torch.cat([values[position, -48:], targets[position]]), "seq_y"),
            (input_marks[position], "seq_x_mark"),
            (output_marks[position], "seq_y_mark"),
        ):
            torch.testing.assert_close(found, expected[key][number], rtol=1e-6, atol=1e-6)


def test_time_features_of_known_moments() -> None:
    # A Monday, the start of a year; and the last quarter of a leap year's last day, a Saturday.
    dates = pd.DatetimeIndex(["2018-01-01 00:00:00", "2016-12-31 23:45:00"])
    expected = [[-0.5, -0.5, -0.5, -0.5, -0.5], [45 / 59 - 0.5, 0.5, 5 / 6 - 0.5, 0.5, 0.5]]
    np.testing.assert_allclose(ettm2.time_features(dates), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("seq_len", [48, 120])
def test_the_first_targets_follow_the_part_before_whatever_the_input_length(
    folder: Path, seq_len: int
) -> None:
    splits = load(folder, seq_len=seq_len, pred_len=24)
    borders = {"train": (seq_len, 34_560), "validation": (34_560, 46_080), "test": (46_080, 57_600)}
    for name, (start, end) in borders.items():
        (values, input_marks, output_marks), targets = next(getattr(splits, name).epoch(1))
        inputs_end, targets_start = row_numbers(values)[:, -1], row_numbers(targets)[:, 0]
        assert torch.equal(inputs_end + 1, targets_start)
        assert (int(targets_start.min()), int(row_numbers(targets).max())) == (start, end - 1)
        assert values.shape[1:] == (seq_len, 7)
        assert input_marks.shape[1:] == (seq_len, 5)
        assert output_marks.shape[1:] == (48 + 24, 5)
        assert targets.shape[1:] == (24, 7)
        assert {t.dtype for t in (values, input_marks, output_marks, targets)} == {torch.float32}


def test_output_marks_begin_label_len_rows_before_the_inputs_end(folder: Path) -> None:
    (_, input_marks, output_marks), _ = next(load(folder, test_subset=50).test.epoch(1))
    assert torch.equal(input_marks[:, -48:], output_marks[:, :48])
    # The first test window's targets begin at row 46080: 480 days after the start, at midnight.
    expected = ettm2.time_features(pd.date_range("2017-10-24", periods=96, freq="15min"))
    torch.testing.assert_close(output_marks[0, 48:], torch.from_numpy(expected).float())


@pytest.mark.parametrize(("name", "start"), [("validation", 34_464), ("test", 45_984)])
def test_validation_and_test_have_every_window_in_order(
    folder: Path, name: str, start: int
) -> None:
    part = getattr(load(folder, batch_size=1000), name)
    batches = first_rows(part)
    assert list(chain(*batches)) == list(range(start, start + 11_425))
    assert [len(batch) for batch in batches] == [1000] * 11 + [425]
    assert part.num_batches == 12


def test_training_is_shuffled_by_seed_and_epoch(folder: Path) -> None:
    first, again, other = (load(folder, seed=seed, train_subset=900).train for seed in (1, 1, 2))
    order = first_rows(first, 3)
    assert order == first_rows(again, 3)
    assert order != first_rows(first, 4)
    assert order != first_rows(other, 3)
    assert order[0] != sorted(order[0])
    assert sorted(order[0]) == sorted(first_rows(other, 3)[0])


def test_training_drops_the_last_incomplete_batch(folder: Path) -> None:
    train = load(folder, batch_size=100, train_subset=1050).train
    seen = first_rows(train)
    assert [len(batch) for batch in seen] == [100] * 10
    assert train.num_batches == 10
    assert len(set(chain(*seen))) == 1000
    # Which windows are left out changes with the epoch.
    assert set(chain(*seen)) != set(chain(*first_rows(train, 2)))


def test_training_keeps_its_only_batch(folder: Path) -> None:
    train = load(folder, batch_size=32, train_subset=5).train
    assert [len(batch) for batch in first_rows(train)] == [5]
    assert train.num_batches == 1


def test_subsets_are_evenly_spaced_over_their_part(folder: Path) -> None:
    splits = load(folder, train_subset=7, validation_subset=11_424, test_subset=3)
    assert sorted(first_rows(splits.train)[0]) == [0, 4909, 9819, 14729, 19639, 24549, 29459]
    assert first_rows(splits.test) == [[45_984, 49_792, 53_600]]
    validation = first_rows(splits.validation)[0]
    assert len(set(validation)) == 11_424
    assert validation == sorted(validation)


@pytest.mark.parametrize(
    ("name", "size"), [("train", 34_369), ("validation", 11_425), ("test", 11_425)]
)
def test_a_subset_is_at_most_the_part(folder: Path, name: str, size: int) -> None:
    key = f"{name}_subset"
    whole = getattr(load(folder, **{key: size}), name)
    assert len(set(chain(*first_rows(whole)))) == size
    message = refused(folder, **{key: size + 1})
    assert message == f"`data.{key}` is at most the part's {size} windows, got {size + 1}"


def test_validation_on_test(folder: Path) -> None:
    splits = load(folder, validate_on_test=True, test_subset=9)
    assert first_rows(splits.validation) == first_rows(splits.test)
    assert len(first_rows(splits.test)[0]) == 9


def test_windows_are_views() -> None:
    series = torch.arange(70.0).reshape(10, 7)
    view = ettm2.windows(series, 3, 4)
    assert view.data_ptr() == series[3:].data_ptr()
    assert view.shape == (4, 4, 7)
    for number in range(4):
        assert torch.equal(view[number], series[number + 3 : number + 7])


def test_batches_hold_the_series_once_and_give_copies() -> None:
    torch.manual_seed(0)
    part = ettm2.Part(
        values=torch.randn(300, 7),
        marks=torch.randn(300, 5),
        chosen=torch.arange(109),
        seq_len=96,
        label_len=48,
        pred_len=96,
    )
    settings = LoadSettings(batch_size=8, seed=1, device=CPU, num_threads=1)
    batches = ettm2.WindowBatches(part, settings, training=False)
    held = [tensor for tensor in vars(batches).values() if isinstance(tensor, Tensor)]
    assert sum(tensor.ndim == 3 for tensor in held) == 4
    assert {tensor.untyped_storage().data_ptr() for tensor in held} == {
        tensor.data_ptr() for tensor in (part.values, part.marks, part.chosen)
    }
    before = part.values.clone()
    for (values, _, _), targets in batches.epoch(1):
        assert values.is_contiguous()
        values.zero_(), targets.zero_()
    assert torch.equal(part.values, before)


def test_the_loaded_rows_lie_together(folder: Path) -> None:
    # Gathering from pandas' column order takes several times as long.
    values = next(v for v in vars(load(folder).train).values() if isinstance(v, Tensor))
    assert values.stride() == (7, 7, 1)


@pytest.mark.parametrize("place", ["", "ETTm2", "ETT-small"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_file_is_found(folder: Path, tmp_path: Path, place: str, packed: bool) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    if packed:
        text = (folder / "ETTm2.csv").read_bytes()
        (tmp_path / place / "ETTm2.csv.gz").write_bytes(gzip.compress(text, 1))
    else:
        (tmp_path / place / "ETTm2.csv").symlink_to(folder / "ETTm2.csv")
    (expected, expected_targets), (found, found_targets) = (
        next(load(root, test_subset=20).test.epoch(1)) for root in (folder, tmp_path)
    )
    assert all(map(torch.equal, (*expected, expected_targets), (*found, found_targets)))


def test_no_file(tmp_path: Path) -> None:
    message = refused(tmp_path)
    for word in ("ETTm2.csv or ETTm2.csv.gz", f"{tmp_path} and", "ETTm2 and", "ETT-small;"):
        assert word in message
    for text in (message, refused(None)):
        for word in (
            "github.com/zhouhaoyi/ETDataset",
            "ETT-small/ETTm2.csv",
            "--data-dir",
            "OIALR",
        ):
            assert word in text


def test_rows_after_the_test_part_and_further_columns_are_ignored(
    lines: LINES, folder: Path, tmp_path: Path
) -> None:
    more = [f"{line},x" for line in lines]
    more[0] = lines[0] + ",comment"
    (tmp_path / "ETTm2.csv").write_text("\n".join([*more, "no date,1,2,3,4,5,6,nan,y", ""]))
    (expected, _), (found, _) = (
        next(load(root, test_subset=20).test.epoch(1)) for root in (folder, tmp_path)
    )
    assert all(map(torch.equal, expected, found))


def cell(line: int, column: int, text: str) -> Callable[[LINES], LINES]:
    """The change of one cell, `line` counted from 1."""

    def change(lines: LINES) -> LINES:
        cells = lines[line - 1].split(",")
        cells[column] = text
        return [*lines[: line - 1], ",".join(cells), *lines[line:]]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cell(1, 7, "ot"), ["column `OT` is missing", "'LULL', 'ot'"]),
        (cell(1, 0, "time"), ["column `date` is missing", "'time', 'HUFL'"]),
        (lambda lines: [line.replace(",", ";") for line in lines], ["`date`", "date;HUFL;HULL"]),
        (lambda lines: lines[:-1], ["at least 57600 rows", "got 57599"]),
        (lambda lines: lines[:1], ["at least 57600 rows", "got 0"]),
        (cell(5, 2, "abc"), ["`HULL` is a finite number", "'abc'", "line 5)"]),
        (cell(57_601, 7, ""), ["`OT` is a finite number", "''", "line 57601)"]),
        (cell(2, 1, "NaN"), ["`HUFL` is a finite number", "'NaN'", "line 2)"]),
        (cell(9, 1, "-inf"), ["`HUFL` is a finite number", "'-inf'", "line 9)"]),
        (cell(9, 1, "1e999"), ["`HUFL` is a finite number", "'1e999'", "line 9)"]),
        (lambda lines: [*lines[:7], "", *lines[7:]], ["is a finite number", "line 8)"]),
        (lambda lines: [*lines[:7], lines[7][:25], *lines[8:]], ["a finite number", "line 8)"]),
        (lambda lines: [*lines[:7], lines[7] + ",1", *lines[8:]], ["cannot read", "line 8"]),
        (cell(7, 3, '"1'), ["cannot read", "ETTm2.csv"]),
        (cell(7, 0, "01/07/2016 01:15"), ["`date` is written as", "'01/07/2016", "line 7)"]),
        (cell(7, 0, "2016-06-31 01:15:00"), ["`date`", "'2016-06-31 01:15:00'", "line 7)"]),
        (cell(7, 0, ""), ["`date` is written as", "''", "line 7)"]),
        (lambda lines: [lines[0], *lines[:0:-1]], ["rises by 15 minutes", "line 3)"]),
        (
            lambda lines: [*lines[:7], lines[6], *lines[7:]],
            ["rises by 15", "got 2016-07-01 01:15:00, then '2016-07-01 01:15:00'", "line 8)"],
        ),
        (
            lambda lines: [*lines[:7], *lines[8:], lines[-1]],
            ["rises by 15", "got 2016-07-01 01:15:00, then '2016-07-01 01:45:00'", "line 8)"],
        ),
        (
            lambda lines: [lines[0], *(line.rpartition(",")[0] + ",3" for line in lines[1:])],
            ["`OT` varies over the training rows", "got 3.0"],
        ),
    ],
)
def test_a_wrong_file_is_one_clear_line(
    lines: LINES, tmp_path: Path, change: Callable[[LINES], LINES], words: list[str]
) -> None:
    file = tmp_path / "ETTm2.csv"
    file.write_text("\n".join(change(lines)) + "\n")
    message = refused(tmp_path)
    for word in (*words, str(file)):
        assert word in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ETTm2.csv", lambda _: b""),
        ("ETTm2.csv", lambda _: bytes(range(256)) * 9),
        ("ETTm2.csv", lambda folder: gzip.compress((folder / "ETTm2.csv").read_bytes(), 1)),
        ("ETTm2.csv.gz", lambda folder: (folder / "ETTm2.csv").read_bytes()),
        ("ETTm2.csv.gz", lambda folder: gzip.compress(bytes(10**6), 1)[:500]),
    ],
)
def test_an_unreadable_file_is_one_clear_line(
    folder: Path, tmp_path: Path, name: str, content: Callable[[Path], bytes]
) -> None:
    (tmp_path / name).write_bytes(content(folder))
    assert refused(tmp_path).startswith(f"cannot read {tmp_path / name}: ")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda packed: packed[: len(packed) // 2], "ended before"),
        (lambda packed: packed[:-4], "ended before"),
        (lambda packed: packed[:10] + b"\xff" + packed[11:], "decompressing"),
        (lambda packed: packed[:-8] + bytes(4) + packed[-4:], "CRC"),
    ],
)
def test_a_damaged_packed_file_is_one_clear_line(
    folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    file = tmp_path / "ETTm2.csv.gz"
    file.write_bytes(damage(gzip.compress((folder / "ETTm2.csv").read_bytes(), 1)))
    message = refused(tmp_path)
    assert message.startswith(f"cannot read {file}: ")
    assert reason in message


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ({"pred_len": 11_521}, ["11616 rows of the test part", "got 96 + 11521"]),
        ({"pred_len": 40_000}, ["34560 rows of the train part", "got 96 + 40000"]),
        ({"seq_len": 34_500}, ["34560 rows of the train part", "got 34500 + 96"]),
    ],
)
def test_lengths_that_leave_a_part_without_a_window(
    folder: Path, lengths: dict[str, int], words: list[str]
) -> None:
    message = refused(folder, **lengths)
    assert "`seq_len` + `pred_len` is at most" in message
    for word in words:
        assert word in message


def test_the_longest_prediction_leaves_one_window(folder: Path) -> None:
    splits = load(folder, pred_len=11_520)
    assert first_rows(splits.validation) == [[34_464]]
    assert first_rows(splits.test) == [[45_984]]
