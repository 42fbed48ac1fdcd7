"""Compare Darkroom's loop with a bare PyTorch loop of the same model, settings and data, in one process.

    python benchmarks/loop.py [--models cnn gan vae ae] [--rounds 10] [--seconds 4]

Prints images/s and their ratios, the medians over rounds, for digits with the settings of params.yaml.
Darkroom's loop logs ten times in each run; the bare loops do not log, validate or save. One of them takes the
same examples and random numbers as Darkroom; the other draws its own with PyTorch's generator (``bare_rate``
in gpu_speed.py), so that its order of the data cannot be resumed or shared among workers.
"""

import argparse
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_speed import INTERVALS, bare_rate, in_turns, loop_rate, now, num_steps
from harness import digits
from torch import nn

from pipeline.core import model_files
from pipeline.core.batch import Batch
from pipeline.core.dataset import Dataset
from pipeline.core.determinism import make_deterministic
from pipeline.core.noise import Noise
from pipeline.core.sampler import Sampler
from pipeline.core.settings import ScheduleSettings, TrainingSettings, read_training
from pipeline.process import keep_freed_memory


def same_rate(
    name: str, data: Dataset, settings: TrainingSettings, config: Any, device: torch.device
) -> float:
    """Images per second of a plain loop that takes the steps of Darkroom's loop."""
    task = model_files.build(name, config, data.spec, settings.seed).to(memory_format=torch.channels_last)
    average = [parameter.detach().clone() for parameter in task.parameters()]
    phases, order = task.phases(), Sampler(settings.seed, (len(data.train),), settings.batch_size)
    (stored,) = data.train.chunks(len(data.train))
    began, warm = 0.0, settings.num_steps // INTERVALS
    for step in range(1, settings.num_steps + 1):
        rows = order.indices(step)
        batch = Batch.load({field: values[rows] for field, values in stored.items()}, data.spec)
        for phase in phases:
            if phase.num_runs(step - 1, step):
                task.requires_grad_(False)
                phase.module.requires_grad_(True)
                phase.optimizer.zero_grad()
                loss, _ = task.loss(
                    phase.name, batch, Noise.whole(settings.seed, len(rows), phase.name, step)
                )
                loss.backward()
                nn.utils.clip_grad_norm_(phase.module.parameters(), settings.clip_norm or math.inf)
                phase.optimizer.step()
        torch._foreach_lerp_(average, list(task.parameters()), 1 - settings.ema_decay)
        if step == warm:
            began = now(device)
    return (settings.num_steps - warm) * settings.batch_size / (now(device) - began)


def short(settings: TrainingSettings, num_steps: int) -> TrainingSettings:
    """``settings`` with ``num_steps`` and a constant learning rate, without validations before the end."""
    last = dict.fromkeys(("validate_every", "sample_every", "checkpoint_every"), num_steps)
    log = {"log_every": num_steps // INTERVALS, "schedule": ScheduleSettings()}
    return settings.model_copy(update={"num_steps": num_steps, **last, **log})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cnn", "gan", "vae", "ae"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4)
    given = parser.parse_args()
    make_deterministic(torch.get_num_threads())
    keep_freed_memory()
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        base = digits(Path(folder), None)
        data = Dataset.open(base / "data/processed/images")
        for name in given.models:
            settings, config = read_training(name, model_files.find(name).Config, base / "params.yaml")
            rate = bare_rate(name, data, short(settings, 10 * INTERVALS), config, device)
            run = short(settings, num_steps(rate, settings.batch_size, given.seconds))
            ways = {
                label: partial(function, name, data, run, config, device)
                for label, function in (("Darkroom", loop_rate), ("same", same_rate), ("own", bare_rate))
            }
            rates, ratios = in_turns(ways, given.rounds)
            print(
                f"{name}: {rates['Darkroom']:,.0f} images/s; bare loop with the same examples and noise "
                f"{rates['same']:,.0f}, Darkroom/bare {1 / ratios['same']:.3f}; with PyTorch's generator "
                f"{rates['own']:,.0f}, {1 / ratios['own']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
