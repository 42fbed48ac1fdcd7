"""Every model: the values that it computes itself for each example, such as its losses."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.core.task import Ratio
from pipeline.estimate import Estimate
from pipeline.evaluation import averages
from pipeline.evaluation.context import Context
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.measure import Measure

NUM_BOUND_IMAGES, NUM_BOUND_SAMPLES = 64, 500  # of the importance-weighted bound


def evaluate(model: Context) -> dict[str, Estimate]:
    """Averages over the test split of what ``Task.evaluate`` returns; without ratios of 0 to 0."""
    found: dict[str, list[list[np.ndarray]]] = {}  # by quantity, by batch: values or the parts of a ratio
    for index, batch in enumerate(model.batches("the model's own measures")):
        evaluated = model.task.evaluate(batch, model.noise(len(batch), "test", index))
        if evaluated.keys() <= model.measured.keys():
            return {}  # nothing that other evaluators have not measured
        for quantity, values in evaluated.items():
            parts = values if isinstance(values, Ratio) else [values]
            found.setdefault(quantity, []).append([part.double().cpu().numpy() for part in parts])
    measured = {}
    for quantity, batches in sorted(found.items()):
        arrays = [np.concatenate(part) for part in zip(*batches, strict=True)]
        if len(arrays) == 1:
            measured[quantity] = averages.mean(arrays)
        elif arrays[1].any():
            rounds, seed = model.settings.num_bootstrap, model.settings.seed
            measured[quantity] = averages.ratio(arrays[0], arrays[1], rounds, seed)
    if log_weights := getattr(model.task, "log_weights", None):
        measured["importance_weighted_bound"] = _bound(model, log_weights, measured["negative_elbo"])
    return measured


def _bound(model: Context, log_weights: Callable[..., Tensor], negative_elbo: Estimate) -> Estimate:
    """The negative ELBO of all images, less its distance from the better bound on some of them.

    The distance is alike for all images, so that few suffice, while their log-likelihoods differ much.
    """
    size = len(model.dataset.test)
    chosen = np.linspace(0, size - 1, min(size, NUM_BOUND_IMAGES)).astype(np.int64)
    batch = model.dataset.test.batch(chosen, model.task.device)
    weights = log_weights(batch, model.noise(len(batch), "bound"), NUM_BOUND_SAMPLES).cpu().double()
    bounds = torch.logsumexp(weights, 1) - math.log(NUM_BOUND_SAMPLES)
    gap = averages.mean([(bounds - weights.mean(1)).numpy()])
    reach = math.hypot(*((part.high or part.value) - part.value for part in (negative_elbo, gap)))
    value = negative_elbo.value - gap.value
    return Estimate(value, value - reach, value + reach)


# fmt: off
EVALUATOR = Evaluator(None, evaluate, {
    "mae": Measure("Absolute error", "lower", "",
        "Mean absolute error of pixels in [0, 1] between test images and their reconstructions."),
    "negative_elbo": Measure("Negative ELBO", "lower", "",
        "An upper bound of -log p(x | y) per image x of class y: the reconstruction loss plus the KL "
        "divergence from the prior of the training. A mixture or second stage that draws images has another "
        "likelihood.",
        "nats", headline=True),
    "importance_weighted_bound": Measure("Importance-weighted bound", "lower", "",
        f"A closer upper bound of the same -log p(x | y), from {NUM_BOUND_SAMPLES} codes of an image. Its "
        f"distance from the negative ELBO is measured on {NUM_BOUND_IMAGES} test images.", "nats"),
    "second_stage": Measure("Negative ELBO of the second stage", "lower", "",
        "An upper bound of -log p(z) per image's code z, of the model that draws the codes.", "nats"),
    "restoration_mse": Measure("Squared error, restored", "lower", "",
        "Mean squared error between test images and restorations, with the damage of the training."),
    "reconstruction": Measure("Reconstruction loss", "lower", "",
        "-log p(x | z) per image, the loss of the decoder for the image's code z.", "nats"),
    "kl": Measure("KL divergence", "", "",
        "The distance between the encoder's distribution of codes and the prior of the image's class, per "
        "image: the information in the code. 0: none, the decoder ignores the code.", "nats"),
    "real_accuracy": Measure("Discriminator, real images", "", "",
        "The share of real images that the discriminator classifies as real. Near 100 %, for real and for "
        "generated images, its task is too easy; near 50 % it cannot tell them apart.", percent=True),
    "generated_accuracy": Measure("Discriminator, generated images", "", "",
        "The share of generated images that the discriminator classifies as generated.", percent=True),
})
