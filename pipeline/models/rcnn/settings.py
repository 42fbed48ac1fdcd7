"""The settings of the recurrent convolutional network."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.layers.optimizers import OptimizerSettings
from pipeline.params import Section


class RcnnConfig(Section):
    """It predicts the frames after the first ``input_frames``, or classifies whole clips.

    The cells compute on maps of 1 / ``patch_size`` of the frames' height and width.
    """

    task: Literal["forecast", "classify"] = "forecast"
    cell: Literal["lstm", "gru"] = "lstm"
    width: int = Field(32, ge=1, le=1024)  # channels of the hidden maps of each layer
    num_layers: int = Field(2, ge=1, le=16)
    kernel_size: int = Field(3, ge=1, le=31)  # odd
    patch_size: int = Field(4, ge=1, le=64)  # pixels; their values become channels
    input_frames: int = Field(0, ge=0)  # 0: half of the clip
    loss: Literal["mse", "bce", "l1"] = "bce"  # of the predicted frames
    # Of forecasts: adds so many times 1 - SSIM (structural similarity) of each frame to the loss. This makes
    # them sharper, and black where nothing is.
    ssim_weight: float = Field(0.0, ge=0)
    # Scheduled sampling: the probability that the network continues from the true frame, and not from its own
    # prediction, falls from 1 to 0 in these steps. 0: it always continues from its prediction.
    teacher_forcing_steps: int = Field(0, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)  # of the hidden maps, from frame to frame
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=2e-3)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = ("input_frames", "loss", "ssim_weight", "teacher_forcing_steps")
        needed = dict.fromkeys(names, "task: forecast")
        self.refuse({"kernel_size must be odd": self.kernel_size % 2 == 0}, needed)
        return self
