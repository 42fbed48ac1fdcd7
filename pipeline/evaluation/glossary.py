"""The evaluators, found in the folder ``evaluators``, and their measures by quantity."""

import pkgutil
from importlib import import_module

from pipeline.evaluation import evaluators
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.measure import Measure

_found: list[Evaluator] = [
    import_module(f"{evaluators.__name__}.{module.name}").EVALUATOR
    for module in pkgutil.iter_modules(evaluators.__path__)
]
# Those for every model last, by the names of their files.
EVALUATORS = sorted(_found, key=lambda evaluator: evaluator.needs is None)
MEASURES: dict[str, Measure] = {
    quantity: measure for evaluator in EVALUATORS for quantity, measure in evaluator.measures.items()
}


def measure(quantity: str) -> Measure:
    """The measure of a quantity. One that no evaluator lists, such as a loss, gets its name as title."""
    return MEASURES.get(quantity) or Measure(quantity.replace("_", " ").capitalize())
