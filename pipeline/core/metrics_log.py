"""metrics.jsonl: the metrics of a training, one line for each logged step. Lines are never changed."""

import json
import time
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends lines ``{"step", "time", "metrics"}`` (time in ms since the epoch).

    A resumed training repeats some steps with the same values. They are not written again, so a tracking
    server that reads this file gets each step once. A line that a crash cut short is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines, num_bytes = read_from(path)
        self.last_step = lines[-1]["step"] if lines else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "ab")  # noqa: SIM115 - open for the whole training
        self.file.truncate(num_bytes)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of ``step``, unless they were written before the training was resumed."""
        if step > self.last_step:
            line = json.dumps({"step": step, "time": time.time_ns() // 1_000_000, "metrics": metrics})
            self.file.write(line.encode() + b"\n")
            self.file.flush()
            self.last_step = step


def read(path: Path) -> list[dict[str, Any]]:
    """The complete lines of the log at ``path``, in order; empty if there is no file."""
    return read_from(path)[0]


def read_from(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete lines from byte ``offset`` on, and the byte at which they end."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        with open(path, "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break
                offset += len(line)
    return lines, offset
