"""What a result says is kept, however the evaluation ended."""

from __future__ import annotations

from pathlib import Path

from oialr_search.evaluation.files import OUTCOME_FILE, Ending, read_ending, write_record
from oialr_search.evaluation.outcomes import outcome_of
from oialr_training.protocol import Failed, Resources, write_result

from .scripted import completed

TASK = "minivit_digits"
USED = Resources(cpu_energy_j=0.5, peak_host_memory_bytes=2**40, samples_per_s=1e5)


def test_what_was_used_is_kept_however_it_ended(tmp_path: Path) -> None:
    failed = Failed(reason="r", at=1.0, cause="training", resources=USED)
    for result in (completed(resources=USED), failed):
        outcome = outcome_of(result, "validation_loss", TASK)
        assert outcome.resources == outcome_of(result, "validation_top1", TASK).resources == USED
        folder = tmp_path / type(result).__name__
        folder.mkdir()
        write_result(folder, result)
        read = read_ending(folder, "validation_loss", TASK, failures=0, retries=1)
        write_record(folder / OUTCOME_FILE, Ending(outcome=outcome))
        assert read == read_ending(folder, "validation_loss", TASK, failures=0, retries=1)
        assert read
        assert read.outcome.resources == USED
