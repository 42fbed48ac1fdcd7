"""The settings of the segmentation network."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.layers.optimizers import OptimizerSettings
from pipeline.params import Section


class UnetConfig(Section):
    """``width``: channels of the patches' maps; they double with each of the ``depth`` halvings.

    The network computes on maps of at most 1 / ``patch_size`` of the images' height and width.
    """

    patch_size: int = Field(1, ge=1, le=16)  # pixels; their values become channels
    width: int = Field(16, ge=8, le=256)
    max_width: int = Field(4096, ge=8, le=4096)  # channels of any map
    depth: int = Field(3, ge=1, le=6)
    # Residual blocks on each level whose maps have at most a quarter of the image's sides.
    num_blocks: int = Field(0, ge=0, le=16)  # of the encoder
    decoder_blocks: int = Field(0, ge=0, le=16)
    skips: Literal["concatenate", "add"] = "concatenate"  # how the decoder reads the encoder's maps
    normalisation: Literal["weight", "group"] = "weight"  # of filters; of groups of channels
    loss: Literal["cross_entropy", "dice", "focal", "sum"] = "cross_entropy"  # sum: of the first two
    focal_gamma: float = Field(2.0, ge=1, le=10)  # the larger, the less do easy pixels count
    class_weights: Literal["none", "auto"] = "none"  # auto: 1 / frequency; all classes then count the same
    flip: float = Field(0.0, ge=0, le=1)  # probability that an example is mirrored, left to right
    crop: int = Field(0, ge=0, le=64)  # shift by up to so many whole pixels, after padding by reflection
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=2e-3)

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        needed = {
            "focal_gamma": "loss: focal",
            "class_weights": "loss: cross_entropy or focal or sum",
        }
        self.refuse({}, needed)
        return self
