"""The search: breeding, launching, storing and reporting; never imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oialr_search.analysis.frames import open_search

__all__ = ["open_search"]


def __getattr__(name: str) -> Any:
    """Import pandas when data frames are asked for, not before."""
    if name == "open_search":
        from oialr_search import extras

        extras.require("figures", name)
        from oialr_search.analysis.frames import open_search

        return open_search
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
