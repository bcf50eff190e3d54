"""OIALR: orthogonality-informed adaptive low-rank training, for any PyTorch training loop.

After Coquelin et al., "Harnessing Orthogonality to Train Low-Rank Neural Networks": a weight is
held as U Σ Vᵀ, only the small Σ trains, and now and then an SVD of Σ refreshes the bases and cuts
the inner rank. Linear layers, convolutions and `nn.MultiheadAttention` take part.

    oialr = OIALR(model, optimizer, OIALRSettings(
        delay_steps=1000, update_frequency=500, cutoff_fraction=0.1))
    for inputs, targets in loader:
        optimizer.zero_grad()
        criterion(model(inputs), targets).backward()
        optimizer.step()
        for update in oialr.step():
            print(update.layer, update.inner_rank, update.stability)

To save, keep the `state_dict()` of all three; to continue, build all three afresh and load
`oialr`'s first, then the model's and the optimiser's.
"""

from oialr.basis_update import BasisUpdate
from oialr.errors import NotFiniteError, OIALRError
from oialr.layers import (
    LowRankConv,
    LowRankLayer,
    LowRankLinear,
    LowRankMultiheadAttention,
    LowRankWeight,
    StackedLowRankLinear,
)
from oialr.metrics import (
    ParameterCounts,
    mixing_similarity,
    relative_mixing_similarity,
    stability,
    weight_stability,
)
from oialr.observation import Observation, Observer
from oialr.oialr import OIALR
from oialr.plain_modules import export
from oialr.products import low_rank_linear
from oialr.settings import OIALRSettings

__all__ = [
    "OIALR",
    "BasisUpdate",
    "LowRankConv",
    "LowRankLayer",
    "LowRankLinear",
    "LowRankMultiheadAttention",
    "LowRankWeight",
    "NotFiniteError",
    "OIALRError",
    "OIALRSettings",
    "Observation",
    "Observer",
    "ParameterCounts",
    "StackedLowRankLinear",
    "export",
    "low_rank_linear",
    "mixing_similarity",
    "relative_mixing_similarity",
    "stability",
    "weight_stability",
]
