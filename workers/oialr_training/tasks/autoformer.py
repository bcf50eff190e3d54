"""Autoformer (Wu et al. 2021) forecasting ETTm2 as a task (supplementary, Table 5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from oialr_training.config import Metric, TrainingConfig
from oialr_training.sections import AutoformerModel, ETTm2Data
from oialr_training.tasks.registry import register

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from oialr_training.data import Batches, Cut, Splits


@register
class AutoformerETTm2(TrainingConfig):
    """Autoformer forecasting ETTm2; the criterion is the mean squared error."""

    name = "autoformer_ettm2"
    metrics = (
        Metric(name="loss", label="loss"),
        Metric(name="mse", label="MSE"),
        Metric(name="mae", label="MAE"),
    )
    num_series: ClassVar[int] = 7
    seq_len: Annotated[int, Field(ge=3)] = 96
    """Time steps that the network sees."""
    label_len: Annotated[int, Field(ge=1)] = 48
    """Last of these steps, with which the decoder begins."""
    pred_len: Annotated[int, Field(ge=1)]
    """Time steps to forecast; the paper's are 96, 192, 336 and 720."""
    model: AutoformerModel
    data: ETTm2Data = ETTm2Data()
    result_epoch: Literal["last", "best"] = "best"
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = 3

    @model_validator(mode="after")
    def _enough_steps(self) -> Self:
        if self.label_len > self.seq_len:
            raise ValueError(
                f"`label_len <= seq_len` must hold, "
                f"got label_len={self.label_len}, seq_len={self.seq_len}"
            )
        for num_steps in (self.seq_len, self.label_len + self.pred_len):
            if not 1 <= int(self.model.factor * math.log(num_steps)) <= num_steps:
                raise ValueError(
                    f"1 <= int(`model.factor` · ln L) <= L must hold for L = {num_steps} steps, "
                    f"got model.factor={self.model.factor}"
                )
        return self

    def network(self, splits: Splits) -> nn.Module:
        """See `TrainingConfig.network`."""
        from oialr_training.data import ettm2
        from oialr_training.models.autoformer import Autoformer

        return Autoformer(
            self.model,
            num_series=self.num_series,
            num_time_features=ettm2.NUM_TIME_FEATURES,
            label_len=self.label_len,
            pred_len=self.pred_len,
        )

    def load_data(self, folder: Path | None) -> Cut:
        """See `TrainingConfig.load_data`."""
        from oialr_training.data import ettm2

        return ettm2.load(
            self.data,
            folder,
            seq_len=self.seq_len,
            label_len=self.label_len,
            pred_len=self.pred_len,
            validate_on_test=self.validation == "test",
        )

    @property
    def data_settings(self) -> object:
        """The windows' lengths, too."""
        return super().data_settings, self.seq_len, self.label_len, self.pred_len

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of forecasts and values (B, steps, series)."""
        from torch.nn.functional import mse_loss

        return mse_loss(outputs, targets)

    def measure(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """See `measure_forecast`."""
        from oialr_training.tasks.measures import measure_forecast

        return measure_forecast(model, batches)
