"""Distances between a set of images and a reference set, each with the value for real images as its floor."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.core.dataset import Dataset, Split
from pipeline.core.noise import generator
from pipeline.evaluation import neighbours
from pipeline.evaluation.averages import Estimate
from pipeline.evaluation.features import FeatureSpace
from pipeline.evaluation.frechet import frechet
from pipeline.evaluation.kernel import kernel_distance
from pipeline.evaluation.progress import SILENT, Progress
from pipeline.evaluation.settings import EvaluationSettings

BATCH = 100  # for larger batches, allocating the activations takes longer than computing them


class ReferenceSet:
    """Features of the reference split, and of ``count`` real images of another split for the floor.

    Classifiers that were trained differently may have features of different size. So all features are divided
    by ``scale``, the root mean square of the reference's. Raises ``BadInput`` if there are too few images.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        dataset: Dataset,
        space: FeatureSpace,
        count: int,
        progress: Progress = SILENT,
    ) -> None:
        self.settings, self.space, self.progress = settings, space, progress
        reference, other = dataset.train, dataset.test
        if settings.reference_split == "test":
            reference, other = other, reference
        vectors = self._vectors(reference, settings.max_reference, "reference")
        self.scale = float(np.sqrt(np.mean(vectors**2))) or 1.0
        self.reference = vectors / self.scale
        self.real = self._vectors(other, count, "real") / self.scale
        self._check(self.reference, "reference images", "evaluate.max_reference")
        self._check(self.real, "real images outside the reference", "evaluate.reference_split")

    def measures(self, batches: Iterable[Tensor]) -> dict[str, Estimate]:
        """Distances of the images (N, C, H, W) in ``batches`` from the reference, with their floors."""
        vectors = self.space.vectors(batches) / self.scale
        self._check(vectors, "images", "evaluate.num_samples")
        measured = self._measures(vectors)
        return {name: each.with_floor(self.floors.get(name, 0.5)) for name, each in measured.items()}

    @cached_property
    def floors(self) -> dict[str, float]:
        """The values of the real images."""
        measured = self._measures(self.real)
        return {name: each.value for name, each in measured.items() if name != "memorisation"}

    # For small matrices more threads are slower, and round differently.
    @threadpool_limits.wrap(limits=1, user_api="blas")
    def _measures(self, vectors: np.ndarray) -> dict[str, Estimate]:
        settings = self.settings
        measured = {
            "fid": frechet(vectors, self.reference, settings.num_bootstrap, settings.seed, self.progress),
            "kid": kernel_distance(vectors, self.reference, self.progress),
        }
        near, nearest = self._neighbourhoods(vectors)
        measured |= near
        if settings.reference_split == "train":  # only training images can have been memorised
            measured["memorisation"] = neighbours.memorisation(nearest, self._nearest_of_real)
        return measured

    @cached_property
    def _radii(self) -> np.ndarray:
        return neighbours.radii(self.reference, self.settings.num_neighbours, self.progress)

    @cached_property
    def _nearest_of_real(self) -> np.ndarray:
        return self._neighbourhoods(self.real)[1]

    def _neighbourhoods(self, vectors: np.ndarray) -> tuple[dict[str, Estimate], np.ndarray]:
        num_neighbours = self.settings.num_neighbours
        return neighbours.neighbourhoods(vectors, self.reference, self._radii, num_neighbours, self.progress)

    def _vectors(self, split: Split, limit: int, name: str) -> np.ndarray:
        rows = subset(len(split), limit, self.settings.seed, name)
        starts = range(0, len(rows), BATCH)
        tracked = self.progress.track(starts, f"features of {name} images: batches", len(starts))
        return self.space.vectors(split.batch(rows[start : start + BATCH]).images for start in tracked)

    def _check(self, vectors: np.ndarray, what: str, key: str) -> None:
        count, dimensions = vectors.shape
        self.settings.check_samples(count, dimensions, f"params.yaml: {key}", what)


def subset(total: int, limit: int, seed: int, name: str) -> np.ndarray:
    """At most ``limit`` of the indices below ``total``, in ascending order, drawn from (seed, name)."""
    if limit >= total:
        return np.arange(total)
    return np.sort(torch.randperm(total, generator=generator(seed, name)).numpy()[:limit])
