"""The loop of one controller rank: breed, have it evaluated, tell the others.

Propulate's own loop blocks in sends, counts its budget in generations per rank and cannot stop or
resume; this one moves worker, messages and signals along in one place. The database deals out the
budget: exactly as many individuals as asked for, over all ranks.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from oialr_search.evaluation.evaluator import Evaluated, Evaluator
from oialr_search.evaluation.files import add_migration
from oialr_search.evaluation.outbox import Outbox
from oialr_search.launch.confirming import due
from oialr_search.launch.engines import (
    Engine,
    Knowledge,
    Member,
    feasible_offspring,
    random_numbers,
)
from oialr_search.launch.islands import (
    POLL_S,
    STOP,
    STOP_AT_ONCE,
    End,
    Exchange,
    Notice,
    Place,
    Remeasured,
    Visitor,
)
from oialr_search.launch.population import (
    AllIndividuals,
    ParetoPopulation,
    Population,
    evaluated_on_island,
)
from oialr_search.launch.progress import ProgressDisplay
from oialr_search.launch.repeating import Repeat, next_repeat, seed_of
from oialr_search.launch.resuming import have_ended
from oialr_search.launch.stop_request import StopRequest
from oialr_search.launch.stopping.judging import Judge
from oialr_search.launch.until import enough
from oialr_search.space.search_file import SearchFile
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    IndividualRecord,
    NewMigration,
    Proposal,
    StorageUnavailable,
)

ASK_AGAIN_S = 1.0


class Controller:
    """The loop of one rank."""

    def __init__(
        self,
        *,
        place: Place,
        search_file: SearchFile,
        storage: Storage,
        outbox: Outbox,
        search_id: int,
        launch_id: int,
        folder: Path,
        engine: Engine,
        evaluator: Evaluator,
        judge: Judge | None,
        exchange: Exchange,
        stop: StopRequest,
        display: ProgressDisplay | None,
        warnings: list[str],
    ) -> None:
        self._place = place
        self._search = search_file.search
        self._space = search_file.space
        self._constraints = search_file.constraints
        self._outbox = outbox
        self._search_id = search_id
        self._launch_id = launch_id
        self._folder = folder
        self._engine = engine
        self._evaluator = evaluator
        self._judge = judge
        self._judged: tuple[int, int] | None = None
        self._exchange = exchange
        self._stop = stop
        self._display = display
        self._warnings = warnings
        size = engine.population_size(place.world_size)
        several = search_file.search.objectives is not None
        self._population = ParetoPopulation(size) if several else Population(size)
        self._all_individuals = AllIndividuals(search_id, self._space.hyperparameters)
        self._read_breeders(storage)
        self._num_individuals = self._search.evaluations + storage.num_confirmations(search_id)
        self._generation = storage.next_generation(search_id, place.island, place.island_rank)
        self._ask_at = self._check_at = 0.0
        self._stop_words: set[str] = set()
        self._news: list[tuple[Member | None, random.Random]] = []
        self._remeasured = False
        self._end: End | None = None

    def run(self) -> bool:
        """Evaluate until the search is complete (True) or stopped (False)."""
        while self._evaluator.busy or self._end is None:
            if self._evaluator.busy:
                self._follow()
            elif not self._start_next():
                # Who has something to store is not done, and must hear of a wish to stop.
                idle = self._outbox.flush() or self._stop.at_once()
                self._exchange.report(idle=idle, unreliable=self._evaluator.unreliable)
                self._end_if_all_idle()
                time.sleep(POLL_S)
            self._look_around()
        self._evaluator.abandon()
        self._exchange.finish(self._take_in, meanwhile=self._show)
        self._empty_outbox()
        if self._display is not None:
            self._display.close()
        assert self._end is not None
        return self._end.complete

    def _start_next(self) -> bool:
        """Claim the next individual and start its evaluation; False when there is none now."""
        wait_for = max(self._ask_at, self._evaluator.pause_until)
        if self._stop.requested() or self._evaluator.unreliable or time.monotonic() < wait_for:
            return False
        runner = self._evaluator.runner(self._launch_id)
        claim = proposal = None
        with suppress(StorageUnavailable):
            if self._remeasured:
                self._outbox.ask(self._read_breeders)
                self._remeasured = False
            total = self._total()
            proposal = self._propose(total)
            go_on = None
            if self._judge is not None and total:  # a search that has had enough takes none up
                go_on = self._outbox.ask(self._judge.promising)
            claim = self._outbox.ask(
                lambda s: s.claim(self._search_id, proposal, total, runner, go_on)
            )
        if claim is None:
            # Another rank may yet lose an individual, which this one can evaluate again. Where it
            # was quicker to repeat one with this seed, there is something else to do.
            if proposal is None or proposal.repeat_of is None:
                self._ask_at = time.monotonic() + ASK_AGAIN_S
            return False
        if not claim.repeated:
            self._generation += 1
        self._exchange.report(idle=False)
        self._evaluator.start(claim)
        return True

    def _total(self) -> int:
        """As `total_of`. What this launch confirms is no matter: all else has ended by then."""
        if self._search.until is None:
            return self._num_individuals
        met = self._outbox.ask(lambda s: enough(s, self._search_id, self._search))
        return 0 if met else self._num_individuals

    def _propose(self, total: int) -> Proposal:
        """What this rank would evaluate next.

        Raises:
            StorageUnavailable: when the engine must ask the database, and that is away.
        """
        everyone, repeats = self._all_individuals, self._search.repeats
        if self._engine.needs_all_individuals or repeats is not None:
            self._outbox.ask(everyone.look)
        if repeats is not None and everyone.number < total:
            repeat = next_repeat(everyone.known, repeats, self._place.world_size)
            if repeat is not None:
                return self._again(repeat)
        knowledge = Knowledge(
            island=self._place.island,
            population=self._population.members,
            population_size=self._population.size,
            individuals=everyone.known,
            number=self._generation * self._place.world_size + self._place.world_rank,
            num_ranks=self._place.world_size,
        )
        offspring = feasible_offspring(
            self._engine,
            knowledge,
            self._random_numbers("breeding"),
            lambda genes: self._constraints.met(self._space.decode(genes)),
        )
        return Proposal(
            island=self._place.island,
            island_rank=self._place.island_rank,
            generation=self._generation,
            parents=offspring.parents,
            origin=offspring.origin,
            genes=offspring.genes,
            hyperparameters=self._space.decode(offspring.genes),
        )

    def _again(self, repeat: Repeat) -> Proposal:
        """The same individual with another seed."""
        first = self._outbox.ask(lambda s: s.individual(repeat.individual_id))
        assert first is not None
        assert first.evaluation is not None
        return Proposal(
            island=self._place.island,
            island_rank=self._place.island_rank,
            generation=self._generation,
            parents=[],
            origin="repeat",
            genes=first.genes,
            hyperparameters=first.hyperparameters,
            seed=seed_of(first.evaluation.seed, repeat.number),
            repeat_of=first.id,
        )

    def _read_breeders(self, storage: Storage) -> None:
        """Take in who breeds on the island by what is stored."""
        search_id, place, size = self._search_id, self._place, self._population.size
        if isinstance(self._population, ParetoPopulation):
            members = evaluated_on_island(storage, search_id, place.island, place.num_islands)
        else:
            stored = storage.breeders(search_id, place.island, place.num_islands, size)
            members = map(member_of, stored)
        for member in members:
            self._population.add(member)

    def _follow(self) -> None:
        """Move the evaluation along that runs."""
        if self._stop.at_once():
            self._evaluator.abandon()
            return
        if self._stop.requested():
            self._evaluator.ask_to_stop()
        evaluated = self._evaluator.poll(POLL_S)
        if evaluated is not None:
            self._take_up(evaluated)
        elif self._judge is not None:
            self._have_judged(self._judge)

    def _have_judged(self, judge: Judge) -> None:
        """Ask once after each epoch; while the database is away, nothing is stopped."""
        trained = self._evaluator.trained
        if trained is None or trained == self._judged:
            return
        self._judged = trained
        with suppress(StorageUnavailable):
            verdict = self._outbox.ask(lambda s: judge.verdict(s, trained[0]))
            if verdict is not None:
                self._evaluator.prune(verdict.reason, verdict.expected)

    def _look_around(self) -> None:
        """Take in messages, pass on wishes and warnings, store what waits, show progress."""
        for message in self._exchange.receive():
            self._take_in(message)
        self._pass_on_stop()
        self._evaluator.write_outcomes()
        if self._outbox.flush():
            self._tell_news()
        if self._display is None:
            while self._warnings:
                self._exchange.tell_first(Notice(text=self._warnings.pop(0)))
        self._show()

    def _pass_on_stop(self) -> None:
        """A signal may have reached this rank only."""
        word = STOP_AT_ONCE if self._stop.at_once() else STOP if self._stop.requested() else None
        if word is not None and word not in self._stop_words:
            self._stop_words.add(word)
            self._exchange.tell_all(word)

    def _end_if_all_idle(self) -> None:
        """World rank 0 ends the launch when nobody works and nothing is left that anyone could."""
        now = time.monotonic()
        if self._place.world_rank != 0 or not self._exchange.all_idle() or now < self._check_at:
            return
        self._check_at = now + ASK_AGAIN_S
        complete = False
        with suppress(StorageUnavailable):
            complete = self._outbox.ask(self._is_complete)
        if complete or self._stop.requested() or self._exchange.all_unreliable():
            self._end = End(complete=complete)
            self._exchange.tell_all(self._end)

    def _is_complete(self, storage: Storage) -> bool:
        """Is nothing left to evaluate? When nothing is, the best are queued to be confirmed."""
        if not have_ended(storage, self._search_id, self._search):
            return False
        confirm = self._search.confirm
        repeats = due(storage, self._search_id, confirm) if confirm else []
        if repeats:
            storage.queue_repeats(self._search_id, repeats)
            number = len({individual_id for individual_id, _ in repeats})
            if self._display is not None:
                self._display.tell(f"confirming the best {number} with {len(repeats)} trainings")
        return not repeats

    def _empty_outbox(self) -> None:
        """Wait for the database, but not for ever: what is not stored is in the folders."""
        while not self._outbox.flush() and not self._stop.at_once():
            time.sleep(POLL_S)

    def _take_up(self, evaluated: Evaluated) -> None:
        """Take an evaluated individual into the population."""
        if evaluated.fitness is None:
            return
        individual = evaluated.claim.individual
        if individual.repeat_of is not None:
            self._news.append((None, self._random_numbers("migration")))
            return
        member = member_of(individual, evaluated)
        self._population.add(member)
        self._news.append((member, self._random_numbers("migration")))

    def _tell_news(self) -> None:
        """Tell the peers, perhaps migrate: only now, when who accepts it finds it stored."""
        island = self._place.island
        for member, rng in self._news:
            if member is None:
                self._remeasured = True
                self._exchange.tell_all(Remeasured())
                continue
            self._exchange.tell_peers(Visitor(member=member, island=island))
            if rng.random() < self._search.migration_probability:
                emissary = self._population.emissary(rng)
                assert emissary is not None
                self._exchange.migrate(Visitor(member=emissary, island=island))
        self._news.clear()

    def _random_numbers(self, purpose: str) -> random.Random:
        place = self._place
        return random_numbers(
            self._search.seed, place.island, place.island_rank, self._generation, purpose
        )

    def _take_in(self, message: Any) -> None:
        if message in (STOP, STOP_AT_ONCE):
            self._stop_words.add(message)  # whoever sent it has told all
            self._stop.request(at_once=message == STOP_AT_ONCE)
        elif isinstance(message, End):
            self._end = message
        elif isinstance(message, Notice):
            self._warnings.append(message.text)
        elif isinstance(message, Visitor):
            self._welcome(message)
        elif isinstance(message, Remeasured):
            self._remeasured = True

    def _welcome(self, visitor: Visitor) -> None:
        member, home = visitor.member, visitor.island
        new = self._population.add(member)
        # One rank keeps the island's book.
        if new and home != self._place.island and self._place.island_rank == 0:
            migration = NewMigration(
                search_id=self._search_id,
                individual_id=member.individual_id,
                source_island=home,
                target_island=self._place.island,
            )
            try:
                add_migration(self._folder, migration)
            except OSError as error:
                self._warnings.append(f"cannot write to {self._folder}: {error.strerror}")
            self._outbox.put(lambda s: s.record_migration(migration))

    def _show(self) -> None:
        if self._display is not None:
            while self._warnings:
                self._display.warn(self._warnings.pop(0))
            self._display.refresh()


def member_of(individual: IndividualRecord, evaluated: Evaluated | None = None) -> Member:
    """An evaluated individual as islands exchange it."""
    measured = evaluated or individual
    assert measured.fitness is not None
    return Member(
        individual_id=individual.id,
        genes=dict(individual.genes),
        fitness=measured.fitness,
        violation=measured.violation,
        objectives=tuple(measured.objectives),
        num_seeds=max(individual.num_seeds, 1),
    )
