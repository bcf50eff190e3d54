"""Several objectives at once: what nothing else beats, and how far the front has come.

All objectives are minimised. Shapes: n points, k objectives. NumPy is imported where it is needed:
not every command does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pareto_front(points: Any) -> list[int]:
    """The positions of the points that no other is at least as low as everywhere and lower once.

    Args:
        points: (n, k).
    """
    import numpy as np

    if not len(points):
        return []
    costs = np.asarray(points, dtype=float)
    left = np.lexsort(costs.T[::-1])  # whoever beats a point comes before it
    front: list[int] = []
    while len(left):
        best = costs[left[0]]
        equal = (costs[left] == best).all(axis=1)
        front += left[equal].tolist()
        left = left[(costs[left] < best).any(axis=1) & ~equal]
    return sorted(front)


def best_spread(points: Any) -> list[int]:
    """All positions: front after front, on each those first that have the most room around them.

    NSGA-II's order (Deb et al. 2002): rank by non-dominated sorting, then crowding distance. Of
    equals the one that comes first.
    """
    import numpy as np

    costs = np.asarray(points, dtype=float)
    left = np.arange(len(costs))
    order: list[int] = []
    while len(left):
        front = np.array(pareto_front(costs[left]))
        rooms = -crowding_distances(costs[left[front]])
        order += left[front][np.argsort(rooms, kind="stable")].tolist()
        left = np.delete(left, front)
    return order


def crowding_distances(points: Any) -> Any:
    """(n,): of each point of a front, how far apart its neighbours are; infinite at the ends."""
    import numpy as np

    costs = np.asarray(points, dtype=float)
    distances = np.zeros(len(costs))
    for values in costs.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        distances[order[[0, -1]]] = np.inf
        if span > 0.0:
            distances[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return distances


def hypervolume(points: Any, reference: Sequence[float]) -> float:
    """How much of the box below the reference point the points dominate (Zitzler and Thiele 1999).

    By slices along the last objective: exact, and quick for two or three objectives.
    """
    import numpy as np

    costs = np.asarray(points, dtype=float).reshape(-1, len(reference))
    costs = costs[(costs < reference).all(axis=1)]
    if not len(costs):
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - costs.min())
    costs = costs[np.argsort(costs[:, -1], kind="stable")]
    volume = 0.0
    for number, low in enumerate(costs[:, -1], start=1):
        high = costs[number, -1] if number < len(costs) else reference[-1]
        if high > low:
            volume += float(high - low) * hypervolume(costs[:number, :-1], reference[:-1])
    return volume


def knee(points: Any) -> int:
    """The position of a front's knee: the least sum of objectives, each from 0 to 1 on the front.

    With two, the point farthest below the line between the front's ends (Das 1999); of equals the
    one that comes first.
    """
    import numpy as np

    costs = np.asarray(points, dtype=float)
    spans = np.ptp(costs, axis=0)
    scaled = (costs - costs.min(axis=0)) / np.where(spans > 0.0, spans, 1.0)
    return int(np.argmin(scaled.sum(axis=1)))
