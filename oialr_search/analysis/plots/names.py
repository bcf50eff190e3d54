"""The plots' names, known without importing plotly."""

from enum import StrEnum


class PlotName(StrEnum):
    """What `oialr-search plot` can draw."""

    STABILITY = "stability"
    INNER_RANKS = "inner_ranks"
