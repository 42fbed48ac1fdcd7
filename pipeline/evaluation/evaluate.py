"""Evaluates models on the test split and writes metrics, curves, tables and figures.

Headline metrics go to ``metrics/evaluation.json``, which ``dvc metrics`` shows, all metrics to
``metrics/details.json``, the rest to ``plots/``. The same models, data and settings give the same bytes.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline.core.dataset import Dataset
from pipeline.core.task import Task
from pipeline.evaluation import figures, glossary
from pipeline.evaluation.averages import Estimate
from pipeline.evaluation.evaluator import Evaluator, Measured, diverged
from pipeline.evaluation.history import curves
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import atomic_folder, write_json, write_text

HEADLINES = "evaluation.json"
DETAILS = "details.json"


def evaluate(
    settings: EvaluationSettings,
    dataset: Dataset,
    tasks: Mapping[str, Task],
    digests: Mapping[str, str],
    *,
    history: Path = Path("history"),
    metrics: Path = Path("metrics"),
    plots: Path = Path("plots"),
) -> dict[str, dict[str, Any]]:
    """Evaluate ``tasks`` (by model name, in evaluation mode, on any device) on the test split of ``dataset``.

    Returns ``{model: {metric: value}, "protocol": {...}}``, which is also written to ``details.json``. A
    metric with a 95 % interval also has ``_low`` and ``_high``, one with a baseline ``_floor``. The headline
    metrics (see ``glossary``) are written to ``evaluation.json``, without intervals.

    Raises ``BadInput`` if there are too few images or no feature space, ``DarkroomError`` if a metric is not
    finite.
    """
    with atomic_folder(plots) as folder, torch.inference_mode():
        evaluator = Evaluator(settings, dataset, tasks, digests, folder)
        results: dict[str, dict[str, Any]] = {}
        print(f"measuring {', '.join(sorted(tasks))} on {len(dataset.test):,} test images", flush=True)
        for number, name in enumerate(sorted(tasks), 1):
            start, evaluator.progress.name = time.monotonic(), name
            results[name] = _flat(name, evaluator.evaluate(name, tasks[name]))
            seconds = time.monotonic() - start
            evaluator.progress.print(f"measured in {seconds:.1f} s ({number} of {len(tasks)} models)")
        results["protocol"] = evaluator.protocol()
        for name in sorted(tasks):
            table = curves(history / name)
            if table is not None:
                _write_curves(table, folder / "curves" / name)
                figures.draw_curves(table, folder / "pictures" / f"{name}-curves.png")
        write_json(metrics / DETAILS, results)
        write_json(metrics / HEADLINES, headlines(results))
    return results


def headlines(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The headline metrics of ``results`` by model, few enough for the table of ``dvc metrics show``."""
    chosen = {
        name: {metric: values[metric] for metric in glossary.HEADLINES if metric in values}
        for name, values in results.items()
        if name != "protocol"
    }
    return {name: values for name, values in chosen.items() if values}


def protocol_of(results: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The part of the protocol that the metrics of one model depend on.

    Only metrics with the same protocol can be compared.
    """
    unused: tuple[str, ...] = ("models",)
    if "fid" not in results[name]:  # nothing of this model was measured in a feature space
        unused += ("feature_", "reference_", "floor_", "generated_")
    return {key: value for key, value in results["protocol"].items() if not key.startswith(unused)}


def _write_curves(table: pd.DataFrame, folder: Path) -> None:
    """Write a file of ``step`` and ``value`` for each metric.

    In a single table, ``dvc plots`` would draw the blank cells of metrics that are measured less often as 0.
    """
    for metric in table.columns.drop("step"):
        curve = table[["step", metric]].dropna().set_axis(["step", "value"], axis=1)
        write_text(folder / f"{metric}.csv", curve.to_csv(index=False))


def _flat(name: str, measured: Measured) -> dict[str, Any]:
    flat: dict[str, float] = {}
    for quantity, value in measured.items():
        flat |= value.flat(quantity) if isinstance(value, Estimate) else {quantity: float(value)}
    for quantity, number in flat.items():
        if not math.isfinite(number):
            raise diverged(name, f"{quantity} is not finite")
    return flat
