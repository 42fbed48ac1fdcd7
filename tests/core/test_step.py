"""One training step, compared with a calculation by hand on a task of two scalars."""

import itertools

import pytest
import torch

from pipeline.core.checkpoint import state_dict
from pipeline.core.distributed import DistributedContext
from pipeline.core.ema import ExponentialMovingAverage
from pipeline.core.noise import Noise
from pipeline.core.settings import ScheduleSettings, TrainingSettings
from pipeline.core.step import Step
from pipeline.core.task import Phase
from tests.arrays import batch_of
from tests.core.fake import TwoScalars

BATCH = batch_of(torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64))


def take(settings, numbers=(1,), task=None):
    task = task or TwoScalars()
    step = Step(task, task.phases(), settings, DistributedContext())
    metrics = [step.run(number, BATCH, Noise.whole(0, 4, step=number)) for number in numbers]
    return task, metrics


def test_each_phase_moves_its_own_scalar_and_no_other():
    task, _ = take(TrainingSettings(), (2,))
    assert task.up.value.item() == pytest.approx(1 - 0.1 * 0.5)
    assert task.down.value.item() == pytest.approx(5 - 0.1 * (5 - 0.95))  # with the updated `up`


def test_a_phase_runs_on_the_steps_that_are_its_multiples():
    task, metrics = take(TrainingSettings(), (1,))
    assert task.down.value.item() == 5 and "down/loss" not in metrics[0]
    task, metrics = take(TrainingSettings(), (1, 2))
    assert task.down.value.item() != 5 and "down/loss" in metrics[1]


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({}, range(1, 11)),
        ({"first": 4}, range(4, 11)),
        ({"last": 3}, (1, 2, 3)),
        ({"every": 3}, (3, 6, 9)),
        ({"every": 2, "first": 3, "last": 8}, (4, 6, 8)),
    ],
)
def test_a_phase_runs_from_its_first_to_its_last_step(values, steps):
    phase = Phase("a", None, None, **values)
    assert [number for number in range(1, 11) if phase.num_runs(number - 1, number)] == list(steps)
    for after, until in itertools.combinations(range(11), 2):
        assert phase.num_runs(after, until) == len([number for number in steps if after < number <= until])


def test_a_phase_may_have_a_schedule_of_its_own():
    task = TwoScalars()
    linear = ScheduleSettings(kind="linear", final=0.0)
    optimizer = torch.optim.SGD(task.up.parameters(), 0.1)
    task.phases = lambda: [Phase("up", task.up, optimizer, first=5, last=8, schedule=linear)]
    take(TrainingSettings(num_steps=20), (6,), task)
    assert task.up.value.item() == pytest.approx(1 - 0.1 * 0.5 * 0.5)  # half of its steps are done


def test_phases_may_share_a_module_and_its_optimizer_whose_state_is_saved_once():
    task = TwoScalars()
    optimizer = torch.optim.SGD(task.up.parameters(), 0.1, momentum=0.5)
    phases = [Phase("up", task.up, optimizer), Phase("again", task.up, optimizer, every=2)]
    task.phases, task.loss = lambda: phases, lambda *given: TwoScalars.loss(task, "up", *given[1:])
    take(TrainingSettings(), (2,), task)
    assert task.up.value.item() == pytest.approx(1 - 0.1 * 0.5 - 0.1 * (0.5 + 0.5 * 0.5))
    saved = state_dict(ExponentialMovingAverage(task, 0.0), phases)
    assert [name for name in saved if name.startswith("optimizer/")] == ["optimizer/up/0/momentum_buffer"]


def test_a_parameter_that_a_loss_does_not_depend_on_has_a_gradient_of_zero():
    """As with several workers: a momentum moves it on, also when its gradient is not defined."""
    task = TwoScalars()
    optimizer = torch.optim.SGD(task.up.parameters(), 0.1, momentum=0.5)
    phases = [Phase("up", task.up, optimizer), Phase("constant", task.up, optimizer)]
    task.phases = lambda: phases
    up = lambda batch: (task.up.value * batch.images.mean()).sum()
    task.loss = lambda phase, batch, noise: (
        up(batch) if phase == "up" else torch.zeros((), requires_grad=True).clone(),
        {},
    )
    take(TrainingSettings(), (1,), task)
    assert task.up.value.item() == pytest.approx(1 - 0.1 * 0.5 - 0.1 * 0.5 * 0.5)


def test_clipping_bounds_the_gradients_norm_and_reports_the_unclipped():
    task, metrics = take(TrainingSettings(clip_norm=0.01))
    assert task.up.value.item() == pytest.approx(1 - 0.1 * 0.01, abs=1e-6)
    assert metrics[0]["up/gradient_norm"].item() == pytest.approx(0.5)


def test_l1_and_l2_pull_towards_zero():
    assert take(TrainingSettings(l1=0.3))[0].up.value.item() == pytest.approx(1 - 0.1 * (0.5 + 0.3))
    assert take(TrainingSettings(l2=0.3))[0].up.value.item() == pytest.approx(1 - 0.1 * (0.5 + 2 * 0.3))


def test_the_logged_loss_is_without_the_penalty():
    assert take(TrainingSettings(l1=0.3))[1][0]["up/loss"].item() == pytest.approx(0.5)


def test_the_schedule_scales_the_learning_rate():
    settings = TrainingSettings(num_steps=10, schedule=ScheduleSettings(kind="linear", final=0.0))
    assert take(settings, (5,))[0].up.value.item() == pytest.approx(1 - 0.05 * 0.5)


def test_the_average_follows_with_a_ramped_decay():
    task = TwoScalars()
    average = ExponentialMovingAverage(task, 0.9)
    with torch.no_grad():
        task.up.value.fill_(2.0)
    average.update(1)  # the decay is (1 + 1) / (10 + 1)
    assert average.task.up.value.item() == pytest.approx(1 * 2 / 11 + 2 * 9 / 11)
    average.update(10_000)
    assert average.task.up.value.item() == pytest.approx((1 * 2 / 11 + 2 * 9 / 11) * 0.9 + 2 * 0.1)


def test_without_averaging_the_average_is_the_last_weights():
    task = TwoScalars()
    average = ExponentialMovingAverage(task, 0.0)
    with torch.no_grad():
        task.up.value.fill_(2.0)
    average.update(1)
    assert average.task.up.value.item() == 2.0


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    task, seen = TwoScalars(), []

    def loss(phase, batch, noise):
        product = task.up.value @ torch.ones(1, 1)
        seen.append(product.dtype)
        return product.sum(), {}

    task.loss = loss
    step = Step(task, task.phases(), TrainingSettings(precision="bfloat16"), DistributedContext())
    step.run(1, BATCH, Noise.whole(0, 4, step=1))
    assert seen == [torch.bfloat16] and task.up.value.dtype == torch.float32


def test_workers_share_a_batch_without_gap_or_overlap():
    for total, size in ((64, 3), (7, 2), (5, 5)):
        rows = [DistributedContext(rank, size).rows(total) for rank in range(size)]
        assert (
            rows[0][0] == 0
            and rows[-1][1] == total
            and all(a[1] == b[0] for a, b in itertools.pairwise(rows))
        )
