"""The feature space in which images are compared."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.core.abilities import Ability, abilities
from pipeline.core.task import Task
from pipeline.errors import BadInput


@dataclass(frozen=True)
class FeatureSpace:
    """``function`` maps images (N, C, H, W), float32 in [0, 1], to vectors (N, D).

    Distances in different spaces cannot be compared. ``name`` and ``digest`` identify the network. To add a
    network such as Inception, add a constructor.
    """

    name: str
    digest: str
    function: Callable[[Tensor], Tensor | None]
    device: torch.device

    @classmethod
    def of_classifier(cls, name: str, task: Task, digest: str) -> "FeatureSpace":
        """The input of the last layer of a classifier. Raises ``BadInput`` for a model without features."""
        if Ability.FEATURES not in abilities(task):
            what = f"the model {name!r} has no features to compare images by"
            raise BadInput(what, where="params.yaml: evaluate.classifier", remedy="name a classifier")
        return cls(name, digest, task.features, task.device)

    def vectors(self, batches: Iterable[Tensor]) -> np.ndarray:
        """Features (N, D), float64, of all images in ``batches``."""
        parts = [self.function(as_saved(images.to(self.device))) for images in batches]
        return np.concatenate([part.double().cpu().numpy() for part in parts if part is not None])


def as_saved(images: Tensor) -> Tensor:
    """Images rounded to 8 bits, because the real images were files with 8 bits."""
    return images.clamp(0, 1).mul(255).round().div(255)
