"""Distances between a set of images and a reference set, each with the value for real images as its floor."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core.dataset import Dataset, Split
from pipeline.core.noise import generator
from pipeline.estimate import Estimate
from pipeline.evaluation import averages, neighbours, pixels
from pipeline.evaluation.features import FeatureSpace
from pipeline.evaluation.frechet import frechet
from pipeline.evaluation.kernel import kernel_distance, kernel_sums
from pipeline.evaluation.measure import Measure
from pipeline.evaluation.pixels import PixelRecord
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.progress import PROGRESS

BATCH = 100  # for larger batches, allocating the activations takes longer than computing them
COPY = 1 / 3  # of the distance to the second nearest image; nearer than this is a copy of the nearest

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
    "pixel_memorisation": Measure("Pixel nearness to training images", "", "unseen real images score {}",
        "The same with the distance between pixels instead of features, of at most 1,000 images. Blurred "
        "images are near to all others, so read it together with the sharpness.", percent=True),
    "copies": Measure("Copies of training images", "lower", "of unseen real images {} are copies",
        "The share of at most 1,000 generated images that are less than a third as far, in pixels, from the "
        "nearest of at most evaluate.max_reference training images as from the second nearest of them (Yoon "
        "et al. 2023). Copies of the other training images are not seen.", percent=True),
    "diversity": Measure("Diversity within a class", "higher", REAL,
        "The mean squared distance of images from the mean of their class, in features, divided by that of "
        "the reference. Near 0, a generator makes the same image of a class again and again."),
    "sharpness": Measure("Sharpness", "", REAL,
        "The energy of high spatial frequencies (mean squared Laplacian) of images, divided by that of the "
        "reference. Below real's, images are blurred; above it, they have noise or hard edges."),
}
# fmt: on


@dataclass(frozen=True)
class ImageSet:
    """What is known of a set of N images, scaled as :class:`ReferenceSet` says."""

    vectors: np.ndarray  # (N, D)
    sharpness: np.ndarray  # (N,)
    pixels: Tensor  # (M, C * H * W), uint8; of some of them
    labels: np.ndarray | None  # (N,)


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
        self.split, other = dataset.train, dataset.test
        if settings.reference_split == "test":
            self.split, other = other, self.split
        self.rows = subset(len(self.split), settings.max_reference, settings.seed, "reference")
        unscaled = self._load(self.split, self.rows, "reference", 1.0, len(self.rows))
        self.scale = float(np.sqrt(np.mean(unscaled.vectors**2))) or 1.0
        self.images = replace(unscaled, vectors=unscaled.vectors / self.scale)
        self.reference = self.images.vectors
        rows = subset(len(other), num_samples, settings.seed, "real")
        self.real = self._load(other, rows, "real", self.scale)
        self._check(self.reference, "reference images", "evaluate.max_reference")
        self._check(self.real.vectors, "real images outside the reference", "evaluate.reference_split")

    def protocol(self) -> dict[str, Any]:
        """What the distances depend on."""
        return {
            "network": self.space.name,
            "network_digest": self.space.digest,
            "dimensions": self.reference.shape[1],
            "scale": self.scale,
            "reference_split": self.settings.reference_split,
            "reference_images": len(self.reference),
            "floor_images": len(self.real.vectors),
            "generated_images": self.num_samples,
        }

    def measures(self, batches: Iterable[Tensor], labels: np.ndarray | None = None) -> dict[str, Estimate]:
        """Distances of the images (N, C, H, W) in ``batches`` from the reference, with their floors.

        ``labels``: their classes (N,), if they were asked for.
        """
        found = self._describe(batches, labels, self.num_samples, self.scale)
        self._check(found.vectors, "images", "evaluate.num_samples")
        distances, nearest = self._distances(found.vectors)
        floors, nearest_of_real = self._real_distances
        measured = {name: each.with_floor(floors[name].value) for name, each in distances.items()}
        if self.settings.reference_split == "train":  # only training images can have been memorised
            measured["memorisation"] = averages.auroc(nearest, nearest_of_real)
            near, near_of_real = pixels.nearest(found.pixels, self.images.pixels), self._pixels_of_real
            measured["pixel_memorisation"] = averages.auroc(near[:, 0], near_of_real[:, 0])
            share = np.mean(is_copy(near_of_real))
            measured["copies"] = averages.proportion(is_copy(near)).with_floor(share)
        real = self.real if labels is not None else replace(self.real, labels=None)
        for name, compute in (("diversity", self._diversity), ("sharpness", self._sharpness)):
            measured[name] = compute(found).with_floor(compute(real).value)
        return measured

    def quality(self, images: Tensor) -> dict[str, Estimate]:
        """Precision, recall, density and coverage of ``images`` (N, C, H, W) alone."""
        vectors, k = self.space.vectors(images.split(BATCH)) / self.scale, self.settings.num_neighbours
        return neighbours.neighbourhoods(vectors, self.reference, self._radii, k)[0]

    def floor(self, name: str) -> float:
        """A distance of real images outside the reference."""
        return self._real_distances[0][name].value

    def nearest(self, images: Tensor, count: int) -> Tensor:
        """The ``count`` nearest images of the reference to each of ``images`` (N, C, H, W), nearest first.

        They are (N, count, C, H, W), in the feature space.
        """
        vectors = self.space.vectors(images.split(BATCH)) / self.scale
        squares = np.stack([np.square(self.reference - vector).sum(axis=1) for vector in vectors])
        rows = self.rows[np.argsort(squares, axis=1, kind="stable")[:, :count]]
        return self.split.batch(rows.ravel()).images.unflatten(0, rows.shape)

    def _diversity(self, images: ImageSet) -> Estimate:
        by_class = images.labels is not None
        reference = spread(self.reference, self.images.labels if by_class else None)
        return averages.mean([spread(images.vectors, images.labels) / (reference.mean() or 1.0)], least=0.0)

    def _sharpness(self, images: ImageSet) -> Estimate:
        return averages.mean([images.sharpness / (self.images.sharpness.mean() or 1.0)], least=0.0)

    @cached_property
    def _real_distances(self) -> tuple[dict[str, Estimate], np.ndarray]:
        return self._distances(self.real.vectors)

    @cached_property
    def _pixels_of_real(self) -> np.ndarray:
        return pixels.nearest(self.real.pixels, self.images.pixels)

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

    def _load(
        self, split: Split, rows: np.ndarray, name: str, scale: float, most: int = pixels.MOST
    ) -> ImageSet:
        starts = range(0, len(rows), BATCH)
        tracked = PROGRESS.track(starts, f"features of {name} images: batches", len(starts))
        batches = (split.batch(rows[start : start + BATCH]).images for start in tracked)
        return self._describe(batches, split.labels[rows], len(rows), scale, most)

    def _describe(
        self,
        batches: Iterable[Tensor],
        labels: np.ndarray | None,
        count: int,
        scale: float,
        most: int = pixels.MOST,
    ) -> ImageSet:
        record = PixelRecord(count, most)
        vectors = self.space.vectors(record.watch(batches)) / scale
        return ImageSet(vectors, record.sharpness, record.pixels, labels)

    def _check(self, vectors: np.ndarray, what: str, key: str) -> None:
        count, dimensions = vectors.shape
        self.settings.check_samples(count, dimensions, f"params.yaml: {key}", what)


def is_copy(distances: np.ndarray) -> np.ndarray:
    """Whether images are copies (N,), by their distances (N, 2) to the nearest two training images."""
    return distances[:, 0] < COPY * distances[:, 1]


def subset(total: int, limit: int, seed: int, name: str) -> np.ndarray:
    """At most ``limit`` of the indices below ``total``, in ascending order, drawn from (seed, name)."""
    if limit >= total:
        return np.arange(total)
    return np.sort(torch.randperm(total, generator=generator(seed, name)).numpy()[:limit])


def spread(vectors: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """The squared distance (N,) of each vector from the mean of its class; without labels, of all."""
    classes = np.zeros(len(vectors), int) if labels is None else np.unique(labels, return_inverse=True)[1]
    counts = np.bincount(classes)
    means = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(means, classes, vectors)
    means /= counts[:, None]
    unbiased = counts / np.maximum(counts - 1, 1)
    return np.square(vectors - means[classes]).sum(axis=1) * unbiased[classes]
