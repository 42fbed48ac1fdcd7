"""A metric for generators: how far their images are from those of the validation split."""

from pathlib import Path

import numpy as np
import torch

from pipeline.core import model_files
from pipeline.core.abilities import Ability, abilities
from pipeline.core.dataset import Split
from pipeline.core.fields import chunks
from pipeline.core.noise import Noise
from pipeline.core.task import Task
from pipeline.evaluation.features import PIXELS, FeatureSpace
from pipeline.evaluation.kernel import kernel_distance, kernel_sums

METRIC = "validation/kernel_distance"
NUM_IMAGES, BATCH = 2000, 256  # generated images; real images at most
LEAST_IMAGES = 3  # real images that the distance needs


def can_generate(task: Task) -> bool:
    """Whether the metric can be measured."""
    return Ability.GENERATE in abilities(task)


@torch.no_grad()
def distance(model: Path, split: Split) -> float:
    """The kernel distance, in pixel space, of generated images from those of ``split``.

    The generated images have the classes of the real ones. The noise is the same for each model.
    """
    task = model_files.load(model)
    space = FeatureSpace.of_network(PIXELS, task.spec["image"].shape, torch.device("cpu"))
    rows = np.linspace(0, len(split) - 1, min(len(split), NUM_IMAGES)).astype(np.int64)
    real = space.vectors(split.batch(rows[part]).images for part in chunks(len(rows), BATCH))
    rows, made = np.resize(rows, NUM_IMAGES), []  # repeats them
    uses_labels = Ability.USES_LABELS in abilities(task)
    for number, indices in enumerate(chunks(NUM_IMAGES, BATCH)):
        part = rows[indices]
        labels = split.batch(part).labels if uses_labels else None
        images = task.generate(labels, len(part), Noise.whole(0, len(part), "search", number))
        assert images is not None
        made.append(images)
    return kernel_distance(space.vectors(made), real, kernel_sums(real)).value
