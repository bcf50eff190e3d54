"""The Pareto front: what nothing else beats in one respect without being worse in another."""

from __future__ import annotations

from typing import Any


def pareto_front(points: Any) -> list[int]:
    """The positions of the points that no other is at least as low as everywhere and lower once.

    Args:
        points: numbers to minimise, (points, objectives).
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
