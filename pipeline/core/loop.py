"""The training loop. It is the same for every model."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from pipeline.core.best_model import BestModel
from pipeline.core.checkpoint import CheckpointStore, load_state_dict, state_dict, with_prefix
from pipeline.core.dataset import Dataset
from pipeline.core.determinism import allow_tf32
from pipeline.core.distributed import DistributedContext
from pipeline.core.ema import ExponentialMovingAverage
from pipeline.core.feed import make_feed
from pipeline.core.image_grid import to_bytes, write_png
from pipeline.core.lr_schedule import learning_rate_factor
from pipeline.core.memory_format import use_channels_last
from pipeline.core.metrics_log import MetricsLog
from pipeline.core.noise import Noise
from pipeline.core.sampler import Sampler
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.core.task import Batch, Ratio, Task, mean_ratio
from pipeline.divergence import check_finite

EVALUATION_BATCH, EVALUATION_VALUES = 512, 2**27  # most examples, and most values, in a batch
NUM_SAMPLES = 64


class Loop:
    """Trains one model; each worker runs one loop.

    ``folder`` belongs to this training and holds checkpoints/, metrics.jsonl and samples/. If it has
    checkpoints, the training resumes from the newest. Only rank 0 writes. ``report`` is called with the
    metrics on every worker at each checkpoint, and not more often: Ray Train accepts one report per health
    check (five a second) and blocks the workers until it does.
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
        allow_tf32(settings.tf32)
        self.task, self.sum_dtype = task.to(self.context.device), torch.float64
        if self.context.device.type == "mps":  # without float64, and slow with this layout
            self.sum_dtype = torch.float32
        else:
            use_channels_last(self.task)
        self.data, self.settings, self.folder, self.report = data, settings, folder, report
        values = sum(int(np.prod(field.shape)) for field in data.spec.fields.values())  # of an example
        self.evaluation_batch = max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // values))
        self.task.on_train_start(data.train)
        self.average = ExponentialMovingAverage(self.task, settings.ema_decay)
        self.phases = self.task.phases()
        self.step = Step(self.task, self.phases, settings, self.context)
        labels = data.train.labels if settings.sampling == "balanced" else None
        self.sampler = Sampler(settings.seed, data.train.shard_sizes, settings.batch_size, labels)
        rows = slice(*self.context.rows(settings.batch_size))
        self.feed = make_feed(data.train, self.context.device, lambda step: self.sampler.indices(step)[rows])
        self.checkpoints = CheckpointStore(folder / "checkpoints")
        self.best = BestModel(settings)
        self.seconds: dict[str, float] = defaultdict(float)
        # Step, name and value of the metrics since the last log entry, and that entry's step and time.
        self._window: list[tuple[int, str, Tensor]] = []
        self._since = (0, time.perf_counter())
        self.num_steps_taken = 0  # without those before the checkpoint it resumed from

    def run(self) -> Task:
        """Train to the last step, from the newest checkpoint if there is one; return the averaged model.

        ``patience`` may end it earlier; with ``keep: best`` the model of the best validation is returned.
        """
        settings, first = self.settings, self._resume()
        log = MetricsLog(self.folder / "metrics.jsonl") if self.context.rank == 0 else None
        if log and first == 0:
            self._draw(0)  # the initial weights, for MLflow's step slider
        self._since = (first, time.perf_counter())
        number = first
        while number < settings.num_steps and not self.best.exhausted:
            number += 1
            with self._timed("data"):
                batch, noise = self._batch(number)
            with self._timed("compute"):
                taken = self.step.run(number, batch, noise)
                self._window += [(number, f"train/{name}", value) for name, value in taken.items()]
                self.average.update(number)
            last = number == settings.num_steps
            validated = self._validate() if last or number % settings.validate_every == 0 else {}
            if validated:
                self.best.update(number, validated, self.average.task)
                last = last or self.best.exhausted
            save = last or number % settings.checkpoint_every == 0
            # Each checkpoint empties the window, so that a resumed training logs the same means.
            logged = save or number % settings.log_every == 0
            metrics = (self._training_metrics(number) if logged else {}) | validated
            check_finite(number, metrics | (self._largest_weights() if save else {}), self._window)
            if logged:
                self._window.clear()
            if metrics and log:
                with self._timed("logging"):
                    log.add(number, metrics)
            if log and (last or number % settings.sample_every == 0):
                self._draw(number)
            if log and save:
                with self._timed("checkpoint"):
                    self.checkpoints.save(number, self._state_dict())
            if save:
                with self._timed("logging"):
                    self.report(metrics)
        self.num_steps_taken = number - first
        self.best.restore(self.average.task)
        self.average.task.on_train_end(self.data.train.batches(self.evaluation_batch, self.context.device))
        self.average.task.calibrate(self.data.validation.batches(self.evaluation_batch, self.context.device))
        return self.average.task

    def _state_dict(self) -> dict[str, Tensor]:
        best = {f"best/{name}": value for name, value in self.best.state_dict().items()}
        return state_dict(self.average, self.phases) | self.step.state_dict() | best

    def _resume(self) -> int:
        """Load the newest checkpoint on all workers; return its step, or 0.

        Rank 0 reads it and broadcasts it, so the other workers need no access to its disk and start from the
        same state.
        """
        latest = self.context.broadcast(self.checkpoints.latest() if self.context.rank == 0 else None)
        if latest is None:
            return 0
        step, state = latest
        load_state_dict(state, self.average, self.phases)
        self.step.load_state_dict(state)
        self.best.load_state_dict(with_prefix("best/", state))
        return step

    def _batch(self, number: int) -> tuple[Batch, Noise]:
        seed, total, device = self.settings.seed, self.settings.batch_size, self.context.device
        return self.feed(number), Noise(seed, number, "", *self.context.rows(total), total, device)

    def _training_metrics(self, number: int) -> dict[str, float]:
        half = self.settings.precision == "float16"  # the values of skipped steps are NaN
        with self._timed("compute"):  # this waits for the device and the other workers
            names = sorted({name for _, name, _ in self._window})  # empty if no phase ran in these steps
            mean = torch.nanmean if half else torch.mean
            # Of the loss scale, the last value: it shows an overflow that does not end.
            series = {name: [value for _, own, value in self._window if own == name] for name in names}
            windows = [values[-1 if name.endswith("loss_scale") else 0 :] for name, values in series.items()]
            means = [mean(torch.stack(values)).to(self.sum_dtype) for values in windows]
            sums = self.context.all_reduce(torch.stack(means)) if names else torch.zeros(0)
            values = (sums / self.context.size).tolist()
        before, began = self._since
        self._since = (number, time.perf_counter())
        rate = (number - before) * self.settings.batch_size / max(1e-9, self._since[1] - began)
        factor = learning_rate_factor(self.settings.schedule, number, self.settings.num_steps)
        measured = {key: value for key, value in zip(names, values) if not (half and isnan(value))}
        return measured | {"train/learning_rate_factor": factor, "system/images_per_second": rate}

    def _largest_weights(self) -> dict[str, float]:
        modules = {f"the largest weight of {phase.name}": phase.module for phase in self.phases}
        return {name: float(get_total_norm(each.parameters(), torch.inf)) for name, each in modules.items()}

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """The metrics of the averaged model: sums over the validation split, divided once."""
        with self._timed("validation"):
            rank, size, device = self.context.rank, self.context.size, self.context.device
            sums: dict[str, Tensor] = {}  # by metric: numerators and denominators, (2, ...)
            batches = self.data.validation.batches(self.evaluation_batch, device, first=rank, every=size)
            for index, batch in enumerate(batches):
                chunk = index * size + rank
                noise = Noise.whole(self.settings.seed, len(batch), "validation", chunk, device)
                for name, values in self.average.task.evaluate(batch, noise).items():
                    ratio = values if isinstance(values, Ratio) else Ratio(values, torch.ones_like(values))
                    parts = torch.stack([part.to(self.sum_dtype).sum(0) for part in ratio])
                    sums[name] = sums[name] + parts if name in sums else parts
            totals = self._sum_over_workers({name: parts.cpu() for name, parts in sums.items()})
            return {f"validation/{name}": mean_ratio(*parts) for name, parts in totals.items()}

    def _sum_over_workers(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.context.size == 1:
            return sums
        gathered: list[dict[str, Tensor]] = [{} for _ in range(self.context.size)]
        torch.distributed.all_gather_object(gathered, sums)
        names = sorted({name for part in gathered for name in part})  # a worker without a batch has none
        return {name: torch.stack([part[name] for part in gathered if name in part]).sum(0) for name in names}

    @torch.no_grad()
    def _draw(self, number: int) -> None:
        """Write the model's preview, from the same noise and examples at each step."""
        with self._timed("samples"):
            # Examples are sorted by class: take some from all over the split.
            rows = np.linspace(0, len(self.data.validation) - 1, NUM_SAMPLES).astype(np.int64)
            examples = self.data.validation.batch(rows, self.context.device)
            noise = Noise.whole(self.settings.seed, NUM_SAMPLES, "samples", device=self.context.device)
            preview = self.average.task.preview(examples, noise)
            if preview is not None:
                pixels = to_bytes(preview.images.float().cpu().numpy())
                write_png(self.folder / f"samples/step-{number:08d}.png", pixels, preview.columns)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - began
