"""Small programs as evaluations, in the shell: that starts in a millisecond."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oialr_training.command_trainer import CommandTrainer
from oialr_training.protocol import Completed, Epoch, Evaluate, Event, Started, Stop
from oialr_training.tasks import validate_training

Said = list[Event]


class Programs:
    """Evaluations of one individual, in a folder; attempts are counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "individual-000001"
        self.script = folder / "train.sh"
        self.attempts = 0
        self.stops: list[Stop] = []
        self.events: Said = []
        self.trainer = CommandTrainer(folder / "data")

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def epochs(self) -> dict[int, Mapping[str, float]]:
        """The metrics of the epochs of the last attempt."""
        return {event.epoch: event.metrics for event in self.events if isinstance(event, Epoch)}

    @property
    def resumed_epoch(self) -> int:
        starts = [event for event in self.events if isinstance(event, Started)]
        return starts[-1].resumed_epoch

    def run(
        self,
        text: str,
        *,
        then: Callable[[Event], None] = lambda _: None,
        arguments: str = "",
        **config: Any,
    ) -> Completed:
        """Evaluate a shell script; `report JSON` in it adds to the report."""
        self.script.write_text(f'report() {{ echo "$1" >> "$OIALR_REPORT"; }}\n{text}\n')
        self.attempts += 1
        attempt = self.folder / f"attempt-{self.attempts}"
        attempt.mkdir(parents=True)
        content = {
            "command": f"sh {self.script} {arguments}",
            "metrics": {"loss": "lower"},
            "num_threads": 2,
            **config,
        }
        self.events, self.trainer = [], CommandTrainer(self.folder.parent / "data")

        def report(event: Event) -> None:
            self.events.append(event)
            then(event)

        self.request = Evaluate(
            config={}, folder=str(attempt), state_file=str(self.folder / "state.pt")
        )
        training: Any = validate_training(content, "test")
        self.trainer.prepare(training)
        return self.trainer.evaluate(training, self.request, report, self.stops)
