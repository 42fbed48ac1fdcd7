"""The settings of the GAN, and which of them exclude each other."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.layers.optimizers import OptimizerSettings
from pipeline.params import Section

SLOW = OptimizerSettings(kind="adam", learning_rate=4e-4, beta1=0.0, beta2=0.99)
FAST = SLOW.model_copy(update={"learning_rate": 16e-4})


class GanConfig(Section):
    """Both networks have ``width`` channels at full resolution; latents have ``latent_size`` values."""

    architecture: Literal["convolutional", "mlp", "dcgan", "residual", "style", "r3"] = "convolutional"
    conditional: bool = True  # on the class
    latent_size: int = Field(64, ge=1, le=4096)
    width: int = Field(32, ge=8, le=1024)
    adversarial_loss: Literal[
        "minimax", "non_saturating", "hinge", "least_squares", "wasserstein", "relativistic"
    ] = "non_saturating"
    spectral_normalisation: bool = True  # of the discriminator's layers but the last
    gradient_penalty: float = Field(0.0, ge=0)  # weight; 0: none
    r1: float = Field(0.0, ge=0)  # weight of the penalty on gradients at real images
    r2: float = Field(0.0, ge=0)  # the same at generated images
    penalty_every: int = Field(1, ge=1)  # steps; the weights are multiplied by it
    weight_clipping: float = Field(0.0, ge=0)  # largest weight of the discriminator; 0: any
    historical_averaging: float = Field(0.0, ge=0)  # weight; the saved model has the means, too
    style_mixing: float = Field(0.0, ge=0, le=1)  # probability that an image has two styles
    path_length: float = Field(0.0, ge=0)  # weight of path-length regularisation
    path_length_every: int = Field(4, ge=1)  # steps
    truncation: float = Field(1.0, ge=0, le=1)  # of generated images: lower for fewer odd, more alike ones
    flip: float = Field(0.0, ge=0, le=0.5)  # augmentation: probability that an image is mirrored
    shift: float = Field(0.06, ge=0, le=0.5)  # augmentation: largest shift, as a fraction of the side
    color: float = Field(0.0, ge=0, le=1)  # augmentation: largest change of brightness and contrast
    cutout: float = Field(0.0, ge=0, le=1)  # augmentation: side of a grey square, as a fraction of the side
    adaptive_target: float = Field(0.0, ge=0, lt=1)  # of the mean sign of real logits; 0: always augment
    adaptive_step: float = Field(0.001, gt=0, le=1)  # change of the probability to augment
    adaptive_every: int = Field(4, ge=1)  # steps
    discriminator_every: int = Field(1, ge=1)  # steps
    generator_every: int = Field(1, ge=1)  # steps
    generator_optimizer: OptimizerSettings = SLOW
    discriminator_optimizer: OptimizerSettings = FAST

    @property
    def penalises_gradients(self) -> bool:
        """Whether the discriminator's gradient is penalised."""
        return max(self.gradient_penalty, self.r1, self.r2) > 0

    @model_validator(mode="after")
    def _fits_together(self) -> "GanConfig":
        """Raise ``ValueError`` with every combination of settings that makes no sense, and its remedy."""
        zero_centred, style = max(self.r1, self.r2) > 0, self.architecture == "style"
        wasserstein, relativistic = (
            self.adversarial_loss == kind for kind in ("wasserstein", "relativistic")
        )
        augmented = max(self.flip, self.shift, self.color, self.cutout) > 0
        adaptive, normalised = self.adaptive_target > 0, self.spectral_normalisation
        bounded = self.gradient_penalty > 0 or self.weight_clipping > 0
        rules = {
            "adversarial_loss: wasserstein needs a bounded slope: set gradient_penalty: 10 or "
            "weight_clipping: 0.01": wasserstein and not bounded,
            "weight_clipping is for adversarial_loss: wasserstein: set it to 0": (
                self.weight_clipping > 0 and not wasserstein
            ),
            "weight_clipping has no effect on normalised weights: set spectral_normalisation: false": (
                self.weight_clipping > 0 and normalised
            ),
            "weight_clipping and gradient_penalty both bound the slope: set one of them to 0": (
                self.weight_clipping > 0 and self.gradient_penalty > 0
            ),
            "gradient_penalty pulls slopes to 1, r1 and r2 pull them to 0: set the one or the others to 0": (
                self.gradient_penalty > 0 and zero_centred
            ),
            "adversarial_loss: relativistic diverges without a penalty: set r1 and r2, gradient_penalty, or "
            "spectral_normalisation: true": (
                relativistic and not (self.penalises_gradients or self.spectral_normalisation)
            ),
            "architecture: r3 has no normalisation: set spectral_normalisation: false": (
                self.architecture == "r3" and normalised
            ),
            "style_mixing is for architecture: style: set it to 0": self.style_mixing > 0 and not style,
            "path_length is for architecture: style: set it to 0": self.path_length > 0 and not style,
            "penalty_every needs a penalty: set gradient_penalty, r1 or r2, or penalty_every: 1": (
                self.penalty_every > 1 and not self.penalises_gradients
            ),
            "adaptive_target needs an augmentation: set flip, shift, color or cutout": (
                adaptive and not augmented
            ),
            f"adaptive_target needs logits whose sign means real or generated, which adversarial_loss: "
            f"{self.adversarial_loss} does not give: set it to 0": adaptive and (wasserstein or relativistic),
        }
        needed = {
            "path_length_every": "path_length",
            "adaptive_step": "adaptive_target",
            "adaptive_every": "adaptive_target",
        }
        self.refuse(rules, needed)
        return self
