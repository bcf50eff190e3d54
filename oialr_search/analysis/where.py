"""`--where`: a condition as people write it in SQL, read into a tree; nothing of it is ever run.

condition  = and {OR and};  and = not {AND not};  not = [NOT] (predicate | "(" condition ")")
predicate  = column [comparison value | [NOT] IN (value, ...) | IS [NOT] NULL]
comparison = "=" "==" "!=" "<>" "<" "<=" ">" ">=";  value = number, 'text', true, false
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

from oialr_search.storage.selection import (
    Column,
    Comparison,
    Condition,
    Either,
    Every,
    IsNull,
    Not,
    OneOf,
    Operator,
)
from oialr_training.errors import ConfigError, nearest

TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])
    | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<name>[A-Za-z_]\w*(?:\.\w+)*)
    | (?P<symbol><=|>=|<>|!=|==|[=<>(),])
    )""",
    re.VERBOSE | re.ASCII,
)
KEYWORDS = {"and", "or", "not", "in", "is", "null", "true", "false"}
COMPARISONS: tuple[Operator, ...] = ("=", "!=", "<", "<=", ">", ">=")
OPERATORS: Mapping[str, Operator] = {"==": "=", "<>": "!=", **{name: name for name in COMPARISONS}}
EXAMPLE = "such as `trainable_percent < 15 and optimizer.lr >= 1e-3`"

Value = float | bool | str


def parse_condition(text: str, columns: Mapping[str, Column], option: str = "--where") -> Condition:
    """Read a condition on columns.

    Raises:
        ConfigError: in one line, when it is none, or names a column that there is not.
    """
    try:
        return _Parser(text, columns, option).parse()
    except RecursionError:
        raise ConfigError(f"`{option}` has too many parentheses within each other") from None


def find_column(name: str, columns: Mapping[str, Column], option: str) -> Column:
    """The column of that name, in full, with `_` for `.`, or as a table's heading has it.

    Raises:
        ConfigError: when there is none, or several; it names the nearest.
    """
    if name in columns:
        return columns[name]
    asked = name.lower()
    found = [c for c in columns.values() if asked in (c.name.lower(), c.name.replace(".", "_"))]
    found = found or [c for c in columns.values() if asked in _short_names(c.name)]
    if len(found) == 1:
        return found[0]
    if found:
        several = " or ".join(f"`{column.name}`" for column in found)
        raise ConfigError(f"`{option}`: `{name}` may be {several}")
    known = {short: c.name for c in columns.values() for short in (*_short_names(c.name), c.name)}
    hint = nearest(asked, list(known))
    for short, full in known.items():
        hint = hint.replace(f"did you mean `{short}`?", f"did you mean `{full}`?")
    if "did you mean" not in hint:
        hint = f"; one of {', '.join(columns)}"
    raise ConfigError(f"`{option}`: unknown column `{name}`{hint}")


def _short_names(name: str) -> list[str]:
    last = name.rpartition(".")[2]
    return [last, last.replace("validation_", "val_")]


class _Parser:
    """Descends from OR to the single predicate, one token at a time."""

    def __init__(self, text: str, columns: Mapping[str, Column], option: str) -> None:
        self._columns = columns
        self._option = option
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while text[position:].strip():
            match = TOKEN.match(text, position)
            if match is None:
                self._refuse(f"cannot read {text[position:].strip()!r:.40}")
            kind, token = str(match.lastgroup), str(match[str(match.lastgroup)])
            if kind == "name" and token.lower() in KEYWORDS:
                kind, token = "keyword", token.lower()
            self._tokens.append((kind, token))
            position = match.end()
        self._tokens.append(("end", ""))

    def parse(self) -> Condition:
        """The whole text."""
        condition = self._or()
        if self._kind != "end":
            self._refuse(f"`and` or `or` should come before {self._shown}")
        return condition

    def _or(self) -> Condition:
        parts = [self._and()]
        while self._take("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _and(self) -> Condition:
        parts = [self._not()]
        while self._take("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _not(self) -> Condition:
        if self._take("not"):
            return Not(self._not())
        if self._take("("):
            condition = self._or()
            self._expect(")")
            return condition
        return self._predicate()

    def _predicate(self) -> Condition:
        if self._kind != "name":
            self._refuse(f"a column should stand where there is {self._shown}")
        column = find_column(self._next(), self._columns, self._option)
        if self._take("is"):
            negated = self._take("not")
            self._expect("null")
            return Not(IsNull(column)) if negated else IsNull(column)
        negated = self._take("not")
        if self._take("in"):
            self._expect("(")
            values = [self._value(column)]
            while self._take(","):
                values.append(self._value(column))
            self._expect(")")
            return Not(OneOf(column, tuple(values))) if negated else OneOf(column, tuple(values))
        if negated:
            self._refuse(f"`in` should follow `not`, got {self._shown}")
        if self._token in OPERATORS:
            operator = OPERATORS[self._next()]
            value = self._value(column)
            if isinstance(value, bool) and operator not in ("=", "!="):
                self._refuse(f"`{column.name}` is true or false, not more or less")
            return Comparison(column, operator, value)
        if column.kind == "bool":
            return Comparison(column, "=", True)
        return self._refuse(f"a comparison should follow `{column.name}`, got {self._shown}")

    def _value(self, column: Column) -> Value:
        kind, token = self._tokens[0]
        if token == "null":
            self._refuse(f"`{column.name} is null` asks for what is missing, `=` never finds it")
        if kind == "name" and column.kind == "text":
            self._refuse(f"text stands in quotes: `{column.name} = '{token}'`")
        wanted = {"text": ("text",), "bool": ("keyword",)}.get(column.kind, ("number",))
        what = {"text": "text", "bool": "true or false"}.get(column.kind, "a number")
        if kind not in wanted or (kind == "keyword" and token not in ("true", "false")):
            self._refuse(f"`{column.name}` is {what}, got {self._shown}")
        self._next()
        if kind == "text":
            return token[1:-1].replace(token[0] * 2, token[0])
        return token == "true" if kind == "keyword" else float(token)

    @property
    def _kind(self) -> str:
        return self._tokens[0][0]

    @property
    def _token(self) -> str:
        return self._tokens[0][1]

    @property
    def _shown(self) -> str:
        return f"`{self._token:.40}`" if self._token else "the end"

    def _next(self) -> str:
        return self._tokens.pop(0)[1]

    def _take(self, token: str) -> bool:
        """Is this the next token, and no text in quotes? Then go on."""
        if self._kind in ("keyword", "symbol") and self._token == token:
            self._next()
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._take(token):
            self._refuse(f"`{token}` should stand where there is {self._shown}")

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(f"`{self._option}`: {what}; a condition is {EXAMPLE}")
