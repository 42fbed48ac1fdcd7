"""A set of images against the reference: every distance between two sets, with what real images score beside it."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.core.noise import generator
from pipeline.core.task import Batch
from pipeline.evaluation import neighbours
from pipeline.evaluation.averages import Estimate
from pipeline.evaluation.features import FeatureSpace
from pipeline.evaluation.frechet import frechet
from pipeline.evaluation.kernel import kernel_distance
from pipeline.evaluation.progress import SILENT, Progress
from pipeline.evaluation.settings import EvaluationSettings

BATCH = 100  # larger activations are slower to allocate than to compute


class ReferenceSet:
    """The reference split's features, those of real images outside it, and what depends on them alone.

    ``dataset`` has splits ``train`` and ``test``; the real images for the floor come from the one that is not the reference,
    as many as ``count`` where it has them. A classifier trained twice may have features of another size, so all are divided by
    one number, ``scale``: the root mean square of the reference's. Raises ``BadInput`` where the sets are too small for the settings.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        dataset,
        space: FeatureSpace,
        count: int,
        progress: Progress = SILENT,
    ) -> None:
        other = "test" if settings.reference_split == "train" else "train"
        self.settings, self.space, self.progress = settings, space, progress
        reference = self._vectors(
            getattr(dataset, settings.reference_split), settings.max_reference, "reference"
        )
        self.scale = float(np.sqrt(np.mean(reference**2))) or 1.0
        self.reference, self.real = (
            reference / self.scale,
            self._vectors(getattr(dataset, other), count, "real") / self.scale,
        )
        self._check(self.reference, "reference images", "evaluate.max_reference")
        self._check(self.real, "real images beside the reference", "evaluate.reference_split")

    def measures(self, batches: Iterable[Tensor]) -> dict[str, Estimate]:
        """Distances of the images (N, C, H, W) in ``batches`` from the reference, each beside the real images'."""
        vectors = self.space.vectors(batches) / self.scale
        self._check(vectors, "images", "evaluate.num_samples")
        return {
            name: estimate.beside(self.floors.get(name, 0.5))
            for name, estimate in self._measures(vectors).items()
        }

    @cached_property
    def floors(self) -> dict[str, float]:
        """What the real images score."""
        return {
            name: estimate.value
            for name, estimate in self._measures(self.real).items()
            if name != "memorisation"
        }

    @threadpool_limits.wrap(
        limits=1, user_api="blas"
    )  # small matrices: more threads are slower, and round differently
    def _measures(self, vectors: np.ndarray) -> dict[str, Estimate]:
        settings = self.settings
        measured = {
            "fid": frechet(vectors, self.reference, settings.num_bootstrap, settings.seed, self.progress),
            "kid": kernel_distance(vectors, self.reference, self.progress),
        }
        near, nearest = self._neighbourhoods(vectors)
        measured |= near
        if settings.reference_split == "train":  # only training images can have been memorised
            measured["memorisation"] = neighbours.memorisation(nearest, self._unseen)
        return measured

    @cached_property
    def _radii(self) -> np.ndarray:
        return neighbours.radii(self.reference, self.settings.num_neighbours, self.progress)

    @cached_property
    def _unseen(self) -> np.ndarray:
        return self._neighbourhoods(self.real)[1]

    def _neighbourhoods(self, vectors: np.ndarray) -> tuple[dict[str, Estimate], np.ndarray]:
        num_neighbours = self.settings.num_neighbours
        return neighbours.neighbourhoods(vectors, self.reference, self._radii, num_neighbours, self.progress)

    def _vectors(self, split, limit: int, name: str) -> np.ndarray:
        rows = subset(len(split), limit, self.settings.seed, name)
        starts = range(0, len(rows), BATCH)
        tracked = self.progress.track(starts, f"features of {name} images: batches", len(starts))
        return self.space.vectors(
            Batch.of(*split.rows(rows[start : start + BATCH])).images for start in tracked
        )

    def _check(self, vectors: np.ndarray, what: str, key: str) -> None:
        count, dimensions = vectors.shape
        self.settings.check_samples(count, dimensions, f"params.yaml: {key}", what)


def subset(total: int, limit: int, seed: int, name: str) -> np.ndarray:
    """At most ``limit`` of the indices below ``total``, ascending, drawn from (seed, name)."""
    if limit >= total:
        return np.arange(total)
    return np.sort(torch.randperm(total, generator=generator(seed, name)).numpy()[:limit])
