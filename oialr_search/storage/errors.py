"""Whatever a database raises becomes one line without a password, told apart by what may pass."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import URL

from oialr_search.storage.records import StorageError, StorageUnavailable

# The first byte of SQLite's code; CANTOPEN passes too, but not where the file was never opened.
PASSING_SQLITE_CODES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_PROTOCOL,
}
# connection, transaction rolled back, resources, operator intervention (57014 is a timeout of the
# server's), lock timeout, transaction timeouts
PASSING_SQLSTATES = re.compile(r"08...|40...|53...|57...|55P03|25P0[34]")
# libpq gives no SQLSTATE when it cannot connect; these texts are those that trying will not change
LASTING_REFUSALS = re.compile(
    r"password|authentication failed|does not exist|no pg_hba\.conf entry|not permitted to|"
    r"permission denied|certificate|not support SSL"
)


def display_name(url: URL) -> str:
    """Return a database's name for messages: a path, or a URL without its password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    hidden = [key for key in url.query if re.search("pass|secret|key", key.lower())]
    shown = url.set(drivername="postgresql").difference_update_query(hidden)
    return shown.render_as_string(hide_password=True)


@contextmanager
def storage_errors(url: URL, *, opening: bool = False) -> Iterator[None]:
    """Turn whatever the database raises into one line without the password."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OverflowError, UnicodeError) as error:
        cause = getattr(error, "orig", None) or error
        text = " ".join(str(cause).partition("DETAIL:")[0].split())
        for secret in (url.password, url.query.get("password"), url.query.get("sslpassword")):
            text = text.replace(str(secret), "***") if secret else text
        kind = StorageUnavailable if _may_pass(error, cause, opening) else StorageError
        raise kind(f"{display_name(url)}: {text}") from error
    except json.JSONDecodeError as error:  # of a JSON column that somebody has changed by hand
        text = f"a JSON value in it is damaged: {error}"
        raise StorageError(f"{display_name(url)}: {text}") from error
    except OSError as error:
        if not opening:
            raise  # not the database's: it comes from what the caller hands over
        text = f"{error.strerror} ({error.filename})"
        raise StorageError(f"{display_name(url)}: {text}") from error


def _may_pass(error: Exception, cause: Exception, opening: bool) -> bool:
    """May the same call work later, when nobody has changed anything but the weather?"""
    if isinstance(error, sa.exc.TimeoutError):  # all connections of the pool are in use
        return True
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        return code in PASSING_SQLITE_CODES or (code == sqlite3.SQLITE_CANTOPEN and not opening)
    sqlstate = getattr(cause, "sqlstate", None)
    if sqlstate:
        return PASSING_SQLSTATES.fullmatch(sqlstate) is not None
    is_connection = isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))
    return is_connection and not LASTING_REFUSALS.search(str(cause))
