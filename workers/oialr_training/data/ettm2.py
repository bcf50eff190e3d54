"""ETTm2 (Zhou et al. 2021, Informer): load and oil temperature of a transformer, every 15 minutes.

Split, scaling, windows and time features are those of Autoformer (Wu et al. 2021). The series stays
in memory once; every window is a view of it.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from oialr_training.data import Batch, LoadSettings, Splits, epoch_generator
from oialr_training.errors import DataError, DataSettingsError
from oialr_training.sections import ETTm2Data

FILE_NAMES = ("ETTm2.csv", "ETTm2.csv.gz")
COLUMNS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
NUM_TIME_FEATURES = 5
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
STEP_MINUTES = 15
# The ends of the parts: 12, 4 and 4 months of 30 days; the rows after them are unused.
TRAIN_END, VALIDATION_END, TEST_END = 34_560, 46_080, 57_600


def load(
    config: ETTm2Data,
    data_dir: Path | None,
    *,
    seq_len: int,
    label_len: int,
    pred_len: int,
    validate_on_test: bool,
) -> Callable[[LoadSettings], Splits]:
    """Find, check, scale and split the series; the function returned cuts it into batches.

    Raises:
        DataError: when the file is missing or is no ETTm2, or a part has too few windows.
    """
    numbers, dates = read(_find(data_dir))
    # pandas keeps columns together; windows are gathered fastest with rows together.
    values = torch.from_numpy(standardize(numbers)).float().contiguous()
    marks = torch.from_numpy(time_features(dates)).float()

    def part(name: str, start: int, end: int, subset: int | None) -> Part:
        num_windows = end - start - seq_len - pred_len + 1
        if num_windows < 1:
            raise DataSettingsError(
                f"`seq_len` + `pred_len` is at most the {end - start} rows of the {name} part, "
                f"got {seq_len} + {pred_len}"
            )
        if subset is not None and subset > num_windows:
            raise DataSettingsError(
                f"`data.{name}_subset` is at most the part's {num_windows} windows, got {subset}"
            )
        return Part(
            values=values[start:end],
            marks=marks[start:end],
            chosen=evenly_spaced(num_windows, subset or num_windows),
            seq_len=seq_len,
            label_len=label_len,
            pred_len=pred_len,
        )

    # The inputs of the first window reach back into the part before, its targets do not.
    train = part("train", 0, TRAIN_END, config.train_subset)
    test = part("test", VALIDATION_END - seq_len, TEST_END, config.test_subset)
    validation = test
    if not validate_on_test:
        start = TRAIN_END - seq_len
        validation = part("validation", start, VALIDATION_END, config.validation_subset)

    def batches(settings: LoadSettings) -> Splits:
        return Splits(
            train=WindowBatches(train, settings, training=True),
            validation=WindowBatches(validation, settings, training=False),
            test=WindowBatches(test, settings, training=False),
        )

    return batches


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive rows of the series, and the windows to cut from them."""

    values: Tensor
    """(rows, 7), standardised."""
    marks: Tensor
    """(rows, 5) time features."""
    chosen: Tensor
    """(windows,) first row of each window in use, rising."""
    seq_len: int
    label_len: int
    pred_len: int


class WindowBatches:
    """Batches of windows: inputs (values, input marks, output marks), targets.

    Shapes, for S = seq_len, L = label_len, P = pred_len: values (B, S, 7), input marks (B, S, 5),
    output marks (B, L + P, 5), which begin L rows before the inputs end, and targets (B, P, 7).
    """

    def __init__(self, part: Part, settings: LoadSettings, *, training: bool) -> None:
        values, marks = part.values.to(settings.device), part.marks.to(settings.device)
        output_start = part.seq_len - part.label_len
        self._inputs = windows(values, 0, part.seq_len)
        self._input_marks = windows(marks, 0, part.seq_len)
        self._output_marks = windows(marks, output_start, part.label_len + part.pred_len)
        self._targets = windows(values, part.seq_len, part.pred_len)
        self._chosen = part.chosen
        self._settings = settings
        self._training = training
        self.num_batches = -(-len(part.chosen) // settings.batch_size)
        if training:
            # Autoformer's authors drop the incomplete batch, too: its delays follow the mean
            # correlation of the batch, which is noise when only a window or two are left.
            self.num_batches = max(1, len(part.chosen) // settings.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See `oialr_training.data.Batches.epoch`."""
        order = self._chosen
        if self._training:
            generator = epoch_generator(self._settings, epoch)
            order = order[torch.randperm(len(order), generator=generator)]
        order = order[: self.num_batches * self._settings.batch_size].to(self._settings.device)
        for rows in torch.split(order, self._settings.batch_size):
            inputs = (self._inputs[rows], self._input_marks[rows], self._output_marks[rows])
            yield inputs, self._targets[rows]


def windows(series: Tensor, start: int, length: int) -> Tensor:
    """(rows, channels) → (windows, length, channels), a view; window i begins at row i + start."""
    return series[start:].unfold(0, length, 1).mT


def evenly_spaced(num_windows: int, count: int) -> Tensor:
    """(count,) different windows of `num_windows`, from the first one on."""
    return torch.arange(count) * num_windows // count


def fit_scaler(numbers: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(rows, 7) → mean (7,) and (population) standard deviation (7,) over the training rows."""
    train = numbers[:TRAIN_END]
    return train.mean(axis=0), train.std(axis=0)


def standardize(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """(rows, 7) in units of the training rows' standard deviation, around their mean."""
    mean, scale = fit_scaler(numbers)
    return (numbers - mean) / scale


def time_features(dates: pd.DatetimeIndex) -> NDArray[np.float64]:
    """(rows, 5) minute, hour, weekday (Monday 0), day of month and of year, each in ±0.5."""
    features: NDArray[np.float64] = np.stack(
        [
            dates.minute / 59,
            dates.hour / 23,
            dates.dayofweek / 6,
            (dates.day - 1) / 30,
            (dates.day_of_year - 1) / 365,
        ],
        axis=1,
    )
    return features - 0.5


def read(path: Path) -> tuple[NDArray[np.float64], pd.DatetimeIndex]:
    """The (57600, 7) numbers in use and their dates.

    Raises:
        DataError: with the file, the line, the rule and the value.
    """
    try:
        content = path.read_bytes()
        # Unpacked here: pandas hides what is wrong with a damaged file.
        file = io.BytesIO(gzip.decompress(content) if path.suffix == ".gz" else content)
        # As text, so that whatever is wrong can be shown as it stands in the file.
        table = pd.read_csv(file, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    for name in ("date", *COLUMNS):
        if name not in table:
            raise DataError(f"column `{name}` is missing, got {list(table)!r:.100} ({path})")
    if len(table) < TEST_END:
        raise DataError(f"ETTm2 has at least {TEST_END} rows, got {len(table)} ({path})")
    table = table[:TEST_END]

    numbers = table[[*COLUMNS]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        row, column = wrong[0]
        cell = _cell(table, COLUMNS[column], row, path)
        raise DataError(f"`{COLUMNS[column]}` is a finite number, got {cell}")
    constant = np.flatnonzero(np.ptp(numbers[:TRAIN_END], axis=0) == 0)
    if len(constant):
        name, number = COLUMNS[constant[0]], numbers[0, constant[0]]
        raise DataError(f"`{name}` varies over the training rows, got {number} in all ({path})")

    dates = pd.DatetimeIndex(pd.to_datetime(table["date"], format=DATE_FORMAT, errors="coerce"))
    unread = np.flatnonzero(dates.isna())
    if len(unread):
        cell = _cell(table, "date", unread[0], path)
        raise DataError(f"`date` is written as 2016-07-01 00:15:00, got {cell}")
    gaps = np.flatnonzero(np.diff(dates.to_numpy()) != np.timedelta64(STEP_MINUTES, "m"))
    if len(gaps):
        cell = _cell(table, "date", gaps[0] + 1, path)
        raise DataError(
            f"`date` rises by {STEP_MINUTES} minutes a row, got {dates[gaps[0]]}, then {cell}"
        )
    return numbers, dates


def _cell(table: pd.DataFrame, column: str, row: int, path: Path) -> str:
    """One cell as it stands in the file, and its place; the header is line 1."""
    return f"{table[column].iloc[row]!r:.60} ({path}, line {row + 2})"


def _find(data_dir: Path | None) -> Path:
    advice = (
        "get ETT-small/ETTm2.csv from https://github.com/zhouhaoyi/ETDataset "
        "and name its folder by --data-dir or OIALR_DATA"
    )
    if data_dir is None:
        raise DataError(f"no data folder given for ETTm2: {advice}")
    folders = (data_dir, data_dir / "ETTm2", data_dir / "ETT-small")
    for path in (folder / name for folder in folders for name in FILE_NAMES):
        if path.is_file():
            return path
    places = " and ".join(str(folder) for folder in folders)
    raise DataError(f"no ETTm2: looked for {' or '.join(FILE_NAMES)} in {places}; {advice}")
