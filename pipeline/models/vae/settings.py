"""The settings of the variational autoencoder."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.core.settings import ScheduleSettings
from pipeline.layers.mixture import MAX_SIZE
from pipeline.layers.optimizers import OptimizerSettings
from pipeline.params import Section, Width


class VaeConfig(Section):
    """Latents have ``latent_size`` values.

    ``width``: channels of the convolutional networks at full resolution. ``dense``: the hidden layers of the
    dense ones. ``prior``: p(z) is a standard normal distribution, one with a learned mean for each class, or
    for generation a mixture for each class that is fitted to the latents after the training.
    """

    architecture: Literal["convolutional", "dense"] = "convolutional"
    latent_size: int = Field(16, ge=1, le=4096)
    width: int = Field(32, ge=8, le=1024)
    dense: tuple[Width, ...] = (512, 256)
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    deviation: float = Field(0.1, gt=0)  # of the gaussian likelihood, with images in [0, 1]
    learn_deviation: bool = False  # deviation is then only the first value
    beta: float = Field(1.0, ge=0)  # weight of the KL divergence in the loss
    kl_warmup_steps: int = Field(0, ge=0)  # steps in which beta rises from 0 to its value
    free_bits: float = Field(0.0, ge=0)  # nats for each value of a latent that cost nothing more
    prior: Literal["standard", "class", "mixture"] = "class"
    num_components: int = Field(10, ge=1, le=1000)  # of the mixture of each class
    temperature: float = Field(1.0, gt=0, le=2)  # scales the deviations of the latents that are drawn
    second_stage: Literal["none", "vae"] = "none"  # a model of the latents, which then draws them
    second_stage_first: int = Field(1, ge=1)  # the step at which its training begins
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=2e-3)
    second_stage_optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-3)
    second_stage_schedule: ScheduleSettings = ScheduleSettings(kind="cosine")  # from its first step on

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = {
            "learn_deviation needs likelihood: gaussian": self.learn_deviation
            and self.likelihood == "bernoulli",
            "kl_warmup_steps needs beta > 0": self.kl_warmup_steps and not self.beta,
            "free_bits needs beta > 0": self.free_bits and not self.beta,
            "prior: mixture and second_stage both draw the latents": self.prior == "mixture"
            and self.second_stage != "none",
            f"prior: mixture needs latent_size <= {MAX_SIZE}": self.prior == "mixture"
            and self.latent_size > MAX_SIZE,
        }
        needed = {
            "dense": "architecture: dense",
            "deviation": "likelihood: gaussian",
            "num_components": "prior: mixture",
            **dict.fromkeys(
                ("second_stage_first", "second_stage_optimizer", "second_stage_schedule"), "second_stage: vae"
            ),
        }
        self.refuse(wrong, needed)
        return self
