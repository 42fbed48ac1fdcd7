"""Trainings that diverge stop on all workers, and their last finite checkpoint is kept."""

import math

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.checkpoint import CheckpointStore
from pipeline.core.loop import Loop
from pipeline.core.metrics_log import read
from pipeline.core.settings import TrainingSettings
from pipeline.divergence import Diverged, check_finite
from tests.arrays import ArrayDataset
from tests.core.fake import TwoScalars
from tests.models import variants
from tests.workers import together

SETTINGS = TrainingSettings(
    num_steps=20, batch_size=8, log_every=4, validate_every=20, sample_every=20, checkpoint_every=5
)
STEP = 6  # at which a loss becomes NaN: after the first checkpoint
PHASES = ("discriminator", "penalty", "generator")


class Undefined(torch.autograd.Function):
    """Zero, with a gradient of NaN."""

    @staticmethod
    def forward(ctx, value):
        return value * 0

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def gan():
    return model_files.build("gan", variants.ALL["gan/lazy_gradient_penalty"][1], ArrayDataset().spec, 0)


def diverging(task, phase, rank=0, size=1, gradient=False):
    """``task`` with a NaN in the loss of ``phase``, or in its gradient alone, at ``STEP`` on one worker."""
    plain = task.loss

    def loss(name, batch, noise):
        value, metrics = plain(name, batch, noise)
        if name == phase and noise.step == STEP and noise.start * size // noise.total == rank:
            value = value + Undefined.apply(value) if gradient else value * math.nan
        return value, metrics

    task.loss = loss
    return task


def check(folder):
    """The training in ``folder`` has a checkpoint of step 5 and nothing after it."""
    step, state = CheckpointStore(folder / "checkpoints").latest()
    assert step == 5 and all(value.isfinite().all() for value in state.values())
    lines = read(folder / "metrics.jsonl")
    assert lines[-1]["step"] == 5
    assert all(math.isfinite(value) for line in lines for value in line["metrics"].values())


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("gradient", [False, True])
def test_the_first_phase_and_step_that_are_not_finite_are_named(tmp_path, phase, gradient):
    """The other phases follow in the same interval, and the discriminator's name comes first."""
    what = "gradient_norm" if gradient else "loss"
    with pytest.raises(
        Diverged, match=f"the training diverged: train/{phase}/{what} is nan at step {STEP}\n"
    ):
        Loop(diverging(gan(), phase, gradient=gradient), ArrayDataset(), SETTINGS, tmp_path).run()
    check(tmp_path)


def _one_of_two(context, folder):
    for phase in PHASES:
        task = diverging(gan(), phase, rank=1, size=2)
        try:
            Loop(task, ArrayDataset(), SETTINGS, folder / phase, context).run()
        except Diverged as error:
            (folder / f"{phase} {context.rank}.txt").write_text(str(error))


@pytest.mark.slow
def test_all_workers_stop_when_a_loss_of_one_of_them_is_not_finite(tmp_path):
    together(2, _one_of_two, tmp_path)
    for phase in PHASES:
        for rank, what in enumerate(("gradient_norm", "loss")):  # rank 0 only sees the common gradient
            message = (tmp_path / f"{phase} {rank}.txt").read_text()
            assert f"the training diverged: train/{phase}/{what} is nan at step {STEP}\n" in message
        check(tmp_path / phase)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_checkpoint_with_weights_that_are_not_finite_is_not_written(tmp_path, value):
    """The loss and the gradient of the step itself are finite."""
    task = TwoScalars()
    loop = Loop(task, ArrayDataset(), SETTINGS, tmp_path)
    take = loop.step.run

    def run(number, batch, noise):
        metrics = take(number, batch, noise)
        if number == 10:
            task.down.value.data.fill_(value)
        return metrics

    loop.step.run = run
    with pytest.raises(Diverged, match=f"the largest weight of down is {value} at step 10\n"):
        loop.run()
    step, state = loop.checkpoints.latest()
    assert step == 5 and all(each.isfinite().all() for each in state.values())


def test_an_infinite_value_of_a_step_that_float16_took_is_named_and_a_skipped_step_is_not():
    window = [
        (1, "train/loss", torch.tensor(math.nan)),  # skipped
        (2, "train/loss", torch.tensor(2.0)),
        (3, "train/loss", torch.tensor(math.inf)),
        (3, "train/loss_scale", torch.tensor(1.0)),
    ]
    with pytest.raises(Diverged, match="train/loss is inf at step 3"):
        check_finite(4, {"train/loss": math.inf, "train/loss_scale": 1.0}, window)
    with pytest.raises(Diverged, match="train/loss is nan at step 1"):
        check_finite(4, {"train/loss": math.nan}, window[:3])  # not float16
    with pytest.raises(Diverged, match="validation/mse is inf at step 4"):
        check_finite(4, {"validation/mse": math.inf}, [*window[:2], window[3]])
    check_finite(4, {"train/loss": 1.0, "train/loss_scale": 1.0}, window[:2])
