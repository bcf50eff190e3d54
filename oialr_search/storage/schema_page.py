"""The page `docs/database.md`, made from the schema itself.

Run `python -m oialr_search.storage.schema_page > docs/database.md` after a change of the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from oialr_search.storage import migrations
from oialr_search.storage.schema import METADATA, REVISION_TABLE

INTRODUCTION = """\
# The database

What is in it, table by table. Made from the schema by
`python -m oialr_search.storage.schema_page > docs/database.md`; a test keeps it so.

```
searches ─┬─ launches ───┬─ individuals ─── evaluations ─┬─ metrics
          ├─ islands     │        │              │       ├─ rank_updates
          └─ migrations ─┼────────┘              │       └─ observations
                         └───────────────────────┘
```

A search has launches, one for each `mpirun`. A launch breeds individuals and evaluates them; an
individual has several evaluations when it was repeated, `attempt` 1, 2, and so on, maybe of
different launches. What a training measures belongs to its evaluation. `migrations` says which
individual was accepted by which other island. Times are UTC. A number that is none (NaN) is NULL.
`SELECT * FROM leaderboard LIMIT 5` shows the best of the latest search with each hyperparameter
and metric as a column; the view is made anew with each new search. The view `lineage` has a row for
each individual and parent. docs/ask-the-database.md has queries to begin with.

An individual has the status of its latest evaluation, with one exception:

| status | evaluation | individual |
| --- | --- | --- |
| `queued` | (not in use) | a person named it, or it confirms the best: a rank that asks for \
work gets the oldest one after those that are `lost` |
| `running` | a rank has claimed it | the same |
| `completed` | has a fitness | the same; it can breed |
| `pruned` | given up since it did badly | the same; with `search.stopping: {continue: true}` a \
rank may go on with it, as another attempt |
| `failed` | the worker raised, diverged or died; `reason` and `log_tail` say how | the same |
| `timed_out` | took too long | the same |
| `lost` | its launch, node or device went away | waits to be repeated: a rank that asks for work \
gets the oldest one first. A failed or timed out evaluation that is to be repeated leaves its \
individual `lost` too |

`islands` and `searches.last_finish_number` count what the other tables hold; they change in the
same transaction. Who changes rows by hand changes them too.

SQLite: the file is in WAL mode with `synchronous = FULL`. Readers never block a writer. While a
reader keeps a transaction open, the `-wal` file beside it grows, since what the reader sees cannot
be folded back; once it ends, the next commits start it again and cut it to 64 MiB. On a network
file system the journal mode is DELETE, with a warning: there, readers and the writer wait for each
other.
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join([INTRODUCTION, *_tables(), *_revisions()])


def _tables() -> Iterator[str]:
    for table in METADATA.sorted_tables:
        yield f"## {table.name}\n\n{_sentence(table.comment)}\n"
        yield "| column | type | |\n| --- | --- | --- |"
        for column in table.columns:
            keys = "".join(f"; → {key.target_fullname}" for key in column.foreign_keys)
            null = ", may be NULL" if column.nullable else ""
            name = f"**{column.name}**" if column.primary_key else column.name
            yield f"| {name} | {_type(column)}{null} | {column.comment}{keys} |"
        yield ""


def _type(column: sa.Column[object]) -> str:
    return str(column.type.compile()).lower().replace("varchar(9)", "text")


def _sentence(text: str | None) -> str:
    return f"{(text or '')[:1].upper()}{(text or '')[1:]}."


def _revisions() -> Iterator[str]:
    yield "## Revisions\n"
    yield f"`{REVISION_TABLE}.version_num` says which one a database has; an older database is"
    yield "brought up to date by `oialr-search upgrade --db DATABASE`.\n"
    for path in sorted(Path(str(migrations.__file__)).parent.glob("versions/0*.py")):
        docstring = path.read_text().splitlines()[0].strip('"')
        yield f"- {path.name[:4]}: {docstring}"
    yield ""


if __name__ == "__main__":
    print(page(), end="")
