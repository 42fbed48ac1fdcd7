"""Evaluates models on the test split and writes metrics, curves, tables and figures.

Headline metrics go to ``metrics/evaluation.json``, which ``dvc metrics`` shows, all metrics to
``metrics/details.json``, the rest to ``plots/``. The same models, data and settings give the same bytes.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.core.abilities import Ability, abilities
from pipeline.core.dataset import Dataset
from pipeline.core.task import Task
from pipeline.errors import BadInput
from pipeline.evaluation import figures, glossary, warnings
from pipeline.evaluation.context import Context, diverged
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.history import curves
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import atomic_folder, write_json, write_text
from pipeline.params import suggestion
from pipeline.progress import PROGRESS

ONE_CLASS = (
    "the data has one class: nothing is classified, and images are compared by the features of a classifier "
    "with nearly random weights"
)
PROTOCOL = "protocol"  # the key of the results that is not a model
GENERAL = {"seed", "num_bootstrap", "num_neighbours", "noise_sigma"}  # settings on which results depend


def evaluate(
    settings: EvaluationSettings,
    datasets: Mapping[str, Dataset],
    tasks: Mapping[str, Task],
    digests: Mapping[str, str],
    *,
    history: Path = Path("history"),
    metrics: Path = Path("metrics"),
    plots: Path = Path("plots"),
) -> dict[str, dict[str, Any]]:
    """Evaluate ``tasks`` (by model name, in evaluation mode, on any device) on the test splits of their data.

    With ``settings.models`` it measures these alone; the others may be needed to compare images.

    Returns ``{model: {quantity: parts}, "protocol": {model: {...}}, "warnings": {model: [...]}}``, which is
    also written to ``details.json``. The parts are those of an ``Estimate``. The values of the headline
    quantities are written to ``evaluation.json``.

    Raises ``BadInput`` if there are too few images or no feature space, ``DarkroomError`` if a metric is not
    finite.
    """
    with atomic_folder(plots) as folder, torch.inference_mode():
        context = Context(settings, datasets, tasks, digests, folder)
        if unknown := sorted(set(settings.models) - tasks.keys()):
            remedy = suggestion(unknown[0], sorted(tasks), "choose from")
            raise BadInput(f"no trained model '{unknown[0]}'", where="evaluate.models", remedy=remedy)
        models = [context.of(name) for name in sorted(settings.models or tasks)]
        for model in filter(_compares, models):
            model.feature_space()  # raises BadInput before anything is measured
        if any(model.one_class for model in models):
            print(ONE_CLASS, flush=True)
        results: dict[str, dict[str, Any]] = {}
        for number, model in enumerate(models, 1):
            start = time.monotonic()
            PROGRESS.start(model.name)
            results[model.name] = _evaluate(model)
            seconds = time.monotonic() - start
            PROGRESS.print(f"measured in {seconds:.1f} s ({number} of {len(models)} models)")
            _write_curves(model, history / model.name)
        headlines = {
            name: {
                quantity: parts["value"]
                for quantity, parts in measured.items()
                if glossary.measure(quantity).headline
            }
            for name, measured in results.items()
        }
        results[PROTOCOL] = {model.name: _protocol(model) for model in models}
        found = warnings.find(
            results,
            {model.name: model.classifier for model in models},
            {model.name: len(model.dataset.train) for model in models},
        )
        for warned in found.values():
            for warning in warned:
                print(f"warning: {warning['what']}\n  -> {warning['remedy']}", flush=True)
        results[warnings.WARNINGS] = found
        write_json(metrics / "details.json", results)
        write_json(metrics / "evaluation.json", {name: each for name, each in headlines.items() if each})
    return results


def protocol_of(results: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The protocol of one model without the model itself.

    Only metrics with the same protocol can be compared.
    """
    return {key: value for key, value in results[PROTOCOL][name].items() if key != "model_digest"}


def applying(model: Context) -> list[Evaluator]:
    """The evaluators that measure a model."""
    if model.one_class and Ability.CLASSIFY in abilities(model.task):
        return []  # every measure of a classifier would be perfect
    return [each for each in glossary.EVALUATORS if each.needs is None or each.needs in model.abilities]


def _compares(model: Context) -> bool:
    return any(each.compares for each in applying(model))


def _evaluate(model: Context) -> dict[str, dict[str, float]]:
    for evaluator in applying(model):
        with PROGRESS.part(evaluator.evaluate.__module__.rpartition(".")[2]):
            found = evaluator.evaluate(model)
        for quantity, estimate in found.items():
            model.measured.setdefault(quantity, estimate)  # a general measure precedes the model's own
    measured = {quantity: estimate.to_json() for quantity, estimate in model.measured.items()}
    for quantity, parts in measured.items():
        if not all(map(math.isfinite, parts.values())):
            raise diverged(model.name, f"{quantity} is not finite")
    return measured


def _protocol(model: Context) -> dict[str, Any]:
    """What the results of a model depend on."""
    data = model.dataset
    untrained = {"untrained": True} if model.one_class else {}
    return {
        **model.settings.model_dump(include=GENERAL),
        "model_digest": model.digests[model.name],
        "dataset": model.task.dataset,
        "data_digest": data.digest,
        "test_examples": len(data.test),
        **({"features": model.reference_set.protocol() | untrained} if _compares(model) else {}),
    }


def _write_curves(model: Context, history: Path) -> None:
    """Draw the curves of a training, and write a file of ``step`` and ``value`` for each metric.

    In a single table, ``dvc plots`` would draw the blank cells of metrics that are measured less often as 0.
    """
    table = curves(history)
    if table is None:
        return
    for metric in table.columns.drop("step"):
        curve = table[["step", metric]].dropna().set_axis(["step", "value"], axis=1)
        write_text(model.plots / "curves" / model.name / f"{metric}.csv", curve.to_csv(index=False))
    figures.draw_curves(table, model.picture("curves"))
