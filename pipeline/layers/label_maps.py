"""Label maps: the class of each pixel, int64 (N, H, W)."""

import colorsys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.core.batch import Batch

IGNORED = 255  # the label of pixels that count neither in losses nor in measures
GOLDEN = 0.618034  # turns of the hue from one class to the next, so that near classes differ most

PIXELS = 2**21  # of the images that are segmented at a time


def parts(batch: Batch) -> Iterator[Batch]:
    """Consecutive examples with at most ``PIXELS`` pixels, or one: their logits fit into memory."""
    size = max(1, PIXELS // batch.images[0, 0].numel())
    for start in range(0, len(batch), size):
        yield batch.rows(start, start + size)


def answers(segment: Callable[[Tensor], Tensor | None], images: Tensor) -> Tensor:
    """The likeliest class of each pixel, (N, H, W), by ``Task.segment`` of a task that has it."""
    logits = (segment(part.images) for part in parts(Batch({"image": images})))
    return torch.cat([each.argmax(1) for each in logits if each is not None])


def colors(count: int) -> list[tuple[int, int, int]]:
    """Red, green and blue of ``count`` classes, 0 to 255. The first class, the background, is black."""
    hues = ((number * GOLDEN % 1, 0.85 - 0.35 * (number % 3 == 2)) for number in range(count - 1))
    bright = [colorsys.hsv_to_rgb(hue, saturation, 1.0) for hue, saturation in hues]
    return [(0, 0, 0), *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in bright)][:count]


def paint(labels: Tensor, count: int) -> Tensor:
    """Labels (N, H, W) of ``count`` classes as images (N, 3, H, W) in [0, 1]. Ignored pixels are grey."""
    table = torch.full((256, 3), 128)
    table[:count] = torch.tensor(colors(count))
    return (table.to(labels.device)[labels] / 255).permute(0, 3, 1, 2)


def overlap(found: Tensor, real: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of each class in both label maps (N, H, W), in ``found``, and in ``real``, each (N, ``count``).

    Pixels that ``real`` ignores are not counted.
    """
    classes = torch.arange(count, device=real.device)[:, None, None]
    ours = (found[:, None] == classes) & (real != IGNORED)[:, None]  # (N, count, H, W)
    theirs = real[:, None] == classes
    both, ours, theirs = (each.sum(dim=(2, 3)) for each in (ours & theirs, ours, theirs))
    return both, ours, theirs
