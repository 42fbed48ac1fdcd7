"""The differential privacy of a training, as its settings promise it."""

from pipeline.estimate import Estimate
from pipeline.evaluation.context import Context
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.measure import Measure


def evaluate(model: Context) -> dict[str, Estimate]:
    """Epsilon and delta; nothing of a model that was trained without privacy."""
    settings = getattr(model.task.config, "privacy", None)
    return {name: Estimate(getattr(settings, name)) for name in EVALUATOR.measures} if settings else {}


EVALUATOR = Evaluator(
    None,
    evaluate,
    {
        "epsilon": Measure(
            "Epsilon",
            "lower",
            "",
            "Differential privacy of the weights: a training image makes any result of the training at most "
            "exp(epsilon) times as likely as a training without it, except with probability delta. It is not "
            "measured, but follows from the noise of the training. Near 0 nothing is given away; 8 is weak.",
        ),
        "delta": Measure("Delta", "lower", explained_by="epsilon"),
    },
)
