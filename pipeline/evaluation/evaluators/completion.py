"""Models that complete images: the upper half of test images is given, the lower half drawn."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.core.abilities import Ability
from pipeline.estimate import Estimate
from pipeline.evaluation import averages, figures
from pipeline.evaluation.context import Context, made
from pipeline.evaluation.distances import BATCH
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.measure import Measure
from pipeline.layers.damage import upper_half

NUM_ANSWERS = 4  # of each image in the picture
MOST_COMPLETED = 1000  # images that are measured


def evaluate(model: Context) -> dict[str, Estimate]:
    """The share of completions that show the class of the original. Also draws some."""
    _draw(model)
    classifier = model.of(model.classifier) if model.classifier else None
    if not classifier or Ability.CLASSIFY not in classifier.abilities:
        return {}
    count = len(model.dataset.test)
    chosen = np.linspace(0, count - 1, min(count, MOST_COMPLETED)).astype(np.int64)

    def agreed(images: Iterator[Tensor]) -> np.ndarray:
        device = classifier.task.device
        found = [made(classifier.task.classify(each.to(device))).argmax(1).cpu().numpy() for each in images]
        return np.concatenate(found) == np.asarray(model.dataset.test.labels)[chosen]

    parts = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
    images = [model.images(part) for part in parts]
    completed = agreed(_completed(model, each, "complete", index) for index, each in enumerate(images))
    halves = agreed(each * upper_half(each) for each in images)
    return {"completion_agreement": averages.proportion(completed).with_floor(halves.mean())}


def _completed(model: Context, images: Tensor, phase: str, index: int) -> Tensor:
    return made(model.task.complete(images, upper_half(images), model.noise(len(images), phase, index)))


def _draw(model: Context) -> None:
    labels = np.asarray(model.dataset.test.labels)
    shown = figures.one_of_each(labels)
    images = model.images(shown)
    rows = {"original": images, "given": images * upper_half(images)}
    for number in range(1, NUM_ANSWERS + 1):
        rows[f"answer {number}"] = _completed(model, images, "pictures", number)
    names = [model.dataset.class_names[label] for label in labels[shown]]
    grid = torch.stack(list(rows.values()))
    figures.save_grid(grid, model.picture("completions"), columns=names, rows=list(rows))


# fmt: off
EVALUATOR = Evaluator(Ability.COMPLETE, evaluate, {
    "completion_agreement": Measure("Completions of the same class", "higher",
        "of the upper halves alone, the rest black, it recognises {}",
        "Test images whose lower half the model has drawn, without their class: the share that the "
        "classifier recognises as what they were. Some halves fit several classes.", percent=True),
}, pictures={
    "completions": "Test images, one of each class in turn; their upper halves; and answers of {}, which "
        "knows the upper half alone.",
})
