"""How workers are started, `worker:` of the search file: of the machine, not of the search."""

from __future__ import annotations

import shlex
from typing import Annotated

from pydantic import Field, field_validator

from oialr_training.validation import Config


class WorkerConfig(Config):
    """The environment of the trainings; by default that of `oialr-search` itself."""

    python: str | None = None
    """The Python that trains, with `oialr-training` installed; null: the one that searches."""
    command: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """What stands before it: `srun --overlap -n1`, `apptainer exec image.sif`. It passes on
    standard input and output."""

    @field_validator("command", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        try:
            return shlex.split(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"`command` cannot be split: {error}") from None

    @property
    def is_own(self) -> bool:
        """Are the workers started as ever, by this Python?"""
        return self == WorkerConfig()

    @property
    def shown(self) -> str:
        """What starts them, for people."""
        return shlex.join([*self.command, self.python or "python"])
