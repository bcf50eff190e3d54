"""What a report may ask for: columns by their shown names, and conditions on them as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from oialr_search.storage.records import IndividualRecord, Status

Kind = Literal["int", "float", "bool", "text"]
Source = Literal[
    "search", "individual", "evaluation", "objectives", "hyperparameters", "metrics", "computed"
]
Operator = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True)
class Column:
    """A value that each individual has, of its own or of its latest evaluation."""

    name: str  # as it is shown
    kind: Kind
    source: Source
    key: str  # its name in the table or JSON; `place` and `duration_s` are computed


@dataclass(frozen=True)
class Comparison:
    """`column operator value`; NULL fulfils none."""

    column: Column
    operator: Operator
    value: float | bool | str


@dataclass(frozen=True)
class OneOf:
    """`column IN (values)`."""

    column: Column
    values: Sequence[float | bool | str]


@dataclass(frozen=True)
class IsNull:
    """`column IS NULL`."""

    column: Column


@dataclass(frozen=True)
class Not:
    """`NOT part`."""

    part: Condition


@dataclass(frozen=True)
class Every:
    """`part AND part ...`."""

    parts: Sequence[Condition]


@dataclass(frozen=True)
class Either:
    """`part OR part ...`."""

    parts: Sequence[Condition]


Condition = Comparison | OneOf | IsNull | Not | Every | Either


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which individuals of a search are meant."""

    statuses: Sequence[Status] = (Status.COMPLETED,)
    islands: Sequence[int] = ()  # empty: all
    where: Condition | None = None


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An individual and its place among all completed ones of its search."""

    place: int | None  # None unless completed
    individual: IndividualRecord


@dataclass(frozen=True, kw_only=True)
class FailureCount:
    """So many evaluations ended that way."""

    status: Status
    reason: str | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table of a search: values by row, named by column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def columns_of(condition: Condition | None) -> Iterator[Column]:
    """Name the columns that a condition looks at."""
    match condition:
        case None:
            return
        case Comparison() | OneOf() | IsNull():
            yield condition.column
        case Not():
            yield from columns_of(condition.part)
        case Every() | Either():
            for part in condition.parts:
                yield from columns_of(part)
