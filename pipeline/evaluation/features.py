"""The space in which images are compared: vectors from a network, named by that network's digest."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.core.task import Task
from pipeline.errors import BadInput


@dataclass(frozen=True)
class FeatureSpace:
    """``function`` maps images (N, C, H, W), float32 in [0, 1], to vectors (N, D). Distances in two spaces do not compare:
    ``name`` and ``digest`` say which network's this is. A further network, such as Inception, is a further constructor."""

    name: str
    digest: str
    function: Callable[[Tensor], Tensor | None]
    device: torch.device

    @classmethod
    def of_classifier(cls, name: str, task: Task, digest: str) -> "FeatureSpace":
        """The vectors behind the last layer of the pipeline's own classifier. Raises ``BadInput`` for a model without them."""
        space = cls(name, digest, task.features, task.device)
        if (
            task.features(
                torch.zeros(1, task.spec.channels, task.spec.size, task.spec.size, device=task.device)
            )
            is None
        ):
            raise BadInput(
                f"the model {name!r} has no features to compare images by",
                where="params.yaml: evaluate.classifier",
                remedy="name a classifier",
            )
        return space

    def vectors(self, batches: Iterable[Tensor]) -> np.ndarray:
        """Features (N, D), float64, of all images in ``batches``."""
        parts = [self.function(as_saved(images.to(self.device))) for images in batches]
        return np.concatenate([part.double().cpu().numpy() for part in parts if part is not None])


def as_saved(images: Tensor) -> Tensor:
    """Images rounded to 8 bits, as a file would hold them: generated ones are compared with real ones that were files."""
    return images.clamp(0, 1).mul(255).round().div(255)
