"""The optimizers that params.yaml can select."""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from torch import nn, optim

from pipeline.params import Section


class OptimizerSettings(Section):
    """Settings of one optimizer: SGD, SGD with momentum, RMSprop, Adam or AdamW.

    ``weight_decay`` is decoupled for ``adamw`` (Loshchilov & Hutter 2019); for the others PyTorch adds it to
    the gradient.
    """

    kind: Literal["sgd", "momentum", "rmsprop", "adam", "adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, le=10)
    momentum: float = Field(0.9, ge=0, lt=1)  # for momentum
    beta1: float = Field(0.9, ge=0, lt=1)  # for adam and adamw
    beta2: float = Field(0.999, ge=0, lt=1)  # for adam and adamw; alpha for rmsprop
    weight_decay: float = Field(0.0, ge=0)

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        """A new optimizer over ``parameters``."""
        rate, decay = self.learning_rate, self.weight_decay
        if self.kind in ("sgd", "momentum"):
            return optim.SGD(
                parameters,
                rate,
                momentum=self.momentum if self.kind == "momentum" else 0.0,
                weight_decay=decay,
            )
        if self.kind == "rmsprop":
            return optim.RMSprop(parameters, rate, alpha=self.beta2, weight_decay=decay)
        adam = optim.Adam if self.kind == "adam" else optim.AdamW
        return adam(parameters, rate, betas=(self.beta1, self.beta2), weight_decay=decay, foreach=True)
