"""For gpu.py: the speed of Darkroom's loop and of a bare PyTorch loop, in images per second."""

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core import metrics_log, model_files
from pipeline.core.batch import Batch
from pipeline.core.dataset import Dataset
from pipeline.core.distributed import DistributedContext
from pipeline.core.loop import Loop
from pipeline.core.settings import TrainingSettings

INTERVALS = 10  # a measured training is logged so often
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class DeviceNoise:
    """Random numbers from the device's own generator, with the methods of ``pipeline.core.noise.Noise``."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.total, self.device = count, device

    def normal(self, name: str, *shape: int) -> Tensor:
        return torch.randn(self.total, *shape, device=self.device)

    def uniform(self, name: str, *shape: int) -> Tensor:
        return torch.rand(self.total, *shape, device=self.device)

    def integers(self, name: str, high: int, *shape: int) -> Tensor:
        return torch.randint(high, (self.total, *shape), device=self.device)


def training(steps: int, **changes: Any) -> TrainingSettings:
    """Settings of ``steps`` steps that validate, draw and save only after the last one."""
    last = dict.fromkeys(("validate_every", "sample_every", "checkpoint_every"), steps)
    return TrainingSettings(num_steps=steps, **{"log_every": max(1, steps // INTERVALS)} | last | changes)


def make_loop(
    name: str, data: Dataset, settings: TrainingSettings, config: Any, folder: Path, device: torch.device
) -> Loop:
    """Darkroom's loop for a new model in one process."""
    task = model_files.build(name, config, data.spec, settings.seed)
    return Loop(task, data, settings, folder, DistributedContext(device=device))


def loop_rate(
    name: str, data: Dataset, settings: TrainingSettings, config: Any, device: torch.device
) -> float:
    """Images per second of Darkroom's loop, between its first and its last log entry but one."""
    with tempfile.TemporaryDirectory() as folder:
        make_loop(name, data, settings, config, Path(folder), device).run()
        first, *_, before_last, _ = metrics_log.read(Path(folder) / "metrics.jsonl")
    num_images = (before_last["step"] - first["step"]) * settings.batch_size
    return num_images / max(1e-3, (before_last["time"] - first["time"]) / 1000)


def bare_rate(
    name: str, data: Dataset, settings: TrainingSettings, config: Any, device: torch.device
) -> float:
    """Images per second of a plain PyTorch loop with the same model, losses and optimizers.

    It also has the same batch size, precision and weight averaging. Examples and noise are drawn on the
    device. It has no log, checkpoint, schedule or fixed order of the data.
    """
    task = model_files.build(name, config, data.spec, settings.seed).to(device)
    task = task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = [parameter.detach().clone() for parameter in task.parameters()]
    phases, (rows,) = task.phases(), data.train.chunks(len(data.train))
    values = {field: torch.from_numpy(stored).to(device) for field, stored in rows.items()}
    noise, began = DeviceNoise(settings.batch_size, device), 0.0
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    warm = settings.num_steps // INTERVALS
    for step in range(1, settings.num_steps + 1):
        chosen = torch.randint(len(data.train), (settings.batch_size,), device=device)
        batch = Batch.load({field: stored[chosen] for field, stored in values.items()}, data.spec, device)
        for phase in phases:
            if phase.num_runs(step - 1, step) == 0:
                continue
            task.requires_grad_(False)
            phase.module.requires_grad_(True)
            phase.optimizer.zero_grad(set_to_none=True)
            with autocast(settings.precision, device):
                loss, _ = task.loss(phase.name, batch, noise)  # type: ignore[arg-type]
            scaler.scale(loss).backward()
            if settings.clip_norm:
                scaler.unscale_(phase.optimizer)
                nn.utils.clip_grad_norm_(phase.module.parameters(), settings.clip_norm)
            scaler.step(phase.optimizer)
        scaler.update()
        if settings.ema_decay:
            with torch.no_grad():
                torch._foreach_lerp_(average, list(task.parameters()), 1 - settings.ema_decay)
        if step == warm:
            began = now(device)
    return (settings.num_steps - warm) * settings.batch_size / (now(device) - began)


def autocast(precision: str, device: torch.device) -> Any:
    """The context of a forward pass."""
    return torch.autocast(device.type, DTYPES[precision]) if precision in DTYPES else nullcontext()


def now(device: torch.device) -> float:
    """The time after all work of the device is done, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def num_steps(rate: float, batch_size: int, seconds: float, most: int = 1_000_000) -> int:
    """The steps that take ``seconds`` at ``rate`` images per second: a multiple of ``INTERVALS``."""
    wanted = min(most, int(rate * seconds / batch_size))
    return max(3, wanted // INTERVALS) * INTERVALS


def in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """The median rate of each way, and the median over the rounds of its ratio to the first way.

    Every second round runs them in reverse order.
    """
    found: dict[str, list[float]] = {label: [] for label in ways}
    for number in range(rounds):
        for label in list(ways)[:: -1 if number % 2 else 1]:
            found[label].append(ways[label]())
    first = next(iter(found.values()))
    rates = {label: statistics.median(each) for label, each in found.items()}
    ratios = {
        label: statistics.median(one / other for one, other in zip(each, first, strict=True))
        for label, each in found.items()
    }
    return rates, ratios


@contextmanager
def gpu_share(device: torch.device) -> Iterator[list[float]]:
    """Collect the share of the GPU's time with a kernel running, as nvidia-smi samples it: [0, 1].

    The list is filled at the end of the block; it stays empty without a GPU or nvidia-smi.
    """
    samples: list[float] = []
    if device.type != "cuda" or not shutil.which("nvidia-smi"):
        yield samples
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    command += ["-i", f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        try:
            yield samples
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            output.seek(0)
            for line in output:
                with suppress(ValueError):
                    samples.append(float(line) / 100)
