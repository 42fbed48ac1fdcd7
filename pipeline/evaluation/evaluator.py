"""Evaluates each model by its abilities: classification, generation, reconstruction.

A method of a task that returns None is an ability that the task does not have.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.core.dataset import Dataset
from pipeline.core.noise import Noise
from pipeline.core.task import Batch, Task
from pipeline.errors import BadInput, DarkroomError
from pipeline.evaluation import averages, classification, figures, reconstruction
from pipeline.evaluation.averages import Estimate
from pipeline.evaluation.distances import BATCH, ReferenceSet
from pipeline.evaluation.features import FeatureSpace
from pipeline.evaluation.progress import Progress
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import write_text

Measured = dict[str, Estimate | float]
NUM_SAMPLE_ROWS = 8


def diverged(name: str, what: str) -> DarkroomError:
    """The error for a model with values that are not finite."""
    remedy = f"its training diverged: lower its learning rate, then dvc repro train-{name}"
    return DarkroomError(what, where=name, remedy=remedy)


@dataclass
class Evaluator:
    """Measures models on the test split of ``dataset``. Tables and figures are written to ``plots``."""

    settings: EvaluationSettings
    dataset: Dataset
    tasks: Mapping[str, Task]
    digests: Mapping[str, str]
    plots: Path
    progress: Progress = field(default_factory=Progress)

    @cached_property
    def num_samples(self) -> int:
        return self.settings.num_samples or len(self.dataset.test)

    @cached_property
    def reference_set(self) -> ReferenceSet:
        name = self.settings.classifier
        if name not in self.tasks:
            where, remedy = f"params.yaml: evaluate.classifier: {name}", f"dvc repro train-{name}"
            raise BadInput("no trained classifier to compare images by", where=where, remedy=remedy)
        space = FeatureSpace.of_classifier(name, self.tasks[name], self.digests[name])
        return ReferenceSet(self.settings, self.dataset, space, self.num_samples, self.progress)

    def protocol(self) -> dict[str, Any]:
        """What every metric depends on, apart from the models."""
        protocol = {
            "seed": self.settings.seed,
            "interval": "95 %",
            "data_digest": self.dataset.digest,
            "test_images": len(self.dataset.test),
            "reference_split": self.settings.reference_split,
            "generated_images": self.num_samples,
            "bootstrap_rounds": self.settings.num_bootstrap,
            "neighbours": self.settings.num_neighbours,
            "noise_sigma": self.settings.noise_sigma,
            "models": dict(sorted(self.digests.items())),
        }
        if "reference_set" in self.__dict__:  # it was used
            space, reference = self.reference_set.space, self.reference_set.reference
            protocol |= {
                "feature_network": space.name,
                "feature_network_digest": space.digest,
                "feature_dimensions": reference.shape[1],
                "reference_images": len(reference),
                "floor_images": len(self.reference_set.real),
                "feature_scale": self.reference_set.scale,
            }
        return protocol

    def evaluate(self, name: str, task: Task) -> Measured:
        """All metrics of one model. The general ones take precedence over the model's own."""
        measured = {
            **self._classification(name, task),
            **self._generation(name, task),
            **self._reconstruction(name, task),
        }
        own = self._own_measures(task)
        return measured | {quantity: value for quantity, value in own.items() if quantity not in measured}

    def _own_measures(self, task: Task) -> Measured:
        """Averages of the per-example values that the model itself computes, such as its losses."""
        values: dict[str, list[np.ndarray]] = {}
        for index, batch in enumerate(self._test(task, "the model's own measures")):
            noise = Noise.whole(self.settings.seed, len(batch), "test", index, task.device)
            for quantity, each in task.evaluate(batch, noise).items():
                assert isinstance(each, Tensor)
                values.setdefault(quantity, []).append(each.double().cpu().numpy())
        return {quantity: averages.mean(batches) for quantity, batches in sorted(values.items())}

    def _classification(self, name: str, task: Task) -> Measured:
        answers = [task.classify(batch.images) for batch in self._test(task, "classification")]
        if any(answer is None for answer in answers):
            return {}
        logits = torch.cat([answer for answer in answers if answer is not None]).double().cpu().numpy()
        labels, names = np.asarray(self.dataset.test.labels), list(self.dataset.class_names)
        table = classification.by_class(logits, labels, names)
        write_text(self.plots / "tables" / f"{name}.csv", table.to_csv(index=False))
        counts = classification.confusion(logits, labels)
        figures.draw_confusion(counts, names, self.plots / "pictures" / f"{name}-confusion.png")
        if name == self.settings.classifier:
            predicted = logits.argmax(axis=1)
            rows = pd.DataFrame({"actual": labels, "predicted": predicted}).map(lambda label: names[label])
            write_text(self.plots / "confusion.csv", rows.to_csv(index=False))
        return dict(classification.measures(logits, labels))

    def _generation(self, name: str, task: Task) -> Measured:
        class_names = self.dataset.class_names
        columns = figures.columns(len(class_names))
        grid_labels = np.tile(columns, NUM_SAMPLE_ROWS)
        drawn = self._generate(task, grid_labels, "pictures")
        if drawn is None:
            return {}
        # It uses the labels if the same noise and other labels give other images.
        shifted = self._generate(task, (grid_labels + 1) % len(class_names), "pictures")
        conditional = shifted is not None and not torch.equal(drawn, shifted)
        grid = drawn.reshape(NUM_SAMPLE_ROWS, len(columns), *drawn.shape[1:])
        names = [class_names[label] for label in columns] if conditional else []
        figures.save_grid(grid, self.plots / "pictures" / f"{name}-samples.png", columns=names)

        labels = same_mix(self.dataset.test.labels, self.num_samples)
        agreed: list[np.ndarray] = []
        classifier = self.reference_set.space

        def batches() -> Iterator[Tensor]:
            starts = range(0, len(labels), BATCH)
            tracked = self.progress.track(starts, "generated images: batches", len(starts))
            for index, start in enumerate(tracked):
                wanted = labels[start : start + BATCH]
                images = self._generate(task, wanted, "samples", index)
                assert images is not None
                if conditional:
                    answers = self.tasks[classifier.name].classify(images.to(classifier.device))
                    agreed.extend([] if answers is None else [answers.argmax(dim=1).cpu().numpy() == wanted])
                yield images

        measured: Measured = dict(self.reference_set.measures(_finite(batches(), name)))
        if agreed:
            agreement = averages.proportion(np.concatenate(agreed))
            measured["label_agreement"] = agreement.with_floor(self._classifier_accuracy)
        return measured

    def _generate(self, task: Task, labels: np.ndarray, phase: str, index: int = 0) -> Tensor | None:
        noise = Noise.whole(self.settings.seed, len(labels), phase, index, task.device)
        return task.generate(torch.from_numpy(labels).to(task.device), len(labels), noise)

    @cached_property
    def _classifier_accuracy(self) -> float:
        task = self.tasks[self.settings.classifier]
        hits = []
        for batch in self._test(task, "accuracy of the classifier"):
            logits = task.classify(batch.images)
            assert logits is not None
            hits.append(logits.argmax(dim=1) == batch.labels)
        return float(torch.cat(hits).double().mean())

    @cached_property
    def _mean_image(self) -> np.ndarray:
        chunks = self.dataset.train.chunks(BATCH)
        total = np.add.reduce([rows["image"].astype(np.float64).sum(axis=0) for rows in chunks])
        return total / (255 * len(self.dataset.train))  # (C, H, W)

    def _reconstruction(self, name: str, task: Task) -> Measured:
        first = self._test_images(task, np.arange(1))
        if task.reconstruct(first) is None:
            return {}
        self._draw_reconstructions(name, task)
        measured: Measured = {}
        code = task.encode(first)
        if code is not None:
            measured["compression_ratio"] = reconstruction.compression_ratio(first, code)
        values: dict[str, list[np.ndarray]] = {}

        def add(quantity: str, each: Tensor, floor: Tensor) -> None:
            values.setdefault(quantity, []).append(each.cpu().numpy())
            values.setdefault(f"{quantity}_floor", []).append(floor.cpu().numpy())

        def batches() -> Iterator[Tensor]:
            for index, batch in enumerate(self._test(task, "reconstructed images")):
                images, rebuilt = batch.images, task.reconstruct(batch.images)
                assert rebuilt is not None
                trivial = torch.from_numpy(self._mean_image).to(images).expand_as(images)
                for quantity, compare in (
                    ("mse", reconstruction.squared_error),
                    ("psnr", reconstruction.psnr),
                    ("ssim", reconstruction.ssim),
                ):
                    add(quantity, compare(images, rebuilt.clamp(0, 1)), compare(images, trivial))
                pairs = self._restored(task, images, "restoration", index)
                for restoration, (damaged, restored) in pairs.items():
                    psnr = reconstruction.psnr(images, restored.clamp(0, 1))
                    add(f"{restoration}_psnr", psnr, reconstruction.psnr(images, damaged))
                yield rebuilt

        compared = self.reference_set.measures(_finite(batches(), name))
        for quantity, each in values.items():
            if not quantity.endswith("_floor"):
                floor = averages.mean(values[f"{quantity}_floor"]).value
                measured[quantity] = averages.mean(each).with_floor(floor)
        return measured | {f"reconstruction_{quantity}": estimate for quantity, estimate in compared.items()}

    def _restored(
        self, task: Task, images: Tensor, phase: str, index: int = 0
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Damaged images and the model's restorations, by the name of the restoration."""
        noise = Noise.whole(self.settings.seed, len(images), phase, index, task.device)
        pairs = {}
        for restoration, damaged in reconstruction.damaged(images, self.settings.noise_sigma, noise).items():
            restored = task.reconstruct(damaged)
            assert restored is not None
            pairs[restoration] = (damaged, restored)
        return pairs

    def _draw_reconstructions(self, name: str, task: Task) -> None:
        shown = figures.one_of_each(np.asarray(self.dataset.test.labels))
        images = self._test_images(task, shown)
        rebuilt = task.reconstruct(images)
        assert rebuilt is not None
        rows = {"original": images, "reconstructed": rebuilt}
        for restoration, (damaged, restored) in self._restored(task, images, "pictures").items():
            rows |= {f"to be {restoration}": damaged, restoration: restored}
        path = self.plots / "pictures" / f"{name}-reconstructions.png"
        names = [self.dataset.class_names[label] for label in self.dataset.test.labels[shown]]
        figures.save_grid(torch.stack(list(rows.values())), path, columns=names, rows=list(rows))

    def _test_images(self, task: Task, indices: np.ndarray) -> Tensor:
        return self.dataset.test.batch(indices, task.device).images

    def _test(self, task: Task, purpose: str) -> Iterator[Batch]:
        batches, total = self.dataset.test.batches(BATCH, task.device), -(-len(self.dataset.test) // BATCH)
        yield from self.progress.track(batches, f"{purpose}: batches", total)


def same_mix(labels: np.ndarray, count: int) -> np.ndarray:
    """``count`` labels with the same share of each class as in ``labels`` (N,), to within one."""
    by_class = np.argsort(labels, kind="stable")
    evenly_spaced = (2 * np.arange(count) + 1) * len(labels) // (2 * count)
    return labels[np.sort(by_class[evenly_spaced])]


def _finite(batches: Iterator[Tensor], name: str) -> Iterator[Tensor]:
    for images in batches:
        if not images.isfinite().all():
            raise diverged(name, "makes images whose pixels are not finite")
        yield images
