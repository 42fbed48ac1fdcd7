"""Reads the history that a training wrote: metrics and sample grids by step, seconds by part."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core import metrics_log
from pipeline.errors import DarkroomError
from pipeline.files import HASHES, check_hashes, read_json

LOG = "metrics.jsonl"


def check(folder: Path) -> None:
    """Raise ``DarkroomError`` if a file of the history was changed after the training."""
    if found := check_hashes(folder):
        remedy = f"restore it (rm -rf {folder} && dvc checkout {folder}) or dvc repro -f train-{folder.name}"
        raise DarkroomError(f"does not match {HASHES}", where=str(folder / found[0]), remedy=remedy)


def curves(folder: Path) -> pd.DataFrame | None:
    """A row for each step and a column for each metric, with blank cells; None without a history."""
    rows: dict[int, dict[str, float]] = {}
    for line in metrics_log.read(folder / LOG):
        rows.setdefault(line["step"], {}).update(line["metrics"])
    if not rows:
        return None
    table = pd.DataFrame([{"step": step, **rows[step]} for step in sorted(rows)])
    return table[["step", *sorted(set(table.columns) - {"step"})]]


def ended(folder: Path) -> int:
    """The time of the last record, in milliseconds since 1970; 0 without a history."""
    return max((line["time"] for line in metrics_log.read(folder / LOG)), default=0)


def samples(folder: Path, limit: int) -> dict[int, Path]:
    """At most ``limit`` sample grids by step, evenly chosen, with the first and the last."""
    found = {
        int(match[1]): path
        for path in folder.glob("samples/step-*.png")
        if (match := re.fullmatch(r"step-(\d+)", path.stem))
    }
    steps = sorted(found)
    if len(steps) > limit:
        steps = [steps[round(index * (len(steps) - 1) / (limit - 1))] for index in range(limit)]
    return {step: found[step] for step in steps}


def times(folder: Path) -> dict[str, Any]:
    """``times.json``: seconds by part of the training, "total", and other facts; {} without that file."""
    path = folder / "times.json"
    return read_json(path) if path.is_file() else {}
