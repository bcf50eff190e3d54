"""The loop of one controller rank: breed, have it evaluated, tell the others.

Propulate's own loop blocks in sends, counts its budget in generations per rank and cannot stop or
resume; this one moves worker, messages and signals along in one place. The database deals out the
budget: exactly as many individuals as asked for, over all ranks.
"""

from __future__ import annotations

import random
import signal
import time
from types import FrameType
from typing import Any

from oialr_search.config import SearchFile
from oialr_search.evaluator import Evaluated, Evaluator
from oialr_search.evolution import Member, Population, random_numbers
from oialr_search.islands import POLL_S, STOP, Exchange, Place, Visitor
from oialr_search.progress import ProgressDisplay
from oialr_search.search import is_complete, stored_members
from oialr_search.storage import Proposal, Storage

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Controller:
    """The loop of one rank."""

    def __init__(
        self,
        *,
        place: Place,
        search_file: SearchFile,
        storage: Storage,
        search_id: int,
        launch_id: int,
        evaluator: Evaluator,
        exchange: Exchange,
        stop: StopRequest,
        display: ProgressDisplay | None,
        warnings: list[str],
    ) -> None:
        self._place = place
        self._search = search_file.search
        self._space = search_file.space
        self._storage = storage
        self._search_id = search_id
        self._launch_id = launch_id
        self._evaluator = evaluator
        self._exchange = exchange
        self._stop = stop
        self._display = display
        self._warnings = warnings
        names = tuple(h.name for h in self._space.hyperparameters)
        size = self._search.population_size or 2 * place.world_size
        self._population = Population(names, self._search, size)
        members, self._generation = stored_members(
            storage, search_id, place.island, place.island_rank, place.num_islands
        )
        for member in members:
            self._population.add(member)

    def run(self) -> bool:
        """Evaluate until the search is complete (True) or stopped (False)."""
        while not self._stop.requested() and self._start_next():
            evaluated = None
            while evaluated is None and not self._stop.requested():
                evaluated = self._evaluator.poll(POLL_S)
                self._take_in_messages()
                self._show()
            if evaluated is not None:
                self._pass_on(evaluated)
        self._evaluator.stop()
        if self._stop.requested():
            self._exchange.tell_all_to_stop()
        self._exchange.finish(self._take_in, meanwhile=self._show)
        if self._display is not None:
            self._display.close()
        return is_complete(self._storage, self._search_id, self._search.evaluations)

    def _start_next(self) -> bool:
        """Claim the next individual and start its evaluation; False when there is none."""
        offspring = self._population.breed(self._random_numbers("breeding"))
        claim = self._storage.claim(
            self._search_id,
            self._launch_id,
            Proposal(
                island=self._place.island,
                island_rank=self._place.island_rank,
                generation=self._generation,
                parents=offspring.parents,
                origin=offspring.origin,
                genes=offspring.genes,
                hyperparameters=self._space.decode(offspring.genes),
            ),
            self._search.evaluations,
        )
        if claim is None:
            return False
        if not claim.repeated:
            self._generation += 1
        self._evaluator.start(claim)
        return True

    def _pass_on(self, evaluated: Evaluated) -> None:
        """Take an evaluated individual into the population, tell the peers, perhaps migrate."""
        if evaluated.fitness is None:
            return
        individual = evaluated.claim.individual
        member = Member(
            individual_id=individual.id, genes=dict(individual.genes), fitness=evaluated.fitness
        )
        self._population.add(member)
        island = self._place.island
        self._exchange.tell_peers(Visitor(member=member, island=island))
        best = self._population.best()
        migrates = self._random_numbers("migration").random() < self._search.migration_probability
        if best is not None and migrates:
            self._exchange.migrate(Visitor(member=best, island=island))

    def _random_numbers(self, purpose: str) -> random.Random:
        place = self._place
        return random_numbers(
            self._search.seed, place.island, place.island_rank, self._generation, purpose
        )

    def _take_in_messages(self) -> None:
        for message in self._exchange.receive():
            self._take_in(message)

    def _take_in(self, message: Any) -> None:
        if message == STOP:
            self._stop.request()
            return
        assert isinstance(message, Visitor)
        new = self._population.add(message.member)
        # One rank keeps the island's book.
        if new and message.island != self._place.island and self._place.island_rank == 0:
            self._storage.record_migration(
                self._search_id, message.member.individual_id, message.island, self._place.island
            )

    def _show(self) -> None:
        if self._display is not None:
            while self._warnings:
                self._display.warn(self._warnings.pop(0))
            self._display.refresh()


class StopRequest:
    """Signals and the time limit only set a flag; the loop looks at it."""

    def __init__(self, time_limit_s: float | None) -> None:
        self._requested = False
        self._deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def request(self) -> None:
        """Stop as soon as the loop comes by."""
        self._requested = True

    def requested(self) -> bool:
        """Is it time to stop?"""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return self._requested or late

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
