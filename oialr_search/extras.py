"""What `pip install oialr-search` leaves out, and the line that says how to get it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

from oialr_training.errors import ConfigError

EXTRAS: Mapping[str, Sequence[str]] = {
    "search": ("mpi4py", "propulate", "optuna", "cmaes", "threadpoolctl"),
    "figures": ("plotly", "kaleido", "optuna", "optuna_dashboard", "sklearn", "pandas", "jinja2"),
}
"""Extra of pyproject.toml → what is imported of it. A worker says itself what it lacks."""


def require(extra: str, purpose: str) -> None:
    """Refuse to begin what would end for want of a package; nothing is imported.

    Raises:
        ConfigError: when a package of this extra is not installed.
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{purpose} needs {', '.join(missing)}: run pip install 'oialr-search[{extra}]'"
            + (", with Python 3.11 or 3.12" if "propulate" in missing else "")
        )
