"""Several processes on one database: nothing is made twice, handed out twice or lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from storage_examples import launched_search, new_launch, started_evaluation

from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Status

NUM_PROCESSES = 4
PRELUDE = """
import json, sys
url, here, number, *ids = sys.argv[1:]
sys.path.insert(0, here)
from storage_examples import *
from oialr_search.storage import open_storage
from oialr_search.storage.records import Outcome, Status, StorageError
import oialr_search.storage.database
"""
START_TOGETHER = """
print("ready", flush=True)
sys.stdin.readline()
"""
CREATE = """
with open_storage(url, create=True) as storage:
    try:
        answer = storage.create_search(new_search(name=f"search{int(number) // 2}"))
    except StorageError as error:
        answer = str(error)
print(json.dumps(answer))
"""
CLAIM = """
search_id, launch_id, total = map(int, ids)
claims = []
with open_storage(url) as storage:
    for generation in range(1000):
        proposal = new_proposal(generation, island_rank=int(number))
        runner = new_runner(launch_id, world_rank=int(number))
        claim = storage.claim(search_id, proposal, total, runner)
        if claim is None:
            break
        individual_id = claim.individual.id
        evaluation_id = claim.evaluation.id
        storage.add_epoch(evaluation_id, epoch_record(1, loss=1.0))
        done = Outcome(status=Status.COMPLETED, fitness=float(individual_id))
        assert storage.finish_evaluation(evaluation_id, done)
        claims.append([individual_id, claim.evaluation.attempt, claim.remaining])
print(json.dumps(claims))
"""


def run_together(script: str, url: str, *ids: int) -> list[Any]:
    """Run a script in four processes that start at one signal; return what each printed last."""
    here = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PRELUDE + START_TOGETHER + script, url, here, str(number)]
            + [str(i) for i in ids],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(NUM_PROCESSES)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * NUM_PROCESSES
    return [json.loads(output) for output in outputs]


def test_exactly_the_total_is_evaluated(storage: Storage, database_url: str) -> None:
    total, num_lost = 30, 5
    search_id, launch_id = launched_search(storage, evaluations_total=total)
    lost = {started_evaluation(storage, search_id, launch_id, -1 - g)[0] for g in range(num_lost)}
    launch_id = storage.start_launch(new_launch(search_id))

    answers = run_together(CLAIM, database_url, search_id, launch_id, total)
    claims = [claim for answer in answers for claim in answer]

    assert len(claims) == total
    individuals = storage.individuals(search_id)
    assert sorted(claimed for claimed, *_ in claims) == [i.id for i in individuals]
    assert {claimed for claimed, attempt, _ in claims if attempt == 2} == lost
    assert sorted(remaining for *_, remaining in claims) == list(range(total))
    assert Counter(i.status for i in individuals) == {Status.COMPLETED: total}
    assert storage.progress(search_id).counts[Status.COMPLETED] == total
    assert [i.counts[Status.COMPLETED] for i in storage.islands(search_id)] == [total]
    assert storage.last_finish_number(search_id) == total
    assert all(i.fitness == i.id for i in individuals)
    finished = storage.finished_since(search_id)
    assert [e.finish_number for e in finished] == list(range(1, total + 1))
    assert {e.individual_id for e in finished} == {i.id for i in individuals}


def test_creating_together(database_url: str) -> None:
    answers = run_together(CREATE, database_url)

    for pair in (answers[:2], answers[2:]):
        assert sorted(isinstance(answer, int) for answer in pair) == [False, True]
        assert "exists: resume it or choose another name" in next(
            answer for answer in pair if isinstance(answer, str)
        )
    with open_storage(database_url) as storage:
        assert {search.name for search in storage.searches()} == {"search0", "search1"}
