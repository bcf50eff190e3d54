"""The plots' names, known without importing plotly."""

from enum import StrEnum


class PlotName(StrEnum):
    """What `oialr-search plot` can draw."""

    CONVERGENCE = "convergence"
    IMPORTANCE = "importance"
    PARALLEL_COORDINATES = "parallel_coordinates"
    SLICE = "slice"
    PARETO = "pareto"
    LINEAGE = "lineage"
    LEARNING_RATES = "learning_rates"
    EPOCHS = "epochs"
    INNER_RANKS = "inner_ranks"
    STABILITY = "stability"


# Figures of all individuals alike; the others show one, or set it off.
OF_ALL = frozenset({PlotName.CONVERGENCE, PlotName.IMPORTANCE})
