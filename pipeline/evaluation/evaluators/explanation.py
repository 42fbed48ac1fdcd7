"""Classifiers: the worst mistakes and the least sure images, with maps of what speaks for the answer."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.core.abilities import Ability
from pipeline.estimate import Estimate
from pipeline.evaluation import explanation, figures
from pipeline.evaluation.context import Context
from pipeline.evaluation.distances import subset
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.evaluators.classification import logits_of
from pipeline.evaluation.explanation import Explainer
from pipeline.files import write_text

if TYPE_CHECKING:
    import pandas as pd

NUM_SHOWN = 8


def evaluate(model: Context) -> dict[str, Estimate]:
    """Draws pictures and a table, and measures nothing."""
    explainer, labels = Explainer(model.task), np.asarray(model.dataset.test.labels)
    probabilities = torch.from_numpy(logits_of(model)).softmax(1).numpy()
    answers, names = probabilities.argmax(1), model.dataset.class_names

    def answer_to(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(answers[rows]).to(model.task.device)

    for kind, rows in chosen(probabilities, labels).items():
        images = model.images(rows)
        drawn = explanation.sheet(explainer, images, answer_to(rows), explainer.methods)
        titles = [title(names[labels[row]], names[answers[row]], probabilities[row].max()) for row in rows]
        columns = explanation.headings(explainer.methods)
        figures.save_grid(drawn, model.picture(kind), columns, titles, explanation.LEGEND)
    rows = subset(len(labels), explanation.NUM_CHECKED, model.settings.seed, "sanity check")
    table = check(explainer, model.images(rows), answer_to(rows), model.settings.seed)
    write_text(model.table("maps"), table.to_csv(index=False))
    return {}


def chosen(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The images of the highest loss, and of the others the least sure ones: up to ``NUM_SHOWN`` rows each.

    ``probabilities`` are (N, classes).
    """
    worst = np.argsort(probabilities[np.arange(len(labels)), labels], kind="stable")
    others = np.sort(worst[NUM_SHOWN:])
    unsure = others[np.argsort(probabilities[others].max(1), kind="stable")]
    found = {"mistakes": worst[:NUM_SHOWN], "unsure": unsure[:NUM_SHOWN]}
    return {kind: rows for kind, rows in found.items() if len(rows)}


def title(true: str, answer: str, probability: float) -> str:
    """The name of an image: its class, and the answer if it is another one."""
    return f"{true}{'' if answer == true else f' taken for {answer}'}, {probability:.1%}"


def check(explainer: Explainer, images: Tensor, labels: Tensor, seed: int) -> "pd.DataFrame":
    """The sanity check as a table, a row for each method."""
    import pandas as pd

    found = explanation.sanity_check(explainer, images, labels, explainer.methods, seed)
    rows = [
        {
            "map": explanation.METHODS[method],
            "rank correlation": round(each.rank_correlation, 3),  # NaN is written as an empty cell
            "of absolute values": round(each.of_absolute_values, 3),
            "SSIM": round(each.ssim, 3),
            "computed from": explainer.source(method),
            "reading": each.reading,
        }
        for method, each in found.items()
    ]
    return pd.DataFrame(rows)


# fmt: off
EVALUATOR = Evaluator(Ability.CLASSIFY, evaluate, {}, pictures={
    "mistakes": "The test images of the highest loss, the worst mistakes first: true class, answer and its "
        "probability. On them, what speaks for the answer and against it.",
    "unsure": "Of the other test images, those with the least sure answers.",
}, tables={
    "maps": "Whether the maps depend on the weights: how similar they are to those of "
        f"{explanation.NUM_RANDOM} networks with shuffled weights (Adebayo et al. 2018), averaged over up to "
        f"{explanation.NUM_CHECKED} test images. 1: the same maps; about 0: unrelated ones. Spearman's "
        "rank correlation, also of the absolute values, and SSIM.",
})
