"""Generators: distances of generated images from real ones, and whether they show the requested class."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.core.abilities import Ability
from pipeline.core.task import Task
from pipeline.estimate import Estimate
from pipeline.evaluation import averages, distances, figures
from pipeline.evaluation.context import Context, diverged, made
from pipeline.evaluation.distances import BATCH
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.evaluators.classification import balanced_accuracy, logits_of, uneven
from pipeline.evaluation.measure import Measure
from pipeline.progress import PROGRESS

NUM_ROWS = 8  # of the sample grid
NUM_NEAREST = 4  # training images shown with a generated one


def evaluate(model: Context) -> dict[str, Estimate]:
    """The measures of a generator, on images with the test split's mix of classes. Also draws a grid."""
    conditional = Ability.USES_LABELS in model.abilities
    class_names = model.dataset.class_names
    columns = figures.columns(len(class_names))
    drawn = _generate(model, np.tile(columns, NUM_ROWS), "pictures")
    names = [class_names[label] for label in columns] if conditional else []
    figures.save_grid(drawn.unflatten(0, (NUM_ROWS, -1)), model.picture("samples"), columns=names)
    labels = same_mix(model.dataset.test.labels, model.num_samples)
    draw_nearest(model, drawn[: len(columns)], names)
    classifier = model.of(model.classifier) if model.classifier else None
    agreed: list[np.ndarray] = []

    def batches() -> Iterator[Tensor]:
        starts = range(0, len(labels), BATCH)
        for index, start in enumerate(PROGRESS.track(starts, "generated images: batches", len(starts))):
            wanted = labels[start : start + BATCH]
            images = _generate(model, wanted, "samples", index)
            if conditional and classifier and Ability.CLASSIFY in classifier.abilities:
                agreed.append(_predicted(classifier.task, images) == wanted)
            yield images

    known = labels if conditional else None
    measured = model.reference_set.measures(finite(batches(), model.name), known)
    if agreed and classifier:
        real = np.asarray(classifier.dataset.test.labels)
        right, hits = logits_of(classifier).argmax(axis=1) == real, np.concatenate(agreed)
        measured["label_agreement"] = averages.proportion(hits).with_floor(right.mean())
        if uneven(real):
            floor = balanced_accuracy(right, real).value
            measured["balanced_label_agreement"] = balanced_accuracy(hits, labels).with_floor(floor)
    return measured


def draw_nearest(model: Context, images: Tensor, names: Sequence[str]) -> None:
    """Draw ``images`` (N, C, H, W), each above its nearest training images in the feature space."""
    reference = model.reference_set
    if model.settings.reference_split == "train":
        near = reference.nearest(images, NUM_NEAREST)
        shown = torch.cat([images.cpu()[:, None], near], 1).transpose(0, 1)
        rows = ["generated", *(f"nearest {number}" for number in range(1, NUM_NEAREST + 1))]
        figures.save_grid(shown, model.picture("nearest"), columns=names, rows=rows)


def same_mix(labels: np.ndarray, count: int) -> np.ndarray:
    """``count`` labels with the same share of each class as in ``labels`` (N,), to within one."""
    by_class = np.argsort(labels, kind="stable")
    evenly_spaced = (2 * np.arange(count) + 1) * len(labels) // (2 * count)
    return labels[np.sort(by_class[evenly_spaced])]


def finite(batches: Iterable[Tensor], name: str) -> Iterator[Tensor]:
    """The batches. Raises ``DarkroomError`` if a pixel is not finite."""
    for images in batches:
        if not images.isfinite().all():
            raise diverged(name, "makes images whose pixels are not finite")
        yield images


def _generate(model: Context, labels: np.ndarray, phase: str, index: int = 0) -> Tensor:
    wanted = torch.from_numpy(labels).to(model.task.device)
    return made(model.task.generate(wanted, len(labels), model.noise(len(labels), phase, index)))


def _predicted(classifier: Task, images: Tensor) -> np.ndarray:
    return made(classifier.classify(images.to(classifier.device))).argmax(dim=1).cpu().numpy()


# fmt: off
EVALUATOR = Evaluator(Ability.GENERATE, evaluate, {
    **distances.MEASURES,
    "label_agreement": Measure("Label agreement", "higher", "the classifier agrees with {} of real labels",
        "The share of generated images to which the classifier assigns the requested class.", percent=True),
    "balanced_label_agreement": Measure("Balanced label agreement", "higher",
        "the classifier agrees with {} of real labels", "The same, averaged over the classes: all count the "
        "same. Measured where there is a balanced accuracy.", percent=True),
}, compares=True, pictures={
    "samples": "Images that {} made, from noise of a fixed seed: not picked by hand.",
    "nearest": "Images that {} made (first row), and below each its nearest training images in the feature "
        "space. Copies of them would be equal.",
})
