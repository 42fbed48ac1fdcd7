"""Segmentation: overlap of label maps with the truth, also by class, and agreement of their boundaries.

``found`` and ``real`` are label maps (N, H, W), of ``count`` classes; the first is the background. Pixels
that ``real`` ignores are not counted. Boundary F1: Csurka et al. 2013.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.core.abilities import Ability
from pipeline.errors import BadInput
from pipeline.estimate import Estimate
from pipeline.evaluation import averages, figures
from pipeline.evaluation.context import Context, made
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.measure import Measure
from pipeline.files import write_text
from pipeline.layers.label_maps import IGNORED, answers, colors, overlap, paint, parts

TOLERANCE = 1  # pixels that a boundary may be off, in each direction
NUM_SHOWN = 8
MOST_NAMED = 20  # classes in the legend of the picture


def evaluate(model: Context) -> dict[str, Estimate]:
    """The measures of a segmentation. Also writes a table of its classes and a sheet of examples.

    A measure that is not defined is left out: without objects, those without the background. Raises
    ``BadInput`` if all pixels of the test split are ignored.
    """
    count, settings = model.task.spec["mask"].num_values, model.settings
    counts, edges = list[Tensor](), list[np.ndarray]()
    batches = model.batches("segmented images")
    for batch in itertools.chain.from_iterable(map(parts, batches)):
        found, real = made(model.task.segment(batch.images)).argmax(1).cpu(), batch["mask"].cpu()
        counts.append(torch.stack(overlap(found, real, count), 1))  # (n, 3, K)
        edges.append(boundary_scores(found.numpy(), real.numpy(), count))
    both, ours, theirs = torch.cat(counts).double().numpy().transpose(1, 0, 2)  # each (N, K)
    if not theirs.any():
        what = f"the masks of the test split have no pixel of a class: all are {IGNORED}"
        raise BadInput(what, where=model.task.dataset, remedy="label some of their pixels")
    _write_table(model, both.sum(0), ours.sum(0), theirs.sum(0))
    _draw(model, count)
    union = ours + theirs - both
    share = float(theirs[:, 0].sum() / theirs.sum())  # of the background
    present = int((theirs.sum(0) > 0).sum())
    scores = np.concatenate(edges)
    parts_and_floors = {
        "mean_iou": (both, union, share / present),
        "foreground_iou": (both[:, 1:], union[:, 1:], 0.0),
        "pixel_accuracy": (both.sum(1), theirs.sum(1), share),
        "boundary_f1": (scores[:, 0], scores[:, 1], 0.0),
    }
    measured = {}
    for name, (above, below, floor) in parts_and_floors.items():
        if below.any():
            ratio = averages.ratio(above, below, settings.num_bootstrap, settings.seed)
            low, high = np.clip([ratio.low, ratio.high], 0, 1).tolist()
            measured[name] = Estimate(ratio.value, low, high, floor)
    return measured


def boundary_scores(found: np.ndarray, real: np.ndarray, count: int) -> np.ndarray:
    """For each image the sum of its classes' boundary F1, and the number of these classes: (N, 2).

    They are the classes but the background that are in the image's truth or answer. F1 is the harmonic mean
    of the shares of each boundary that are within ``TOLERANCE`` pixels of the other one.
    """
    known = real != IGNORED
    scores = np.zeros((len(real), 2))
    for label in range(1, count):
        ours, theirs = _boundary((found == label) & known), _boundary(real == label)
        hits = (_share(ours, _near(theirs)), _share(theirs, _near(ours)))
        present = ours.any(axis=(1, 2)) | theirs.any(axis=(1, 2))
        f1 = 2 * hits[0] * hits[1] / np.maximum(hits[0] + hits[1], 1e-12)
        scores += np.stack([f1 * present, present], 1)
    return scores


def _boundary(masks: np.ndarray) -> np.ndarray:
    """The pixels of each mask (N, H, W) with a neighbour outside of it or of the image."""
    from scipy.ndimage import binary_erosion  # imported here because it takes a while

    return masks & ~binary_erosion(masks, np.ones((1, 3, 3)))


def _near(boundaries: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    side = 2 * TOLERANCE + 1
    return binary_dilation(boundaries, np.ones((1, side, side)))


def _share(boundaries: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The share of each boundary (N, H, W) that is ``near``; 0 without a boundary."""
    total = boundaries.sum(axis=(1, 2))
    return (boundaries & near).sum(axis=(1, 2)) / np.maximum(total, 1)


def _write_table(model: Context, both: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> None:
    import pandas as pd

    present = ours + theirs > 0
    columns = {
        "class": names_of(model.dataset.class_names, len(both)),
        "iou": both / np.where(present, ours + theirs - both, np.nan),
        "dice": 2 * both / np.where(present, ours + theirs, np.nan),
        "share": theirs / theirs.sum(),
    }
    write_text(model.table("pixel-classes"), pd.DataFrame(columns).to_csv(index=False))


def names_of(names: Sequence[str], count: int) -> list[str]:
    """The names of ``count`` classes; their numbers, if they have no names."""
    return list(names) if len(names) == count else list(map(str, range(count)))


def _draw(model: Context, count: int) -> None:
    test = model.dataset.test
    batch = test.batch(np.arange(min(NUM_SHOWN, len(test))), model.task.device)
    found, real = answers(model.task.segment, batch.images), batch["mask"]
    image = batch.images[:, :3].expand(-1, 3, -1, -1)
    wrong = ((found != real) & (real != IGNORED))[:, None]
    red = torch.tensor([1.0, 0.2, 0.2], device=image.device)[:, None, None]
    rows = {
        "image": image,
        "truth": paint(real, count),
        "answer": paint(found, count),
        "errors": torch.where(wrong, red, image.mean(1, keepdim=True) / 3),
    }
    named = list(zip(names_of(model.dataset.class_names, count), colors(count)))[1 : 1 + MOST_NAMED]
    path = model.picture("segmentation")
    figures.save_grid(torch.stack(list(rows.values())), path, rows=list(rows), legend=named)


# fmt: off
EVALUATOR = Evaluator(Ability.SEGMENT, evaluate, {
    "mean_iou": Measure("Mean IoU", "higher", "all background scores {}",
        "Pixels that truth and answer give to a class, divided by those that either gives to it, averaged "
        "over the classes with the background. The pixels of all test images are summed up first.",
        percent=True, headline=True),
    "foreground_iou": Measure("Mean IoU without background", "higher", "all background scores {}",
        "The same, averaged over the classes without the background.", percent=True, headline=True),
    "pixel_accuracy": Measure("Pixel accuracy", "higher", "all background scores {}",
        "The share of the pixels whose class is right.", percent=True),
    "boundary_f1": Measure("Boundary F1", "higher", "all background scores {}",
        "The harmonic mean of the shares of the answer's boundary that is near the true one, and of the true "
        f"one that is near the answer's: within {TOLERANCE} pixel in each direction. Averaged over the "
        "classes in each image.", percent=True),
}, pictures={
    "segmentation": "Test images; the true class of each pixel; the model's answer; in red, the pixels with "
        "another class than the true one.",
}, tables={
    "pixel-classes": "By class, on the pixels of all test images. IoU: pixels of this class in truth and "
        "answer, divided by those in either. Dice: twice the first, divided by the sum of the pixels in "
        "truth and in answer. Both are blank for a class in neither. Share: of all pixels.",
})
