"""What a launch runs with: versions of packages, and the commit of our source."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

REPORTED_PACKAGES = ("oialr-search", "torch", "timm", "propulate", "mpi4py", "numpy", "sqlalchemy")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on, where they are here."""
    found = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_revision(file: Path = Path(__file__)) -> str | None:
    """The commit of our source, marked when it has changes; None where no repository tracks it.

    An installed package may lie in somebody else's repository, in an ignored environment.
    """
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)
        return _git(file, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(file: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()
