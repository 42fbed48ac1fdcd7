"""The local truth of a training: metrics.jsonl, one line for each recorded step, written once and never changed."""

import json
import math
import time
from pathlib import Path
from typing import Any

from pipeline.errors import DarkroomError


class Diverged(DarkroomError):
    """The training's numbers are no longer finite."""


def check_finite(step: int, metrics: dict[str, float]) -> None:
    """Raise ``Diverged`` for NaN and infinity. All workers have the same metrics, so all of them stop."""
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise Diverged(
            f"the training diverged: {broken[0]} is not finite at step {step}",
            where="params.yaml",
            remedy="lower the learning rate or set clip_norm in params.yaml; the last checkpoint is whole",
        )


class Record:
    """Appends ``{"step", "time", "metrics"}`` lines (time in ms since the epoch).

    A repeated training makes the same values again; the first writing of a step stands, so that a tracking server that was
    fed from this file never sees a step twice. A line torn by a crash is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines, whole = _whole_lines(path)
        self.last_step = lines[-1]["step"] if lines else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "ab")  # noqa: SIM115 - held open for the whole training
        self.file.truncate(whole)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of ``step`` unless an earlier attempt did."""
        if step > self.last_step:
            line = json.dumps({"step": step, "time": time.time_ns() // 1_000_000, "metrics": metrics})
            self.file.write(line.encode() + b"\n")
            self.file.flush()
            self.last_step = step


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a record, in order; none where there is no file."""
    return _whole_lines(path)[0]


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    lines: list[dict[str, Any]] = []
    whole = 0
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
            whole += len(line)
    return lines, whole
