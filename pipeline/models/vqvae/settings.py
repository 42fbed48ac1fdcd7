"""The settings of the vector-quantised autoencoder."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.layers.optimizers import OptimizerSettings
from pipeline.layers.similarity import ImageLoss
from pipeline.params import Section


class VqvaeConfig(Section):
    """``num_codes`` vectors of ``code_size`` values in the codebook; ``width`` channels of the networks.

    Each of the ``halvings`` halves the sides of the maps: an image of 28 x 28 pixels has 7 x 7 codes.
    """

    num_codes: int = Field(64, ge=2, le=65_536)
    code_size: int = Field(16, ge=1, le=1024)
    halvings: int = Field(2, ge=1, le=6)
    width: int = Field(32, ge=8, le=1024)
    num_blocks: int = Field(1, ge=0, le=16)  # residual blocks in the encoder and in the decoder
    reconstruction_loss: ImageLoss = "mse"
    huber_delta: float = Field(0.1, gt=0)
    commitment: float = Field(0.25, ge=0)  # weight of the distance between the encodings and their codes
    codebook_decay: float = Field(0.97, ge=0.9, lt=1)  # of the moving averages that the codes are
    revive_below: float = Field(
        0.03, ge=0, lt=1
    )  # a code used less, as a fraction of the mean use, is replaced
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=2e-3)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.refuse({}, {"huber_delta": "reconstruction_loss: huber"})
        return self
