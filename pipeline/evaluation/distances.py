"""Distances between a set of images and a reference set, each with the value for real images as its floor."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core.dataset import Dataset, Split
from pipeline.core.noise import generator
from pipeline.estimate import Estimate
from pipeline.evaluation import neighbours
from pipeline.evaluation.features import FeatureSpace
from pipeline.evaluation.frechet import frechet
from pipeline.evaluation.kernel import kernel_distance, kernel_sums
from pipeline.evaluation.measure import Measure
from pipeline.evaluation.progress import PROGRESS
from pipeline.evaluation.settings import EvaluationSettings

BATCH = 100  # for larger batches, allocating the activations takes longer than computing them

REAL = "real against real scores {}"
# fmt: off
MEASURES = {
    "fid": Measure("Fréchet distance (FID)", "lower", REAL,
        "The distance between the means and covariances of the features of generated and of real images. It "
        "is higher for fewer images: compare it with real against real under the same protocol, and only "
        "with a FID from the same feature network.", headline=True),
    "kid": Measure("Kernel distance (KID)", "lower", REAL,
        "Squared maximum mean discrepancy, cubic kernel. Its expectation does not depend on the number of "
        "images. It may be negative."),
    "precision": Measure("Precision", "higher", REAL,
        "Fidelity: the share of generated images that are close to real ones.", percent=True),
    "recall": Measure("Recall", "higher", REAL,
        "Diversity: the share of real images that are close to generated ones. It is low if a generator "
        "repeats itself.", percent=True, headline=True),
    "density": Measure("Density", "higher", REAL,
        "The number of real neighbourhoods that contain a generated image, divided by k. Like precision, but "
        "less sensitive to real outliers. It may exceed 1."),
    "coverage": Measure("Coverage", "higher", REAL,
        "The share of real images with a generated one in their neighbourhood. Like recall, but less "
        "sensitive to generated outliers.", percent=True),
    "memorisation": Measure("Nearness to training images", "", "unseen real images score {}",
        "The probability that a generated image is nearer to its nearest training image than an unseen real "
        "image is. Near 100 %: copies, or images that are all close to the average. Below 50 %: images "
        "unlike the training images.", percent=True),
}
# fmt: on


class ReferenceSet:
    """Features of the reference split, and of ``num_samples`` real images of another split for the floor.

    Classifiers that were trained differently may have features of different size. So all features are divided
    by ``scale``, the root mean square of the reference's. Raises ``BadInput`` if there are too few images.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        dataset: Dataset,
        space: FeatureSpace,
        num_samples: int,
    ) -> None:
        self.settings, self.space, self.num_samples = settings, space, num_samples
        reference, other = dataset.train, dataset.test
        if settings.reference_split == "test":
            reference, other = other, reference
        vectors = self._vectors(reference, settings.max_reference, "reference")
        self.scale = float(np.sqrt(np.mean(vectors**2))) or 1.0
        self.reference = vectors / self.scale
        self.real = self._vectors(other, num_samples, "real") / self.scale
        self._check(self.reference, "reference images", "evaluate.max_reference")
        self._check(self.real, "real images outside the reference", "evaluate.reference_split")

    def protocol(self) -> dict[str, Any]:
        """What the distances depend on."""
        return {
            "network": self.space.name,
            "network_digest": self.space.digest,
            "dimensions": self.reference.shape[1],
            "scale": self.scale,
            "reference_split": self.settings.reference_split,
            "reference_images": len(self.reference),
            "floor_images": len(self.real),
            "generated_images": self.num_samples,
        }

    def measures(self, batches: Iterable[Tensor]) -> dict[str, Estimate]:
        """Distances of the images (N, C, H, W) in ``batches`` from the reference, with their floors."""
        vectors = self.space.vectors(batches) / self.scale
        self._check(vectors, "images", "evaluate.num_samples")
        distances, nearest = self._distances(vectors)
        floors, nearest_of_real = self._real_distances
        measured = {name: each.with_floor(floors[name].value) for name, each in distances.items()}
        if self.settings.reference_split == "train":  # only training images can have been memorised
            measured["memorisation"] = neighbours.memorisation(nearest, nearest_of_real)
        return measured

    @cached_property
    def _real_distances(self) -> tuple[dict[str, Estimate], np.ndarray]:
        return self._distances(self.real)

    def _distances(self, vectors: np.ndarray) -> tuple[dict[str, Estimate], np.ndarray]:
        """The distances by name, and the distance (N,) of each vector to the nearest of the reference."""
        from threadpoolctl import threadpool_limits

        settings = self.settings
        # For small matrices more threads are slower, and round differently.
        with threadpool_limits(limits=1, user_api="blas"):
            fid = frechet(vectors, self.reference, settings.num_bootstrap, settings.seed)
            kid = kernel_distance(vectors, self.reference, self._kernel_sums)
            near, nearest = neighbours.neighbourhoods(
                vectors, self.reference, self._radii, settings.num_neighbours
            )
        return {"fid": fid, "kid": kid, **near}, nearest

    @cached_property
    def _kernel_sums(self) -> np.ndarray:
        return kernel_sums(self.reference)

    @cached_property
    def _radii(self) -> np.ndarray:
        return neighbours.radii(self.reference, self.settings.num_neighbours)

    def _vectors(self, split: Split, limit: int, name: str) -> np.ndarray:
        rows = subset(len(split), limit, self.settings.seed, name)
        starts = range(0, len(rows), BATCH)
        tracked = PROGRESS.track(starts, f"features of {name} images: batches", len(starts))
        return self.space.vectors(split.batch(rows[start : start + BATCH]).images for start in tracked)

    def _check(self, vectors: np.ndarray, what: str, key: str) -> None:
        count, dimensions = vectors.shape
        self.settings.check_samples(count, dimensions, f"params.yaml: {key}", what)


def subset(total: int, limit: int, seed: int, name: str) -> np.ndarray:
    """At most ``limit`` of the indices below ``total``, in ascending order, drawn from (seed, name)."""
    if limit >= total:
        return np.arange(total)
    return np.sort(torch.randperm(total, generator=generator(seed, name)).numpy()[:limit])
