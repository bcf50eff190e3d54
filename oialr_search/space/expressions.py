"""Arithmetic over named columns, as people write it in a search file; nothing of it is ever run.

Numbers, dotted names, + - * / % ** ( ), and the functions of FUNCTIONS; for conditions <= and >=.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from oialr_training.errors import ConfigError, nearest

FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "log": math.log,
    "log10": math.log10,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "abs": abs,
    "min": min,
    "max": max,
}
SEVERAL = ("min", "max")  # take two or more
BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,
}
UNARY: Mapping[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
MOST_CHARACTERS = 1000


@dataclass(frozen=True, kw_only=True)
class Expression:
    """One that has been checked."""

    text: str
    names: tuple[str, ...]
    """The columns that it is of, in the order in which they stand there."""
    node: ast.expr

    def value(self, columns: Mapping[str, float]) -> float:
        """NaN where there is none: a division by zero, the logarithm of a negative number."""
        try:
            return _value(self.node, columns)
        except (ValueError, ArithmeticError):
            return math.nan


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One side is to be at most the other one."""

    low: Expression
    high: Expression
    strict: bool = False
    """Is it not met where both sides are equal?"""

    @property
    def text(self) -> str:
        """As people write it."""
        return f"{self.low.text} {'<' if self.strict else '<='} {self.high.text}"

    def met(self, columns: Mapping[str, float]) -> bool:
        """Does it hold? It does not where a side has no value."""
        low, high = self.low.value(columns), self.high.value(columns)
        return low < high if self.strict else low <= high

    def excess(self, columns: Mapping[str, float]) -> float:
        """By how much it is not met, in the columns' unit; up to 0 where it is."""
        return self.low.value(columns) - self.high.value(columns)

    @property
    def scale(self) -> float:
        """What an excess is large against: the number that it is a bound by, else 1."""
        numbers = [abs(side.value({})) for side in (self.low, self.high) if not side.names]
        return next((n for n in numbers if math.isfinite(n) and n > 0.0), 1.0)


def parse_expression(text: str, known: Collection[str], key: str) -> Expression:
    """Read an expression over columns.

    Raises:
        ConfigError: in one line, when it is none, or names a column that there is not.
    """
    return _checked(_parsed(text, key), known, key)


def parse_bounds(
    text: str, known: Collection[str], key: str, *, strict: bool = False
) -> list[Bound]:
    """Read a condition: `a <= b`, `a >= b`, or several of them in a row, `1 <= a <= b`.

    With `strict` they may be <, > and ==, too.

    Raises:
        ConfigError: see `parse_expression`.
    """
    node = _parsed(text, key)
    if not isinstance(node, ast.Compare):
        _refuse(f"a condition is such as `trainable_percent <= 15`, got {text!r:.80}", key)
    sides = [_checked(side, known, key) for side in (node.left, *node.comparators)]
    bounds = []
    for (left, right), compared in zip(pairwise(sides), node.ops, strict=True):
        strictly, equal = isinstance(compared, ast.Lt | ast.Gt), isinstance(compared, ast.Eq)
        if not isinstance(compared, ast.LtE | ast.GtE) and not (strict and (strictly or equal)):
            ways = "<, <=, ==, >= or >" if strict else "<= or >="
            _refuse(f"a condition is by {ways}, got {text!r:.80}", key)
        if not left.names and not right.names:
            _refuse(f"a condition is on a column, got {text!r:.80}", key)
        low, high = (left, right) if isinstance(compared, ast.LtE | ast.Lt) else (right, left)
        bounds.append(Bound(low=low, high=high, strict=strictly))
        if equal:
            bounds.append(Bound(low=high, high=low))
    return bounds


def _parsed(text: str, key: str) -> ast.expr:
    if len(text) > MOST_CHARACTERS:
        _refuse(f"it has at most {MOST_CHARACTERS} characters, got {len(text)}", key)
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        _refuse(f"cannot read {text!r:.80}", key)


def _checked(node: ast.expr, known: Collection[str], key: str) -> Expression:
    text = ast.unparse(node)
    names = list(dict.fromkeys(_names(node, key)))
    for name in names:
        if name not in known:
            _refuse(f"unknown column `{name:.80}`{nearest(name, list(known))}", key)
    return Expression(text=text, names=tuple(names), node=node)


def _names(node: ast.expr, key: str) -> Iterator[str]:
    """The columns named, from left to right; whatever is no arithmetic is refused."""
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            pass
        case ast.Name() | ast.Attribute() if (name := _dotted(node)) is not None:
            yield name
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in UNARY:
            yield from _names(operand, key)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in BINARY:
            yield from _names(left, key)
            yield from _names(right, key)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            if (len(arguments) < 2) if name in SEVERAL else (len(arguments) != 1):
                number = "two or more arguments" if name in SEVERAL else "one argument"
                _refuse(f"`{name}` takes {number}, got `{ast.unparse(node):.80}`", key)
            for argument in arguments:
                yield from _names(argument, key)
        case ast.Call(func=ast.Name(id=name)) if name not in FUNCTIONS:
            _refuse(f"unknown function `{name:.80}`{nearest(name, FUNCTIONS)}", key)
        case _:
            _refuse(f"`{ast.unparse(node):.80}` is no arithmetic on columns", key)


def _dotted(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=section, attr=name):
            before = _dotted(section)
            return None if before is None else f"{before}.{name}"
    return None


def _value(node: ast.expr, columns: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=value):
            return float(value)  # type: ignore[arg-type]  # see `_names`
        case ast.UnaryOp(op=sign, operand=operand):
            return UNARY[type(sign)](_value(operand, columns))
        case ast.BinOp(left=left, op=sign, right=right):
            return BINARY[type(sign)](_value(left, columns), _value(right, columns))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return float(FUNCTIONS[name](*(_value(argument, columns) for argument in arguments)))
    return float(columns[_dotted(node) or ""])


def _refuse(what: str, key: str) -> NoReturn:
    raise ConfigError(f"`{key}`: {what}")
