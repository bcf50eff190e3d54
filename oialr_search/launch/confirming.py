"""The end of a search: its best are measured with further seeds, beyond its evaluations.

What is to be measured is queued at once, in one transaction: so any rank takes part, and a launch
that is killed meanwhile is gone on with. Evaluations that are added later are followed by a round
of their own.
"""

from __future__ import annotations

from collections import Counter

from oialr_search.launch.repeating import seed_of
from oialr_search.space.repeats import ConfirmSettings
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Status


def due(storage: Storage, search_id: int, settings: ConfirmSettings) -> list[tuple[int, int]]:
    """Individuals and training seeds that are still to be queued, once all evaluations ended."""
    begun = Counter(i.repeat_of for i in storage.confirmations(search_id) if i.repeat_of)
    best = storage.individuals(
        search_id, status=Status.COMPLETED, limit=settings.top + len(begun), order="fitness"
    )
    others = [individual.id for individual in best if individual.id not in begun]
    chosen = [*begun, *others][: max(settings.top, len(begun))]
    queued = []
    for individual_id in chosen:
        (attempt, *_) = storage.evaluations(individual_id)
        repeated = len(storage.repeats(search_id, individual_id))
        queued += [
            (individual_id, seed_of(attempt.seed, repeated + number))
            for number in range(1, settings.seeds - begun[individual_id] + 1)
        ]
    return queued
