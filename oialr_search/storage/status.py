"""How far an individual has come; known without pydantic and SQLAlchemy."""

from enum import StrEnum


class Status(StrEnum):
    """How far an individual or one of its evaluations has come."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    LOST = "lost"


UNFINISHED = (Status.QUEUED, Status.RUNNING, Status.LOST)
"""Of individuals that run or wait to."""
