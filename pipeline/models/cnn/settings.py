"""The settings of the classifier."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.layers.optimizers import OptimizerSettings
from pipeline.layers.private import PrivacySettings
from pipeline.params import Section, Width


class CnnConfig(Section):
    """``channels``: of each convolution (article), stage of blocks (residual) or pair of convolutions (fast).

    Settings of the augmentation are for the training images, each by random numbers; 0: off.
    """

    architecture: Literal["article", "residual", "fast"] = "article"
    channels: tuple[Width, ...] = Field((32, 64, 64), min_length=1)
    dense: tuple[Width, ...] = Field((64,), min_length=1)  # article: one dense layer each
    depth: int = Field(2, ge=1, le=100)  # residual: blocks in each stage
    normalisation: Literal["none", "group", "weight"] = "none"  # of groups of channels; of filters
    dropout: float = Field(0.0, ge=0, lt=1)  # before each dense layer
    loss: Literal["cross_entropy", "mse", "huber", "focal"] = "cross_entropy"
    huber_delta: float = Field(0.5, gt=0, le=1)  # errors of a probability above it count linearly
    focal_gamma: float = Field(2.0, ge=1, le=10)  # the larger, the less do easy images count
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "auto"] = "none"  # auto: 1 / frequency; all classes then count the same
    flip: float = Field(0.0, ge=0, le=1)  # probability that an image is mirrored, left to right
    crop: int = Field(0, ge=0, le=64)  # shift by up to so many whole pixels, after padding by reflection
    rotate: float = Field(0.0, ge=0, le=180)  # largest angle, in degrees
    shift: float = Field(0.0, ge=0, le=0.5)  # largest shift, as a fraction of the side
    zoom: float = Field(0.0, ge=0, le=0.5)  # sides are scaled by 1 +- zoom
    color_jitter: float = Field(0.0, ge=0, le=1)  # brightness, contrast, saturation are scaled by 1 +- this
    erase: float = Field(0.0, ge=0, le=1)  # probability that a rectangle is erased
    mixup: float = Field(0.0, ge=0, le=10)  # a of the Beta(a, a) distribution of the share of an image
    cutmix: float = Field(0.0, ge=0, le=10)  # the same; with both, each image is mixed in one of the two ways
    test_time_flip: bool = False  # average the answers for an image and its mirror image
    calibrate: bool = False  # after training, divide the logits by a temperature
    privacy: PrivacySettings | None = None
    optimizer: OptimizerSettings = OptimizerSettings()

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        """Refuse settings that have no effect or contradict each other, all at once."""
        easy = "label_smoothing keeps easy images in the loss, which loss: focal leaves out"
        unseen = "test_time_flip needs flip: the network has never seen mirrored images"
        private = self.privacy is not None
        wrong = {
            "crop and shift both move the image": bool(self.crop and self.shift),
            unseen: self.test_time_flip and not self.flip,
            "privacy: mixup and cutmix use an image several times": private and (self.mixup or self.cutmix),
            "privacy: class_weights: auto counts without noise": private and self.class_weights == "auto",
            "privacy: architecture: fast fits its filters without noise": private
            and self.architecture == "fast",
            "privacy: calibrate fits a temperature without noise": private and self.calibrate,
            easy: bool(self.label_smoothing) and self.loss == "focal",
        }
        needed = {
            "dense": "architecture: article",
            "depth": "architecture: residual",
            "huber_delta": "loss: huber",
            "focal_gamma": "loss: focal",
        }
        self.refuse(wrong, needed)
        return self
