"""Usage of processors, memory, disk, network and GPUs during a training, named as in MLflow's UI."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.core.metrics_log import MetricsLog

INTERVAL_SECONDS = 10.0


class SystemMetrics:
    """A listener that appends to system.jsonl. GPUs are sampled if pynvml is installed.

    The step is the number of the sample; a resumed training continues counting.
    """

    def __init__(self) -> None:
        self.monitors: list[Any] = []
        self.sampled_at = float("-inf")

    def __call__(self, folder: Path) -> None:
        """Sample if ``INTERVAL_SECONDS`` have passed. The first call only prepares the monitors."""
        if time.monotonic() - self.sampled_at < INTERVAL_SECONDS:
            return
        if not self.monitors:
            self.monitors, self.log = _monitors(), MetricsLog(folder / "system.jsonl")
            return
        self.sampled_at = time.monotonic()
        metrics: dict[str, float] = {}
        for monitor in self.monitors:
            monitor.collect_metrics()
            metrics |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        with suppress(OSError):  # a full disk is reported by the training itself
            self.log.add(self.log.last_step + 1, metrics)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(Exception):  # the errors for no pynvml, no driver and no GPU differ
        monitors.append(GPUMonitor())
    monitors[0].collect_metrics()  # the first reading of the CPU is always 0
    monitors[0].clear_metrics()
    return monitors
