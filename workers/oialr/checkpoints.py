"""What the callbacks for other people's training loops keep of a training, and go on from."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from oialr.errors import OIALRError
from oialr.oialr import OIALR
from oialr.settings import OIALRSettings


class CallbackTraining:
    """OIALR in a loop that loads a checkpoint before it asks: the loop keeps the dense network.

    So a checkpoint is in two forms. The loop's own is that of the network without OIALR, which
    `export` makes and anybody can load; what OIALR goes on from is `state_dict()`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, settings: OIALRSettings) -> None:
        """Begin with a dense model, also to go on from a state by `load_state_dict`."""
        self.model = model
        self.optimizer = optimizer
        self.dense_optimizer_state = {**optimizer.state_dict(), "state": {}}
        """For the loop to load into the optimiser of a dense model before OIALR has its turn."""
        self.oialr = OIALR(model, optimizer, settings)

    def state_dict(self) -> dict[str, Any]:
        """The low-rank model, the optimiser and OIALR."""
        return {
            "oialr": self.oialr.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.oialr.load_state_dict(state["oialr"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def refuse_several_processes(num_processes: int) -> None:
    """Refuse loops that wrap the model in DistributedDataParallel, and keep the wrapper."""
    if num_processes > 1:
        raise OIALRError(
            f"OIALRCallback trains in one process, this training has {num_processes}: a loop of"
            " your own can wrap the model anew after updates (docs/recipes.md)"
        )
