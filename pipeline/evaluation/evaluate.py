"""Measures every model by what it can do: a classifier's answers, a generator's images, an autoencoder's reconstructions.

What a task can do shows in what it returns; None is "cannot". The headline numbers go to ``metrics/evaluation.json``, which
``dvc metrics`` shows, all numbers to ``metrics/details.json``, and curves, tables and pictures to ``plots/``. The same
models, data and settings give the same bytes.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.core.noise import Noise
from pipeline.core.task import Batch, Task
from pipeline.errors import BadInput, DarkroomError
from pipeline.evaluation import averages, classification, figures, glossary, reconstruction
from pipeline.evaluation.averages import Estimate
from pipeline.evaluation.distances import BATCH, ReferenceSet
from pipeline.evaluation.features import FeatureSpace
from pipeline.evaluation.history import curves
from pipeline.evaluation.progress import Progress
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import atomic_folder, write_json, write_text

Measured = dict[str, Estimate | float]
NUM_PICTURED_ROWS = 8
HEADLINES = "evaluation.json"
DETAILS = "details.json"


def evaluate(
    settings: EvaluationSettings,
    dataset: Any,
    tasks: Mapping[str, Task],
    digests: Mapping[str, str],
    *,
    history: Path = Path("history"),
    metrics: Path = Path("metrics"),
    plots: Path = Path("plots"),
) -> dict[str, dict[str, Any]]:
    """Measure ``tasks`` (by model name, on whatever device they are, in evaluation mode) on the test split of ``dataset``.

    Returns ``{model: {metric: value}, "protocol": {...}}`` and writes it to ``metrics/details.json``; a metric with a 95 %
    interval also has ``_low`` and ``_high``, one with a baseline ``_floor``. The headline metrics (see ``glossary``) are also
    written, by model and without intervals, to ``metrics/evaluation.json``. Raises ``BadInput`` where there are too few images
    or no feature space, and ``DarkroomError`` for a model whose numbers are not finite.
    """
    with atomic_folder(plots) as folder, torch.inference_mode():
        evaluation = _Evaluation(settings, dataset, tasks, digests, folder)
        results: dict[str, dict[str, Any]] = {}
        print(f"measuring {', '.join(sorted(tasks))} on {len(dataset.test):,} test images", flush=True)
        for number, name in enumerate(sorted(tasks), 1):
            start, evaluation.progress.name = time.monotonic(), name
            results[name] = _flat(name, evaluation.of(name, tasks[name]))
            evaluation.progress.print(
                f"measured in {time.monotonic() - start:.1f} s ({number} of {len(tasks)} models)"
            )
        results["protocol"] = evaluation.protocol()
        for name in sorted(tasks):
            table = curves(history / name)
            if table is not None:
                _write_curves(table, folder / "curves" / name)
                figures.curve_sheet(table, folder / "pictures" / f"{name}-curves.png")
        write_json(metrics / DETAILS, results)
        write_json(metrics / HEADLINES, headlines(results))
    return results


def headlines(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The headline numbers of ``results``, by model: few enough for the tables of ``dvc metrics show`` and ``dvc exp show``."""
    chosen = {
        name: {metric: values[metric] for metric in glossary.HEADLINES if metric in values}
        for name, values in results.items()
        if name != "protocol"
    }
    return {name: values for name, values in chosen.items() if values}


def protocol_of(results: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """What the numbers of one model depend on besides itself: only those of one protocol can be compared."""
    spaces = (
        () if "fid" in results[name] else ("feature_", "reference_", "floor_", "generated_")
    )  # no feature space has a part in them
    return {
        key: value
        for key, value in results["protocol"].items()
        if key != "models" and not (spaces and key.startswith(spaces))
    }


@dataclass
class _Evaluation:
    settings: EvaluationSettings
    dataset: Any
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
            raise BadInput(
                "no trained classifier to compare images by",
                where=f"params.yaml: evaluate.classifier: {name}",
                remedy=f"dvc repro train-{name}",
            )
        space = FeatureSpace.of_classifier(name, self.tasks[name], self.digests[name])
        return ReferenceSet(self.settings, self.dataset, space, self.num_samples, self.progress)

    def protocol(self) -> dict[str, Any]:
        """What every number depends on besides the models."""
        said = {
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
        if "reference_set" in self.__dict__:
            space, reference, real = (
                self.reference_set.space,
                self.reference_set.reference,
                self.reference_set.real,
            )
            said |= {
                "feature_network": space.name,
                "feature_network_digest": space.digest,
                "feature_dimensions": reference.shape[1],
            }
            said |= {
                "reference_images": len(reference),
                "floor_images": len(real),
                "feature_scale": self.reference_set.scale,
            }
        return said

    def of(self, name: str, task: Task) -> Measured:
        """All that can be measured of one model."""
        measured = {
            **self._classified(name, task),
            **self._generated(name, task),
            **self._reconstructed(name, task),
        }
        return {
            **measured,
            **{quantity: value for quantity, value in self._own(task).items() if quantity not in measured},
        }

    def _own(self, task: Task) -> Measured:
        """The averages of the model's own per-example values, its losses among them."""
        values: dict[str, list[np.ndarray]] = {}
        for index, batch in enumerate(self._test(task, "the model's own measures")):
            noise = Noise.whole(self.settings.seed, len(batch), "test", index, task.device)
            for quantity, each in task.evaluate(batch, noise).items():
                values.setdefault(quantity, []).append(each.double().cpu().numpy())
        return {quantity: averages.mean(batches) for quantity, batches in sorted(values.items())}

    def _classified(self, name: str, task: Task) -> Measured:
        answers = [task.classify(batch.images) for batch in self._test(task, "classification")]
        if any(answer is None for answer in answers):
            return {}
        logits = torch.cat([answer for answer in answers if answer is not None]).double().cpu().numpy()
        labels, names = np.asarray(self.dataset.test.labels), list(self.dataset.class_names)
        write_text(
            self.plots / "tables" / f"{name}.csv",
            classification.by_class(logits, labels, names).to_csv(index=False),
        )
        figures.confusion(
            classification.confusion(logits, labels), names, self.plots / "pictures" / f"{name}-confusion.png"
        )
        if name == self.settings.classifier:
            rows = pd.DataFrame(
                {
                    "actual": [names[label] for label in labels],
                    "predicted": [names[label] for label in logits.argmax(axis=1)],
                }
            )
            write_text(self.plots / "confusion.csv", rows.to_csv(index=False))
        return dict(classification.measures(logits, labels))

    def _generated(self, name: str, task: Task) -> Measured:
        columns = figures.columns(len(self.dataset.class_names))
        sheet = np.tile(columns, NUM_PICTURED_ROWS)
        pictured = self._generate(task, sheet, "pictures")
        if pictured is None:
            return {}
        shifted = self._generate(task, (sheet + 1) % len(self.dataset.class_names), "pictures")
        conditional = shifted is not None and not torch.equal(
            pictured, shifted
        )  # the same noise, other classes, other images
        grid = pictured.reshape(NUM_PICTURED_ROWS, len(columns), *pictured.shape[1:])
        names = [self.dataset.class_names[label] for label in columns] if conditional else []
        figures.save_grid(grid, self.plots / "pictures" / f"{name}-samples.png", columns=names)

        labels = same_mix(self.dataset.test.labels, self.num_samples)
        agreed: list[np.ndarray] = []
        classifier = self.reference_set.space

        def batches() -> Iterator[Tensor]:
            starts = range(0, len(labels), BATCH)
            for index, start in enumerate(
                self.progress.track(starts, "generated images: batches", len(starts))
            ):
                wanted = labels[start : start + BATCH]
                images = self._generate(task, wanted, "samples", index)
                assert images is not None
                if conditional:
                    answers = self.tasks[classifier.name].classify(images.to(classifier.device))
                    agreed.extend([] if answers is None else [answers.argmax(dim=1).cpu().numpy() == wanted])
                yield images

        measured: Measured = dict(self.reference_set.measures(_finite(batches(), name)))
        if agreed:
            measured["label_agreement"] = averages.proportion(np.concatenate(agreed)).beside(
                self._classifier_accuracy
            )
        return measured

    def _generate(self, task: Task, labels: np.ndarray, phase: str, index: int = 0) -> Tensor | None:
        noise = Noise.whole(self.settings.seed, len(labels), phase, index, task.device)
        return task.generate(torch.from_numpy(labels).to(task.device), len(labels), noise)

    @cached_property
    def _classifier_accuracy(self) -> float:
        task = self.tasks[self.settings.classifier]
        batches = self._test(task, "accuracy of the classifier")
        hits = [task.classify(batch.images).argmax(dim=1) == batch.labels for batch in batches]  # type: ignore[union-attr]
        return float(torch.cat(hits).double().mean())

    @cached_property
    def _mean_image(self) -> np.ndarray:
        total = sum(images.astype(np.float64).sum(axis=0) for images, _ in self.dataset.train.chunks(BATCH))
        return total / (255 * len(self.dataset.train))  # (C, H, W)

    def _reconstructed(self, name: str, task: Task) -> Measured:
        values: dict[str, list[np.ndarray]] = {}
        measured: Measured = {}

        def note(quantity: str, each: Tensor) -> None:
            values.setdefault(quantity, []).append(each.cpu().numpy())

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
                    note(quantity, compare(images, rebuilt.clamp(0, 1)))
                    note(f"{quantity}_floor", compare(images, trivial))
                for restoration, (damaged, restored) in self._restored(
                    task, images, "restoration", index
                ).items():
                    note(f"{restoration}_psnr", reconstruction.psnr(images, restored.clamp(0, 1)))
                    note(f"{restoration}_psnr_floor", reconstruction.psnr(images, damaged))
                yield rebuilt

        first = self._test_images(task, np.arange(1))
        if task.reconstruct(first) is None:
            return {}
        self._draw_reconstructions(name, task)
        code = task.encode(first)
        if code is not None:
            measured["compression_ratio"] = reconstruction.compression_ratio(first, code)
        compared = self.reference_set.measures(_finite(batches(), name))
        for quantity, each in values.items():
            if not quantity.endswith("_floor"):
                measured[quantity] = averages.mean(each).beside(
                    averages.mean(values[f"{quantity}_floor"]).value
                )
        return {
            **measured,
            **{f"reconstruction_{quantity}": estimate for quantity, estimate in compared.items()},
        }

    def _restored(
        self, task: Task, images: Tensor, phase: str, index: int = 0
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Damaged images and their restorations by the model, by the name of the restoration."""
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
        images, labels = self.dataset.test.rows(indices)
        return Batch.of(images, labels, task.device).images

    def _test(self, task: Task, purpose: str) -> Iterator[Batch]:
        total = -(-len(self.dataset.test) // BATCH)
        for images, labels in self.progress.track(
            self.dataset.test.chunks(BATCH), f"{purpose}: batches", total
        ):
            yield Batch.of(images, labels, task.device)


def same_mix(labels: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the ``labels`` (N,), fewer or more than there are: each class has its share of them, to within one."""
    by_class = np.argsort(labels, kind="stable")
    evenly_spaced = (2 * np.arange(count) + 1) * len(labels) // (2 * count)
    return labels[np.sort(by_class[evenly_spaced])]


def _write_curves(table: pd.DataFrame, folder: Path) -> None:
    """A file of ``step`` and ``value`` for each metric: in one table, the blank cells of a metric that is measured less often
    than others would be drawn as 0 by ``dvc plots``."""
    for metric in table.columns.drop("step"):
        curve = table[["step", metric]].dropna().set_axis(["step", "value"], axis=1)
        write_text(folder / f"{metric}.csv", curve.to_csv(index=False))


def _finite(batches: Iterator[Tensor], name: str) -> Iterator[Tensor]:
    for images in batches:
        if not images.isfinite().all():
            raise DarkroomError(
                "makes images whose pixels are not finite",
                where=name,
                remedy=f"its training diverged: lower its learning rate, then dvc repro train-{name}",
            )
        yield images


def _flat(name: str, measured: Measured) -> dict[str, Any]:
    flat: dict[str, float] = {}
    for quantity, value in measured.items():
        flat |= value.flat(quantity) if isinstance(value, Estimate) else {quantity: float(value)}
    for quantity, number in flat.items():
        if not math.isfinite(number):
            raise DarkroomError(
                f"{quantity} is not finite",
                where=name,
                remedy=f"its training diverged: lower its learning rate, then dvc repro train-{name}",
            )
    return flat
