"""What an evaluator is. Each file in ``evaluators`` defines one, ``EVALUATOR``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.core.abilities import Ability
from pipeline.estimate import Estimate
from pipeline.evaluation.context import Context
from pipeline.evaluation.measure import Measure


@dataclass(frozen=True)
class Evaluator:
    """What is measured of all models with one ability."""

    needs: Ability | None  # None: it applies to every model, and adds what no other evaluator has measured
    evaluate: Callable[[Context], Mapping[str, Estimate]]  # by quantity
    measures: Mapping[str, Measure]
    compares: bool = False  # with real images, in the feature space of a classifier
    pictures: Mapping[str, str] = field(default_factory=dict)  # captions by kind, see Context.picture
    tables: Mapping[str, str] = field(default_factory=dict)  # captions by kind, see Context.table
