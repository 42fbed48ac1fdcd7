"""A model in an evaluation, and what it shares with the others: settings, data, feature spaces, plots."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from pipeline.core.abilities import Ability, abilities
from pipeline.core.dataset import Dataset
from pipeline.core.noise import Noise
from pipeline.core.task import Batch, Task
from pipeline.errors import BadInput, DarkroomError
from pipeline.estimate import Estimate
from pipeline.evaluation.distances import BATCH, ReferenceSet
from pipeline.evaluation.features import FeatureSpace
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.progress import PROGRESS

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """The model ``name``, measured on the test split of its data set. Plots are written to ``plots``."""

    settings: EvaluationSettings
    datasets: Mapping[str, Dataset]
    tasks: Mapping[str, Task]
    digests: Mapping[str, str]
    plots: Path
    name: str = ""
    measured: dict[str, Estimate] = field(default_factory=dict)  # of this model so far, by quantity
    _known: dict[tuple[str, str], Any] = field(default_factory=dict)

    def of(self, name: str) -> "Context":
        """The context of another model."""
        return replace(self, name=name, measured={})

    def once(self, what: str, of: str, compute: Callable[[], T]) -> T:
        """The value of ``compute``, which is called for the first model that needs it."""
        if (what, of) not in self._known:
            self._known[what, of] = compute()
        return self._known[what, of]

    @property
    def task(self) -> Task:
        """The model."""
        return self.tasks[self.name]

    @property
    def dataset(self) -> Dataset:
        """Its data set."""
        return self.datasets[self.task.dataset]

    @property
    def abilities(self) -> frozenset[Ability]:
        """Its abilities; with one class none that is about classes."""
        found = self.once("abilities", self.name, lambda: abilities(self.task))
        return found - {Ability.CLASSIFY, Ability.USES_LABELS} if self.one_class else found

    @property
    def one_class(self) -> bool:
        """Whether all its images are of one class."""
        return len(self.dataset.class_names) == 1

    @property
    def num_samples(self) -> int:
        """How many images it generates."""
        return self.settings.num_samples or len(self.dataset.test)

    def noise(self, count: int, phase: str, index: int = 0) -> Noise:
        """Noise for ``count`` examples on the model's device."""
        return Noise.whole(self.settings.seed, count, phase, index, self.task.device)

    def batches(self, purpose: str) -> Iterator[Batch]:
        """The test split, on the model's device."""
        split = self.dataset.test
        batches = split.batches(BATCH, self.task.device)
        yield from PROGRESS.track(batches, f"{purpose}: batches", -(-len(split) // BATCH))

    def images(self, indices: np.ndarray) -> Tensor:
        """Images (N, C, H, W) of the test split, on the model's device."""
        return self.dataset.test.batch(indices, self.task.device).images

    @property
    def classifier(self) -> str:
        """The classifier of its data: ``evaluate.classifier``, or for another data set its first; or ''."""
        able = [name for name in sorted(self.tasks) if Ability.FEATURES in self.of(name).abilities]
        same = [
            name
            for name in (self.settings.classifier, *able)
            if name in self.tasks and self.tasks[name].dataset == self.task.dataset
        ]
        return same[0] if same else ""

    def feature_space(self) -> FeatureSpace:
        """The features by which its images are compared.

        They are those of ``evaluate.feature_network``, or else of the classifier of its data. Raises
        ``BadInput`` if there is none.
        """
        if network := self.settings.feature_network:
            shape = self.task.spec["image"].shape
            load = lambda: FeatureSpace.of_network(network, shape, self.task.device)
            return self.once("feature space", self.task.dataset, load)
        chosen, name = self.settings.classifier, self.classifier
        where = f"params.yaml: evaluate.classifier: {chosen}"
        if chosen not in self.tasks:
            what = "no trained classifier to compare images by"
            raise BadInput(what, where=where, remedy=f"dvc repro train-{chosen}")
        if name:
            return FeatureSpace.of_classifier(name, self.tasks[name], self.digests[name])
        what = f"no classifier learns from {self.task.dataset}, the data of {self.name}"
        raise BadInput(what, where=where, remedy="add one")

    @property
    def reference_set(self) -> ReferenceSet:
        """What its images are compared with. Raises ``BadInput`` if there are too few images."""

        def build() -> ReferenceSet:
            space = self.feature_space()
            return ReferenceSet(self.settings, self.dataset, space, self.num_samples)

        return self.once("reference set", self.task.dataset, build)

    def picture(self, kind: str) -> Path:
        """The file of a picture."""
        return self.plots / "pictures" / f"{self.name}-{kind}.png"

    def table(self, kind: str) -> Path:
        """The file of a table."""
        return self.plots / "tables" / f"{self.name}-{kind}.csv"


def made(output: Tensor | None) -> Tensor:
    """The output of a method of a model that has this ability."""
    assert output is not None
    return output


def diverged(name: str, what: str) -> DarkroomError:
    """The error for a model with values that are not finite."""
    remedy = f"its training diverged: lower its learning rate, then dvc repro train-{name}"
    return DarkroomError(what, where=name, remedy=remedy)
