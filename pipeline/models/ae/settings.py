"""The settings of the autoencoder."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.layers.damage import Restoration
from pipeline.layers.mixture import MAX_SIZE
from pipeline.layers.optimizers import OptimizerSettings
from pipeline.layers.private import PrivacySettings
from pipeline.layers.similarity import ImageLoss
from pipeline.params import Section, Width


class AeConfig(Section):
    """Each image is trained for one of the ``objectives``, chosen at random.

    ``width``: channels of the convolutional network and of the U-Net at full resolution. ``dense``: the
    hidden layers of the dense network. ``prior``: for generation, a normal distribution is fitted to the
    codes of each class after the training, with one covariance for all classes, or a mixture. A U-Net has no
    code, and needs neither. With none the model does not generate.
    """

    architecture: Literal["convolutional", "dense", "unet"] = "convolutional"
    objectives: tuple[Literal["reconstruct"] | Restoration, ...] = Field(("reconstruct",), min_length=1)
    code_size: int = Field(16, ge=1, le=4096)
    dense: tuple[Width, ...] = (64, 32)
    width: int = Field(32, ge=8, le=1024)
    reconstruction_loss: ImageLoss = "mse"
    huber_delta: float = Field(0.1, gt=0)
    input_noise: float = Field(0.0, ge=0)  # standard deviation, with images in [0, 1]
    penalty: Literal["none", "contractive", "sparse"] = "none"  # of the codes
    penalty_weight: float = Field(1e-3, gt=0)
    prior: Literal["normal", "mixture", "none"] = "normal"
    num_components: int = Field(10, ge=1, le=1000)  # of the mixture of each class
    temperature: float = Field(1.0, gt=0, le=2)  # scales the deviations of the codes that are drawn
    privacy: PrivacySettings | None = None
    held_out_class: int | None = Field(None, ge=0)  # its images are not learned from, to measure anomalies
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=2e-3)

    @property
    def restorations(self) -> tuple[str, ...]:
        """The damages that it learns to repair."""
        noisy = ("denoise",) if self.input_noise else ()
        return tuple(dict.fromkeys(noisy + tuple(one for one in self.objectives if one != "reconstruct")))

    @model_validator(mode="after")
    def _check(self) -> Self:
        unet, mixture = self.architecture == "unet", self.prior == "mixture"
        only_reconstructs = self.objectives == ("reconstruct",)
        wrong = {
            "objectives are named twice": len(set(self.objectives)) < len(self.objectives),
            "objectives: denoise needs input_noise > 0, such as 0.25": "denoise" in self.objectives
            and not self.input_noise,
            "input_noise needs denoise among several objectives": self.input_noise
            and not only_reconstructs
            and "denoise" not in self.objectives,
            "architecture: unet copies its input, so reconstruct cannot be an objective": unet
            and "reconstruct" in self.objectives,
            f"architecture: unet has no code for penalty: {self.penalty}": unet and self.penalty != "none",
            "held_out_class needs objectives: [reconstruct]": self.held_out_class is not None
            and not only_reconstructs,
            "privacy: the prior is fitted without noise; set prior: none": self.privacy
            and not unet
            and self.prior != "none",
            "privacy: penalty: contractive has no gradient of each image": self.privacy
            and self.penalty == "contractive",
            f"prior: mixture needs code_size <= {MAX_SIZE}": mixture and self.code_size > MAX_SIZE,
        }
        needed = {
            "code_size": "architecture: convolutional or dense",
            "dense": "architecture: dense",
            "huber_delta": "reconstruction_loss: huber",
            "penalty_weight": "penalty",
            "num_components": "prior: mixture",
            "temperature": "prior: mixture or normal",
        }
        self.refuse(wrong, needed)
        return self
