"""Generators with latents: pictures of the latents, and fidelity against diversity by truncation.

Truncation: Brock et al. 2019; latents nearer to their mean give better and less diverse images.
"""

import numpy as np
import torch

from pipeline.core.abilities import Ability
from pipeline.estimate import Estimate
from pipeline.evaluation import exploration, figures
from pipeline.evaluation.context import Context
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.evaluators.generation import same_mix
from pipeline.evaluation.exploration import Latents
from pipeline.files import write_text

TRUNCATIONS = (0.4, 0.6, 0.8, 1.0, 1.2)
MOST_IMAGES = 1000  # for each truncation
NUM_INTERPOLATIONS = 6


def evaluate(model: Context) -> dict[str, Estimate]:
    """Draws pictures and a table, and measures nothing."""
    latents = Latents(
        model.task,
        Ability.ENCODE in model.abilities,
        lambda purpose, count: model.noise(count, f"latents, {purpose}"),
    )
    shown = figures.one_of_each(np.asarray(model.dataset.test.labels))
    images, test_labels = model.images(shown), np.asarray(model.dataset.test.labels)[shown]
    count = min(NUM_INTERPOLATIONS, len(shown) - 1)
    labels = torch.from_numpy(test_labels[:count]).to(model.task.device)
    ends = (images[:count], images[1 : count + 1]) if latents.encodes else None
    sheets = {
        "interpolation": exploration.interpolations(latents, labels, ends),
        "traversal": exploration.traversals(latents, int(test_labels[min(2, len(shown) - 1)])),
        "mixing": exploration.mixing(latents, labels),
    }
    conditional = Ability.USES_LABELS in model.abilities
    names = [model.dataset.class_names[label] for label in test_labels[:count]] if conditional else []
    for kind, sheet in sheets.items():
        if sheet is not None:
            figures.save_grid(sheet.images, model.picture(kind), sheet.columns, sheet.rows or names)
    _truncate(model, latents)
    return {}


def _truncate(model: Context, latents: Latents) -> None:
    import pandas as pd

    wanted = same_mix(model.dataset.test.labels, min(model.num_samples, MOST_IMAGES))
    labels = torch.from_numpy(wanted).to(model.task.device)
    means, draws = latents.means(labels), latents.draw(labels, "truncation")
    rows = []
    for share in TRUNCATIONS:
        found = model.reference_set.quality(latents.truncated(draws, means, labels, share))
        rows.append({"truncation": share, **{name: each.value for name, each in found.items()}})
    table = pd.DataFrame(rows)
    write_text(model.table("truncation"), table.to_csv(index=False))
    real = {name: model.reference_set.floor(name) for name in ("precision", "recall")}
    figures.draw_truncation(table, real, model.picture("truncation"))


# fmt: off
EVALUATOR = Evaluator(Ability.DECODE, evaluate, {}, compares=True, pictures={
    "interpolation": "From one latent of {} to another in equal steps. Models that encode go from the code "
        "of one test image to that of the next.",
    "traversal": "One image of {}, with a single latent changed from −3 to 3 standard deviations. The "
        "latents that change the pixels most come first.",
    "mixing": "Two images of {}, and between them images with the coarse styles of the first and, from a "
        "level on, the styles of the second.",
    "truncation": "Fidelity and diversity of {} with latents that are scaled about their mean. Grey: real "
        "images.",
}, tables={
    "truncation": "By truncation: the factor by which the distance of latents from their mean is multiplied. "
        f"At most {MOST_IMAGES:,} images each; recall is higher for fewer.",
})
