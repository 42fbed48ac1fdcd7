"""What a training asks of its machine, sampled into system.jsonl by the names under which MLflow's UI shows it."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

EVERY_SECONDS = 10.0


class SystemMetrics:
    """A listener that samples processors, memory, disk, network and, where pynvml is installed, GPUs of this machine.

    The time of a sample is its moment; its step counts on when the training is repeated.
    """

    def __init__(self) -> None:
        self.monitors: list[Any] = []
        self.sampled, self.step = float("-inf"), 0

    def __call__(self, folder: Path) -> None:
        """Sample, if the last time was long enough ago."""
        if time.monotonic() - self.sampled < EVERY_SECONDS:
            return
        path = folder / "system.jsonl"
        if not self.monitors:
            self.monitors = _monitors()
            self.step = path.read_bytes().count(b"\n") if path.exists() else 0
            return
        self.sampled = time.monotonic()
        metrics: dict[str, float] = {}
        for monitor in self.monitors:
            monitor.collect_metrics()
            metrics |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        self.step += 1
        with open(path, "a", encoding="utf-8") as file:
            file.write(
                json.dumps({"step": self.step, "time": time.time_ns() // 1_000_000, "metrics": metrics})
                + "\n"
            )


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(Exception):  # no pynvml, no driver, no GPU: each says so in a way of its own
        monitors.append(GPUMonitor())
    monitors[0].collect_metrics()  # the processors' first reading is always 0
    monitors[0].clear_metrics()
    return monitors
