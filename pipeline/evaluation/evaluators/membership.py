"""Membership inference: whether a model shows which images it learned from.

An attack gives each image a score. If training images have higher scores than images that the model has never
seen, it can tell them apart. Each is tried on as many training images as unseen ones:

- reconstruction: minus the squared error of the reconstruction (Hilprecht et al. 2019, "Monte Carlo and
  Reconstruction Membership Inference Attacks against Generative Models");
- distance: minus the distance to the nearest generated image (Chen et al. 2020, "GAN-Leaks");
- loss: minus the loss of a classifier or of a model of tokens (Yeom et al. 2018, "Privacy Risk in Machine
  Learning").

True positives at a low rate of false ones: Carlini et al. 2022, "Membership Inference Attacks From First
Principles".
"""

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.core.abilities import Ability
from pipeline.core.batch import Batch
from pipeline.core.dataset import Split
from pipeline.estimate import Estimate
from pipeline.evaluation import averages, figures
from pipeline.evaluation.context import Context, made
from pipeline.evaluation.distances import BATCH, subset
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.evaluators.generation import same_mix
from pipeline.evaluation.evaluators.likelihood import NATS
from pipeline.evaluation.evaluators.reconstruction import squared_error
from pipeline.evaluation.features import as_saved
from pipeline.evaluation.measure import Measure
from pipeline.files import write_text
from pipeline.progress import PROGRESS

NUM_IMAGES = 1_000  # at most, of training images and of unseen ones
NUM_GENERATED, MOST_VALUES = 2_000, 2**25  # of generated images at most, and of their values together
LEAST_IMAGES = 20  # of each; of fewer, an attack says nothing
NUM_SHOWN = 10
FALSE_POSITIVES = 0.01
EXPOSED = 0.6  # lower end of the area under the ROC curve from which on training images are given away
FOUND = "_found"  # ends the name of the share of training images that an attack finds

Rows = list[tuple[Split, np.ndarray]]  # indices of examples in some splits


class Attack(NamedTuple):
    """``score`` gives the scores (N,) of examples.

    ``compared`` gives the model's images (N, C, H, W) that such images are compared with; ``name`` says what
    they are.
    """

    score: Callable[[Batch], Tensor]
    compared: Callable[[Tensor], Tensor] | None = None
    name: str = ""


def evaluate(model: Context) -> dict[str, Estimate]:
    """The success of each attack that fits the model. Also writes a table and draws what is found first."""
    if not {"image", "label"} <= model.task.spec.fields.keys():
        return {}
    members, unseen = chosen(model)
    [(train, rows)] = members
    if len(rows) < LEAST_IMAGES:
        return {}
    measured, settings = dict[str, Estimate](), model.settings
    for name, attack in attacks(model).items():
        known, others = (scores(model, attack, each) for each in (members, unseen))
        measured[name] = averages.auroc(others, known)
        measured[name + FOUND] = averages.true_positive_rate(
            known, others, FALSE_POSITIVES, settings.num_bootstrap, settings.seed
        )
        if attack.compared:
            first = rows[np.argsort(-known, kind="stable")[:NUM_SHOWN]]
            images = train.batch(first, model.task.device).images
            shown = torch.stack([images, attack.compared(images)])
            figures.save_grid(
                shown, model.picture(name.replace("_", "-")), rows=["training image", attack.name]
            )
    if measured:
        write_text(model.table("membership"), _table(measured))
    return measured


def chosen(model: Context) -> tuple[Rows, Rows]:
    """Training images and as many unseen ones, at most ``NUM_IMAGES``, drawn from the seed.

    Unseen are validation images and, if they are too few, test images: a data set's own test split may differ
    from its training images, which would look like membership. Images of a class that the training left out
    are in neither.
    """
    data, held_out = model.dataset, getattr(model.task.config, "held_out_class", None)
    left_out = -1 if held_out is None else held_out
    train, validation, test = (
        np.flatnonzero(split.labels != left_out) for split in (data.train, data.validation, data.test)
    )
    draw = lambda rows, most: rows[subset(len(rows), most, model.settings.seed, "membership")]
    count = min(NUM_IMAGES, len(train), len(validation) + len(test))
    first = draw(validation, count)
    unseen = [(data.validation, first), (data.test, draw(test, count - len(first)))]
    return [(data.train, draw(train, count))], unseen


def scores(model: Context, attack: Attack, rows: Rows) -> np.ndarray:
    """The scores of the examples ``rows``, (N,), float64."""
    parts = [
        (split, indices[start : start + BATCH])
        for split, indices in rows
        for start in range(0, len(indices), BATCH)
    ]
    tracked = PROGRESS.track(parts, "attacked images: batches", len(parts))
    batches = (split.batch(indices, model.task.device) for split, indices in tracked)
    return torch.cat([attack.score(batch) for batch in batches]).cpu().double().numpy()


def fitting(abilities: Collection[Ability], measured: Collection[str]) -> list[str]:
    """The attacks that fit a model with ``abilities`` and quantities ``measured``."""
    fits = {
        "reconstruction_attack": Ability.RECONSTRUCT in abilities,
        "distance_attack": Ability.GENERATE in abilities,
        "loss_attack": Ability.CLASSIFY in abilities or NATS in measured,
    }
    return [name for name, does_fit in fits.items() if does_fit]


def attacks(model: Context) -> dict[str, Attack]:
    """The attacks that fit what the model can do, by name."""
    task, found, names = model.task, dict[str, Attack](), fitting(model.abilities, model.measured)
    if "reconstruction_attack" in names:
        rebuild = lambda images: made(task.reconstruct(images))
        found["reconstruction_attack"] = Attack(
            lambda batch: -squared_error(batch.images, rebuild(batch.images)), rebuild, "reconstruction"
        )
    if "distance_attack" in names:
        generated = _generated(model)
        whole = lambda images: images.flatten(1).mul(255).round().double()  # so equal images are equally far
        reference = whole(generated)
        distances = lambda images: torch.cdist(whole(images), reference)  # (N, M), exact but for the root
        found["distance_attack"] = Attack(
            lambda batch: -distances(batch.images).amin(1),
            lambda images: generated[distances(images).argmin(1)],
            "nearest generated",
        )
    if Ability.CLASSIFY in model.abilities:
        found["loss_attack"] = Attack(
            lambda batch: log_odds(made(task.classify(batch.images)).cpu(), batch.labels.cpu())
        )
    elif "loss_attack" in names:
        found["loss_attack"] = Attack(
            lambda batch: -torch.as_tensor(task.evaluate(batch, model.noise(len(batch), "loss attack"))[NATS])
        )
    return found


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log p / (1 - p), (N,), of ``labels`` (N,): in the order of minus the loss, also where p rounds to 1."""
    labels = labels[:, None]
    others = logits.double().scatter(1, labels, -torch.inf).logsumexp(1)
    return logits.double().gather(1, labels)[:, 0] - others


def _generated(model: Context) -> Tensor:
    """Generated images (M, C, H, W) with the training split's mix of classes."""
    count = min(NUM_GENERATED, MOST_VALUES // math.prod(model.task.spec["image"].shape))
    labels = torch.from_numpy(same_mix(np.asarray(model.dataset.train.labels), count))
    parts = labels.to(model.task.device).split(BATCH)
    return torch.cat(
        [
            as_saved(made(model.task.generate(part, len(part), model.noise(len(part), "membership", index))))
            for index, part in enumerate(PROGRESS.track(parts, "images to compare: batches", len(parts)))
        ]
    )


def meaning(attack: Estimate) -> str:
    """What the area under the ROC curve of an attack means, in words."""
    if attack.least > EXPOSED:
        return (
            "Training images are given away: do not publish the model if it is secret whose images they are."
        )
    if attack.least > 0.5:
        return "Training images are recognised slightly more often than by chance."
    return "On these images the attack is no better than chance; a stronger attack may be."


def _table(measured: dict[str, Estimate]) -> str:
    import pandas as pd

    def shown(quantity: str) -> str:
        measure, estimate = MEASURES[quantity], measured[quantity]
        return f"{measure.show(estimate.value)} ({measure.interval(estimate)})"

    rows = [
        (title, shown(name), shown(name + FOUND), meaning(measured[name]))
        for name, title in ATTACKS.items()
        if name in measured
    ]
    columns = ["attack", "area under the ROC curve", "found with at most 1 % false alarms", "meaning"]
    return pd.DataFrame(rows, columns=columns).to_csv(index=False)


# fmt: off
ATTACKS = {
    "reconstruction_attack": "reconstruction", "distance_attack": "distance", "loss_attack": "loss",
}
BY = {
    "reconstruction": "the squared error of their reconstructions",
    "distance": "their distance to the nearest generated image",
    "loss": "the model's loss",
}
MEASURES = {
    key: each
    for name, title in ATTACKS.items()
    for key, each in {
        name: Measure(f"Membership by {title}", "lower", "chance scores {}",
            f"The area under the ROC curve of an attack that guesses by {BY[title]} whether images were in "
            "the training: the share of pairs of a training image and an unseen one that it orders rightly. "
            "At 1, the model gives away all images that it learned from."),
        name + FOUND: Measure(f"Found by {title}", "lower", "chance finds {}",
            "The share of training images that the same attack finds while it takes at most 1 % of the "
            "unseen images for training images.", percent=True),
    }.items()
}
EVALUATOR = Evaluator(None, evaluate, MEASURES, pictures={
    "reconstruction-attack": "Training images that {} gives away first (by reconstruction), and below each "
        "its reconstruction.",
    "distance-attack": "Training images that {} gives away first (by distance), and below each the nearest "
        "of the generated images.",
}, tables={
    "membership": f"Whether the model shows which images it learned from: attacks on as many training images "
        f"as unseen ones, at most {NUM_IMAGES:,} each. Found: the share of these training images.",
})
