"""What can go wrong, whose fault it is, and how the user's mistakes are told.

    KnownError                    cause
    ├── ConfigError               configuration
    ├── DataError                 machine
    │   └── DataSettingsError     configuration
    ├── DeviceError               machine
    ├── DivergedError             training
    ├── ProtocolError             machine
    ├── ProgramError              training        command_trainer.py
    ├── ProgramKilled             machine         command_trainer.py
    │   of the search, beside the code that raises them:
    ├── StorageError              configuration   storage/records.py
    │   └── StorageUnavailable    machine
    ├── FolderError               configuration   evaluation/files.py
    ├── WorkerDied                machine         evaluation/worker_process.py
    ├── TrainingFailed            training        evaluation/repeated_seeds.py
    └── LaunchError               as of what all ranks end with   launch/agreement.py

The method has a root of its own, `oialr.OIALRError`; its fault is the configuration.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Cause = Literal["configuration", "training", "machine"]

MAX_MISTAKES = 20
MAX_NAMES = 20


class KnownError(Exception):
    """An error that we foresee; its text says all, in one line or one for each mistake."""

    cause: Cause
    """What is at fault: the configuration cannot be trained, the training came to no result, or
    the machine, so that another attempt may succeed."""


class ConfigError(KnownError):
    """The user's configuration is wrong; the message has one line for each mistake."""

    cause = "configuration"


class DataError(KnownError):
    """The data set is missing or is not what it should be."""

    cause: Cause = "machine"


class DataSettingsError(DataError):
    """The data set is there, but the settings ask for what it does not have."""

    cause = "configuration"


class DeviceError(KnownError):
    """The device asked for is not there."""

    cause = "machine"


class DivergedError(KnownError):
    """The loss is no longer a finite number."""

    cause = "training"


class ProtocolError(KnownError):
    """A line that is no message of the protocol."""

    cause = "machine"


def place_of(error: BaseException) -> str:
    """`file.py:12: `, the innermost line of a user's own that raised; empty where it is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    ours = __file__.rpartition("/")[0]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        library = frame.filename.startswith((ours, sys.base_prefix, sys.prefix, "<"))
        if not library:
            return f"{frame.filename}:{frame.lineno}: "
    return ""


def mistakes(lines: Sequence[str]) -> ConfigError:
    """The error of so many mistakes, one a line; it names the first ones where they are many."""
    more = [f"{len(lines) - MAX_MISTAKES} mistakes more"] if len(lines) > MAX_MISTAKES else []
    return ConfigError("\n".join([*lines[:MAX_MISTAKES], *more]))


def nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The hint that names the nearest valid name, or all of them, or of many the first."""
    close = difflib.get_close_matches(word, list(known), n=1)
    if close:
        return f"; did you mean `{close[0]}`?"
    first = list(known)[:MAX_NAMES]
    more = f", ... ({len(known)} in all)" if len(known) > MAX_NAMES else ""
    return f"; one of {', '.join(first)}{more}"
