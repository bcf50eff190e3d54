"""PostgreSQL plans a statement once for all values, and still finds by index what is rare."""

from __future__ import annotations

from collections.abc import Callable

from postgres_server import PostgresServer
from storage_examples import launched_search, new_proposal, new_runner

from oialr_search.storage import open_storage
from oialr_search.storage.records import Outcome, Status

STORED = 200
CALLS = 20
READ = "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_user_tables WHERE relname = ANY("
COMPLETED = Outcome(status=Status.COMPLETED, fitness=0.5)


def test_a_claim_reads_the_same_few_rows_whatever_is_stored(
    postgres_server: tuple[PostgresServer, list[str]], new_postgres_database: Callable[[], str]
) -> None:
    url = new_postgres_database()

    def rows_read() -> int:
        tables = "'{individuals,evaluations,launches,migrations}'"
        [[rows]] = postgres_server[0].execute(f"{READ}{tables})", url)
        return int(rows)

    with open_storage(url, create=True) as storage:
        search_id, launch_id = launched_search(storage)

    def evaluate(generations: range) -> None:
        with open_storage(url) as storage:  # which it closes: only then what it read is counted
            for generation in generations:
                runner = new_runner(launch_id, world_rank=0)
                claim = storage.claim(search_id, new_proposal(generation), 10**6, runner)
                assert claim is not None
                storage.progress(search_id)
                storage.finish_evaluation(claim.evaluation.id, COMPLETED)

    evaluate(range(STORED))
    postgres_server[0].execute("ANALYZE", url)
    before = rows_read()
    evaluate(range(STORED, STORED + CALLS))
    assert rows_read() - before < 30 * CALLS
