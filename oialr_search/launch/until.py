"""When a search has had enough: `search.until`, by what the database knows and nothing else.

Then nothing new is proposed. What was begun, lost or queued is still evaluated, and may make the
search go on: the rules are asked before each claim.
"""

from __future__ import annotations

from oialr_search.space.search_file import SearchSettings
from oialr_search.storage.database import Storage
from oialr_search.surrogate.outlook import outlook


def total_of(storage: Storage, search_id: int, search: SearchSettings) -> int:
    """Individuals that the search may have: none more than there are, when it has had enough.

    What confirmed the best of fewer evaluations comes beside them.
    """
    if enough(storage, search_id, search):
        return 0
    return search.evaluations + storage.num_confirmations(search_id)


def enough(storage: Storage, search_id: int, search: SearchSettings) -> str | None:
    """Which rule of `search.until` is met, and how; None: no one is."""
    until = search.until
    if until is None:
        return None
    if until.hours is not None and (spent := hours_of(storage, search_id)) >= until.hours:
        return f"its launches took {spent:.3g} hours, `search.until.hours` = {until.hours:g}"
    if until.no_improvement_in is not None:
        since = evaluations_since_the_best(storage, search_id)
        if since >= until.no_improvement_in:
            return (
                f"nothing better in {since} evaluations, "
                f"`search.until.no_improvement_in` = {until.no_improvement_in}"
            )
    if until.regret_below is not None:
        more = outlook(storage, search_id)
        if more is not None and more.high < until.regret_below:
            return (
                f"three of four searches would gain less than {more.high:.2g} in another "
                f"{more.evaluations} evaluations, `search.until.regret_below` = "
                f"{until.regret_below:g}"
            )
    return None


def hours_of(storage: Storage, search_id: int) -> float:
    """What all launches took together; one that runs or was killed, to its latest ending."""
    seconds = 0.0
    for launch in storage.launches(search_id):
        latest = (at for at, _ in storage.last_finishes(launch.id, 1))
        ended_at = launch.ended_at or next(latest, launch.started_at)
        seconds += max((ended_at - launch.started_at).total_seconds(), 0.0)
    return seconds / 3600.0


def evaluations_since_the_best(storage: Storage, search_id: int) -> int:
    """How many evaluations have ended since that of the best; none, while there is no best."""
    best_id = storage.progress(search_id).best_individual_id
    best = None if best_id is None else storage.individual(best_id)
    if best is None or best.evaluation is None or best.evaluation.finish_number is None:
        return 0
    return storage.last_finish_number(search_id) - best.evaluation.finish_number
