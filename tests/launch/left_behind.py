"""A search as a killed launch leaves it: its database, and the folders of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from oialr_search.evaluation.files import OUTCOME_FILE, Ending, write_claim, write_record
from oialr_search.launch.resuming import start_search
from oialr_search.space.search_file import SearchFile, load_search
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Claim, EvaluationRecord, Proposal, Runner
from oialr_training.protocol import (
    EVENTS_FILE,
    Completed,
    Event,
    Failed,
    Observation,
    RankUpdate,
    encode,
    write_result,
)

from ..conftest import DIGITS
from ..evaluation.scripted import epoch, started

UPDATE = RankUpdate(step=4, layer="head", inner_rank=3, full_inner_rank=8, stability=0.5)
OBSERVED = Observation(
    step=4,
    earlier_step=2,
    layer="head",
    stability=0.5,
    mixing_similarity=0.25,
    relative_mixing_similarity=0.125,
)
TRAINED: Sequence[Event] = (
    started(resumed_epoch=1, device="cuda:GPU-7"),
    replace(epoch(1), rank_updates=[UPDATE], observations=[OBSERVED]),
    epoch(2),
)


@cache
def search_file(**settings: Any) -> SearchFile:
    """The digits, with other `search:` settings."""
    return load_search(DIGITS, (), settings)


def failed(cause: Any, reason: str = "it broke") -> Failed:
    return Failed(reason=reason, at=1_700_000_100.0, cause=cause)


class LeftBehind:
    """A launch of two ranks, and what its evaluations write before it is killed."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.storage = storage
        self.folder = folder
        folder.mkdir()
        self.search_id, self.launch_id = self.launch()

    def launch(self, **settings: Any) -> tuple[int, int]:
        """Begin a launch; earlier ones are gone."""
        return start_search(self.storage, search_file(**settings), 2, self.folder)

    def proposal(self, generation: int = 0, island: int = 0) -> Proposal:
        """In the middle of the space."""
        space = search_file().space
        genes = {h.name: 0.5 for h in space.hyperparameters}
        return Proposal(
            island=island,
            island_rank=0,
            generation=generation,
            parents=[],
            origin="random",
            genes=genes,
            hyperparameters=space.decode(genes),
        )

    def claim(
        self, generation: int = 0, island: int = 0, proposal: Proposal | None = None
    ) -> Claim:
        """Deal out what was lost, else a new individual."""
        proposal = proposal or self.proposal(generation, island)
        launches = self.storage.launches(self.search_id)
        runner = Runner(
            launch_id=launches[-1].id,
            world_rank=proposal.generation,
            hostname="node1",
            device="cpu",
            seed=42,
            num_threads=1,
            search_folder=str(self.folder),
        )
        claim = self.storage.claim(self.search_id, proposal, 20, runner)
        assert claim
        write_claim(claim)
        return claim

    def leave(
        self,
        *events: Event,
        result: Completed | Failed | None = None,
        ending: Ending | None = None,
        **claimed: Any,
    ) -> EvaluationRecord:
        """An evaluation of which the files say this, and the database nothing."""
        evaluation = self.claim(**claimed).evaluation
        folder = Path(evaluation.folder)
        (folder / EVENTS_FILE).write_bytes(b"".join(map(encode, events)))
        (folder / "log.txt").write_text("its log\n")
        if result is not None:
            write_result(folder, result)
        if ending is not None:
            write_record(folder / OUTCOME_FILE, ending)
        return evaluation

    def latest(self, evaluation: EvaluationRecord) -> EvaluationRecord:
        """What the database says of an evaluation now."""
        attempts = self.storage.evaluations(evaluation.individual_id)
        return next(attempt for attempt in attempts if attempt.id == evaluation.id)

    def status_of(self, evaluation: EvaluationRecord) -> tuple[str, str]:
        """Its status, and its individual's."""
        individual = self.storage.individual(evaluation.individual_id)
        assert individual
        return self.latest(evaluation).status.value, individual.status.value
