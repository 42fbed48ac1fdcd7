"""The optimizers that params.yaml can select."""

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Literal

from pydantic import Field
from torch import nn, no_grad, optim

from pipeline.layers.muon import Muon
from pipeline.params import Section


class OptimizerSettings(Section):
    """Settings of one optimizer: SGD, SGD with momentum, RMSprop, Adam, AdamW or Muon.

    ``weight_decay`` is decoupled for ``adamw`` (Loshchilov & Hutter 2019) and ``muon``; for the others
    PyTorch adds it to the gradient. Vectors, such as biases, are moved by AdamW with ``muon``, too.
    """

    kind: Literal["sgd", "momentum", "rmsprop", "adam", "adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, le=10)
    momentum: float = Field(0.9, ge=0, lt=1)  # for momentum
    beta1: float = Field(0.9, ge=0, lt=1)  # for adam, adamw, and vectors with muon
    beta2: float = Field(0.999, ge=0, lt=1)  # for the same; alpha for rmsprop
    weight_decay: float = Field(0.0, ge=0)

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        """A new optimizer over ``parameters``; on a GPU one kernel updates all of them, for most kinds."""
        parameters, rate, decay = list(parameters), self.learning_rate, self.weight_decay
        # The fused kernel does not set the momentum in a first step that float16 skips.
        fused = (self.kind != "momentum" and all(parameter.is_cuda for parameter in parameters)) or None
        if self.kind in ("sgd", "momentum"):
            momentum = self.momentum if self.kind == "momentum" else 0.0
            return _uncompiled(optim.SGD)(parameters, rate, momentum, weight_decay=decay, fused=fused)
        if self.kind == "rmsprop":
            return _uncompiled(optim.RMSprop)(parameters, rate, alpha=self.beta2, weight_decay=decay)
        if self.kind == "muon":
            return _uncompiled(Muon)(parameters, rate, (self.beta1, self.beta2), weight_decay=decay)
        adam = _uncompiled(optim.Adam if self.kind == "adam" else optim.AdamW)
        betas = (self.beta1, self.beta2)
        return adam(parameters, rate, betas, weight_decay=decay, foreach=not fused, fused=fused)


@cache
def _uncompiled(kind: type[optim.Optimizer]) -> Callable[..., optim.Optimizer]:
    """``kind`` for steps that are not compiled.

    PyTorch decorates these methods for ``torch.compile``. The decorators import its compiler, even if nothing
    is compiled, and that takes more than a second.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**methods, "step": no_grad()(inspect.unwrap(kind.step))})
