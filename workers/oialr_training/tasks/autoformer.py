"""Autoformer (Wu et al. 2021) forecasting ETTm2 as a task (supplementary, Table 5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from oialr_training.config import Metric, TrainingConfig
from oialr_training.tasks.registry import register
from oialr_training.validation import Config

if TYPE_CHECKING:
    from oialr_training.tasks.components import Components


class AutoformerModel(Config):
    """Autoformer (Wu et al. 2021) of the supplementary's Table 5."""

    d_model: Annotated[int, Field(gt=0)]
    """Width of the hidden states."""
    d_ff: Annotated[int, Field(gt=0)]
    """Width of the feed-forward layers."""
    num_heads: Annotated[int, Field(gt=0)]
    """Must divide `d_model`; changes no result, as all heads share their delays and weights."""
    encoder_layers: Annotated[int, Field(gt=0)]
    decoder_layers: Annotated[int, Field(gt=0)]
    factor: Annotated[int, Field(gt=0, le=100)] = 1
    """c: the attention takes the int(c · ln L) strongest delays of L time steps."""
    moving_average: Annotated[int, Field(gt=0)] = 25
    """Time steps over which the trend is averaged; odd."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.d_model % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `d_model`, "
                f"got num_heads={self.num_heads}, d_model={self.d_model}"
            )
        if self.moving_average % 2 == 0:
            raise ValueError(f"`moving_average` must be odd, got {self.moving_average}")
        return self


class ETTm2Data(Config):
    """ETTm2 (Zhou et al. 2021): its standard split, cut into overlapping windows."""

    train_subset: Annotated[int, Field(ge=1)] | None = None
    """Use so many training windows only, evenly spaced; null: all."""
    validation_subset: Annotated[int, Field(ge=1)] | None = None
    """Use so many validation windows only, evenly spaced; null: all."""
    test_subset: Annotated[int, Field(ge=1)] | None = None
    """Use so many test windows only, evenly spaced; null: all."""


@register
class AutoformerETTm2(TrainingConfig):
    """Autoformer forecasting ETTm2; the criterion is the mean squared error."""

    name = "autoformer_ettm2"
    metrics = (
        Metric(name="loss", label="loss"),
        Metric(name="mse", label="MSE"),
        Metric(name="mae", label="MAE"),
    )
    num_outputs = 7
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

    def components(self) -> Components:
        """See `TrainingConfig.components`."""
        from torch import nn

        from oialr_training.data import ettm2
        from oialr_training.models.autoformer import Autoformer
        from oialr_training.tasks.components import Components, measure_forecast

        lengths = {
            "seq_len": self.seq_len,
            "label_len": self.label_len,
            "pred_len": self.pred_len,
        }
        return Components(
            build_model=lambda: Autoformer(
                self.model,
                num_series=self.num_outputs,
                num_time_features=ettm2.NUM_TIME_FEATURES,
                label_len=self.label_len,
                pred_len=self.pred_len,
            ),
            load_data=lambda folder: ettm2.load(
                self.data, folder, **lengths, validate_on_test=self.validation == "test"
            ),
            data_settings=(self.task, self.data, self.validation, *lengths.values()),
            criterion=nn.MSELoss(),
            measure=measure_forecast,
        )
