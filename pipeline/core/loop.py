"""The loop that trains every model: it knows steps, phases and splits, and nothing of what a model is."""

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.checkpoint import CheckpointStore, restore, state_of
from pipeline.core.dataset import Dataset, Split
from pipeline.core.distributed import DistributedContext
from pipeline.core.ema import ExponentialMovingAverage
from pipeline.core.feed import feed
from pipeline.core.image_grid import to_bytes, write_png
from pipeline.core.lr_schedule import learning_rate_factor
from pipeline.core.metrics_log import Record, check_finite
from pipeline.core.noise import Noise
from pipeline.core.sampler import Sampler
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.core.task import Batch, Phase, Task

EVALUATION_BATCH = 512
SAMPLES = 64
NUM_TRIALS = 5  # of an all-reduce, to measure it


class Loop:
    """One worker's part of one training.

    ``folder`` is the training's own: checkpoints/, metrics.jsonl and samples/ lie there, and a repeated training goes on
    from what it finds. Only worker 0 writes. ``report`` is called with each checkpoint's metrics, on every worker: Ray Train takes at most
    one in each of its health checks, five in a second, and lets the workers wait for it.
    """

    def __init__(
        self,
        task: Task,
        data: Dataset,
        settings: TrainingSettings,
        folder: Path,
        context: DistributedContext | None = None,
        report: Callable[[dict[str, float]], None] = lambda metrics: None,
    ) -> None:
        self.context = context or DistributedContext()
        self.task = task.to(self.context.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # a third faster
        self.data, self.settings, self.folder, self.report = data, settings, folder, report
        self.average = ExponentialMovingAverage(self.task, settings.ema_decay)
        self.phases = self.task.phases()
        self.step = Step(self.task, self.phases, settings, self.context)
        self.sampler = Sampler(settings.seed, data.train.shard_sizes, settings.batch_size)
        rows = slice(*self.context.rows(settings.batch_size))
        self.feed = feed(data.train, self.context.device, lambda step: self.sampler.indices(step)[rows])
        self.checkpoints = CheckpointStore(folder / "checkpoints")
        self.seconds: dict[str, float] = defaultdict(float)
        self._window: dict[str, list[Tensor]] = defaultdict(list)
        self._since = (0, time.perf_counter())
        self.num_taken = 0  # steps by this very loop

    def run(self) -> Task:
        """Train to the last step, from the newest checkpoint if there is one; return the finished (averaged) model."""
        settings, first = self.settings, self._resume()
        self.num_taken = settings.num_steps - first
        record = Record(self.folder / "metrics.jsonl") if self.context.rank == 0 else None
        if self.context.size > 1 and self.num_taken:
            dues = [settings.num_steps // phase.every - first // phase.every for phase in self.phases]
            self.seconds["communication"] = sum(
                due * self._all_reduce(phase) for phase, due in zip(self.phases, dues, strict=True)
            )
        if record and first == 0:
            self._draw(0)  # the initial weights: MLflow's slider of pictures starts at step 0
        self._since = (first, time.perf_counter())
        for number in range(first + 1, settings.num_steps + 1):
            with self._timed("data"):
                batch, noise = self._batch(number)
            with self._timed("compute"):
                for name, value in self.step.run(number, batch, noise).items():
                    self._window[name].append(value)
                self.average.update(number)
            last = number == settings.num_steps
            saves = last or number % settings.checkpoint_every == 0
            metrics: dict[str, float] = {}
            if (
                saves or number % settings.log_every == 0
            ):  # a checkpoint empties the window, so that a resumed one is equal
                metrics |= self._training_metrics(number)
            if last or number % settings.validate_every == 0:
                metrics |= self._validate()
            check_finite(number, metrics)
            if metrics and record:
                with self._timed("logging"):
                    record.add(number, metrics)
            if record and (last or number % settings.sample_every == 0):
                self._draw(number)
            if record and saves:
                with self._timed("checkpoint"):
                    self.checkpoints.save(number, state_of(self.average, self.phases))
            if saves:
                with self._timed("logging"):
                    self.report(metrics)
        self.average.task.on_train_end(self._training_split())
        return self.average.task

    def _resume(self) -> int:
        """What worker 0 finds is sent to all: they need not see its checkpoints, and cannot go on from different ones."""
        found = self.context.broadcast(self.checkpoints.latest() if self.context.rank == 0 else None)
        if found is None:
            return 0
        step, state = found
        restore(state, self.average, self.phases)
        return step

    def _all_reduce(self, phase: Phase) -> float:
        """Seconds that these workers take to sum one gradient of ``phase``, and nothing else: the median of a few, after one as a barrier.

        In a step it overlaps with the backward pass, and a slower worker is waited for: see it as a part of "compute".
        """
        gradient = torch.zeros(
            sum(parameter.numel() for parameter in phase.module.parameters()), device=self.context.device
        )
        marks = []
        for _ in range(1 + NUM_TRIALS):
            self.context.all_reduce(gradient)[:1].tolist()  # which waits for the device
            marks.append(time.perf_counter())
        return statistics.median(after - before for before, after in itertools.pairwise(marks))

    def _batch(self, number: int) -> tuple[Batch, Noise]:
        total = self.settings.batch_size
        return self.feed(number), Noise(
            self.settings.seed, number, "", *self.context.rows(total), total, self.context.device
        )

    def _training_metrics(self, number: int) -> dict[str, float]:
        with self._timed("compute"):  # waiting for the device and the other workers
            names = sorted(self._window)
            means = [torch.stack(self._window[name]).mean().double() for name in names]
            values = (
                (self.context.all_reduce(torch.stack(means)) / self.context.size).tolist() if names else []
            )  # no phase may have been due
            self._window.clear()
        before, began = self._since
        self._since = (number, time.perf_counter())
        rate = (number - before) * self.settings.batch_size / max(1e-9, self._since[1] - began)
        factor = learning_rate_factor(self.settings.schedule, number, self.settings.num_steps)
        measured = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        return measured | {"train/learning_rate_factor": factor, "system/images_per_second": rate}

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Per-example values of the averaged model, summed over the validation split and divided once."""
        with self._timed("validation"):
            sums: dict[str, Tensor] = {}
            for chunk, batch in enumerate(_batches(self.data.validation, self.context.device)):
                if chunk % self.context.size == self.context.rank:
                    noise = Noise.whole(
                        self.settings.seed, len(batch), "validation", chunk, self.context.device
                    )
                    for name, values in self.average.task.evaluate(batch, noise).items():
                        sums[name] = (
                            sums.get(name, torch.zeros((), dtype=torch.float64, device=self.context.device))
                            + values.double().sum()
                        )
            if self.context.size > 1:
                sums = self._sum_over_workers(sums)
            return {
                f"validation/{name}": float(value) / len(self.data.validation) for name, value in sums.items()
            }

    def _sum_over_workers(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        everyones: list[dict[str, Tensor]] = [{} for _ in range(self.context.size)]
        torch.distributed.all_gather_object(everyones, {name: float(value) for name, value in sums.items()})
        names = sorted(
            {name for one in everyones for name in one}
        )  # a small split leaves some workers without a batch
        return {
            name: torch.tensor(sum(float(one.get(name, 0.0)) for one in everyones), dtype=torch.float64)
            for name in names
        }

    @torch.no_grad()
    def _draw(self, number: int) -> None:
        """A grid from the same latents, classes and originals each time: pictures that can be compared by step."""
        with self._timed("samples"):
            task, device = self.average.task, self.context.device
            classes, columns = task.spec.classes, 8
            if 2 <= classes <= 16:
                columns = classes * max(1, 10 // classes)  # each column shows one class
            labels = torch.arange(SAMPLES, device=device) % classes
            drawn = task.generate(
                labels, SAMPLES, Noise.whole(self.settings.seed, SAMPLES, "samples", device=device)
            )
            if drawn is None:
                spread = np.linspace(0, len(self.data.validation) - 1, SAMPLES // 2).astype(
                    np.int64
                )  # files lie sorted by class
                images, _ = self.data.validation.rows(spread)
                originals = Batch.of(images, np.zeros(len(images), np.int64), device).images
                restored = task.reconstruct(originals)
                columns = 8  # even: an original and its reconstruction stay in one row
                drawn = None if restored is None else torch.stack([originals, restored], 1).flatten(0, 1)
            if drawn is not None:
                path = self.folder / "samples" / f"step-{number:08d}.png"
                write_png(
                    path, to_bytes(drawn.float().cpu().numpy())[: SAMPLES // columns * columns], columns
                )

    def _training_split(self) -> Iterator[Batch]:
        return _batches(self.data.train, self.context.device)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - began


def _batches(split: Split, device: torch.device) -> Iterator[Batch]:
    for images, labels in split.chunks(EVALUATION_BATCH):
        yield Batch.of(images, labels, device)
