"""Autoencoders that did not learn from one class: whether larger errors tell its images from the others."""

import numpy as np

from pipeline.core.abilities import Ability
from pipeline.estimate import Estimate
from pipeline.evaluation import averages
from pipeline.evaluation.context import Context, made
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.evaluators.reconstruction import squared_error
from pipeline.evaluation.measure import Measure


def evaluate(model: Context) -> dict[str, Estimate]:
    """The area under the ROC curve, for a model with ``held_out_class``."""
    held_out = getattr(model.task.config, "held_out_class", None)
    labels = np.asarray(model.dataset.test.labels)
    if held_out is None or min((labels == held_out).sum(), (labels != held_out).sum()) < 2:
        return {}
    batches = [batch.images for batch in model.batches("anomaly scores")]
    errors = [squared_error(made(model.task.reconstruct(images)), images).cpu().numpy() for images in batches]
    scores = np.concatenate(errors)
    return {"anomaly_auroc": averages.auroc(scores[labels != held_out], scores[labels == held_out])}


# fmt: off
EVALUATOR = Evaluator(Ability.RECONSTRUCT, evaluate, {
    "anomaly_auroc": Measure("Anomaly AUROC", "higher", "chance scores {}",
        "How well the squared error of the reconstruction finds test images of the class that the model did "
        "not learn from: the share of pairs of such an image and another one in which its error is larger.",
        headline=True),
})
