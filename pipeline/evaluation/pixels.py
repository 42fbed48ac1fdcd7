"""What is measured of pixels, without a network: sharpness, and distances to the nearest images."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.features import as_saved
from pipeline.evaluation.threads import blocks, in_threads

MOST = 1000  # images whose nearest neighbours are searched


class PixelRecord:
    """Collects the sharpness (N,) of ``count`` images, and the pixels of at most ``MOST`` of them."""

    def __init__(self, count: int, most: int = MOST) -> None:
        self._every = max(1, -(-count // most))
        self._sharpness: list[np.ndarray] = []
        self._pixels: list[Tensor] = []
        self._seen = 0

    def watch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The ``batches`` of images (N, C, H, W), which are recorded as they pass."""
        for images in batches:
            saved = as_saved(images)
            self._sharpness.append(sharpness(saved).cpu().double().numpy())
            kept = saved[-self._seen % self._every :: self._every]
            self._pixels.append(kept.mul(255).round().byte().cpu().flatten(1))
            self._seen += len(images)
            yield images

    @property
    def sharpness(self) -> np.ndarray:
        """See :func:`sharpness`."""
        return np.concatenate(self._sharpness)

    @property
    def pixels(self) -> Tensor:
        """Pixels (M, D), uint8."""
        return torch.cat(self._pixels)


def sharpness(images: Tensor) -> Tensor:
    """The mean squared Laplacian (N,) of images (N, C, H, W), without their border: high frequencies."""
    if min(images.shape[-2:]) < 3:
        return images.flatten(1).square().mean(1)
    inner = images[..., 1:-1, 1:-1]
    around = images[..., :-2, 1:-1] + images[..., 2:, 1:-1] + images[..., 1:-1, :-2] + images[..., 1:-1, 2:]
    return (around - 4 * inner).flatten(1).square().mean(1)


def nearest(images: Tensor, reference: Tensor) -> np.ndarray:
    """The distances (N, 2) of pixels (N, D) to the nearest two of ``reference`` (M, D), both uint8; M > 1.

    Which they are is searched with floats. Their distances are those of integers: 0 for equal images only.
    """
    values = images.float() / 255
    norms = values.square().sum(1, keepdim=True)
    parts = blocks(len(reference), reference.shape[1] + len(images))  # all reference images would be large

    def to_rows(rows: slice) -> tuple[Tensor, Tensor]:
        targets = reference[rows].float() / 255
        squares = norms - 2 * values @ targets.T + targets.square().sum(1)
        best = squares.topk(min(2, squares.shape[1]), largest=False)
        return best.values, best.indices + rows.start

    found = in_threads(to_rows, parts, "nearest neighbours in pixels: blocks of images", len(parts))
    squares, indices = (torch.cat(each, 1) for each in zip(*found))
    two = indices.gather(1, squares.topk(2, largest=False).indices)
    exact = [(image.int() - reference[near].int()).square().sum(1) for image, near in zip(images, two)]
    return torch.stack(exact).sort(1).values.double().sqrt().numpy() / 255
