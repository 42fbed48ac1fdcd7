"""Precision: what float16 computes, how its steps are scaled, skipped, resumed and shared; TF32."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.determinism import make_deterministic
from pipeline.core.distributed import DistributedContext
from pipeline.core.loop import Loop
from pipeline.core.metrics_log import read
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.core.task import Phase
from pipeline.divergence import Diverged
from pipeline.launch import worker
from tests.arrays import ArrayDataset, batch_of
from tests.core.fake import TwoScalars
from tests.models import variants
from tests.project import ROOT
from tests.workers import together

BATCH = batch_of(torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64))
FLOAT16 = TrainingSettings(precision="float16")
SETTINGS = TrainingSettings(
    num_steps=12,
    batch_size=8,
    precision="float16",
    ema_decay=0.9,
    log_every=4,
    validate_every=6,
    sample_every=6,
    checkpoint_every=5,
)


class Overflowing(TwoScalars):
    """The gradient of `up` is infinite at the given steps, on one worker."""

    def __init__(self, steps, rank=0):
        super().__init__()
        self.steps, self.rank = steps, rank

    def loss(self, phase, batch, noise):
        loss, values = super().loss(phase, batch, noise)
        overflows = noise.step in self.steps and noise.start * 2 // noise.total == self.rank
        return loss * (torch.inf if overflows and phase == "up" else 1.0), values


def take(settings, numbers=(1,), task=None, **context):
    task = task or TwoScalars()
    step = Step(task, task.phases(), settings, DistributedContext(**context))
    return step, [step.run(number, BATCH, Noise.whole(0, 4, step=number)) for number in numbers]


def scales_of(step):
    """By phase, the loss scale and the number of steps since it changed."""
    return {name.removeprefix("scaler/"): pair.tolist() for name, pair in step.state_dict().items()}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_networks_compute_in_16_bits_and_keep_float32_weights(precision):
    task, seen = TwoScalars(), []

    def loss(phase, batch, noise):
        product = task.up.value @ torch.ones(1, 1)
        seen.append(product.dtype)
        return product.sum(), {}

    task.loss = loss
    take(TrainingSettings(precision=precision), (1,), task)
    assert seen == [getattr(torch, precision)] and task.up.value.dtype == torch.float32


def test_the_scaled_loss_gives_the_step_of_the_loss_also_if_clipped_or_computed_in_pieces():
    for settings, context, moved in (
        (FLOAT16, {}, 0.5),
        (FLOAT16, {"microbatch": 3}, 0.5),
        (FLOAT16.model_copy(update={"clip_norm": 0.01}), {"microbatch": 1}, 0.01),
    ):
        step, (metrics,) = take(settings, **context)
        assert step.task.up.value.item() == pytest.approx(1 - 0.1 * moved, abs=1e-6)
        assert metrics["up/gradient_norm"].item() == pytest.approx(0.5)
        assert metrics["up/loss"].item() == pytest.approx(0.5)
        assert metrics["up/skipped_fraction"] == 0 and metrics["up/loss_scale"] == 2**16


def test_small_gradients_that_float16_cannot_hold_are_kept_by_the_scale():
    """In float16 the smallest number above zero is 6e-8."""

    def loss(phase, batch, noise):
        return (step.task.up.value @ torch.ones(1, 1)).float().sum() * 1e-8, {}

    step, _ = take(FLOAT16, ())
    step.losses[0]._loss = loss
    metrics = step.run(1, BATCH, Noise.whole(0, 4, step=1))
    assert metrics["up/gradient_norm"].item() == pytest.approx(1e-8, rel=1e-3)


def test_an_overflow_skips_the_step_of_its_phase_and_halves_its_scale():
    step, metrics = take(FLOAT16, (1, 2, 3), Overflowing({2}))
    assert step.task.up.value.item() == pytest.approx(1 - 2 * 0.1 * 0.5)
    assert step.task.down.value.item() == pytest.approx(5 - 0.1 * (5 - 0.95))  # at step 2
    assert scales_of(step) == {"up": [2**15, 1], "down": [2**16, 1]}
    assert [m["up/skipped_fraction"].item() for m in metrics] == [0, 1, 0]
    assert all(metrics[1][name].isnan() for name in ("up/loss", "up/mean", "up/gradient_norm"))
    assert metrics[1]["down/loss"].isfinite()


def test_two_thousand_steps_without_overflow_double_the_scale_also_if_some_were_before_a_checkpoint():
    step, _ = take(FLOAT16)
    step.load_state_dict(step.state_dict() | {"scaler/up": torch.tensor([2.0**13, 1998])})
    for number, expected in ((2, [2**13, 1999]), (3, [2**14, 0])):
        step.run(number, BATCH, Noise.whole(0, 4, step=number))
        assert scales_of(step)["up"] == expected


def test_other_precisions_have_no_scale_and_skip_nothing():
    step, (metrics,) = take(TrainingSettings())
    assert step.state_dict() == {} and not any("scale" in name or "skipped" in name for name in metrics)


def plain(folder):
    return [
        {k: v for k, v in line["metrics"].items() if not k.startswith("system/")}
        for line in read(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("died_at", [3, 6, 7, 12])
def test_a_training_with_overflows_that_died_ends_like_an_uninterrupted_one(tmp_path, died_at):
    def train(folder, die=None):
        loop = Loop(Overflowing({1, 2, 7}), ArrayDataset(), SETTINGS, folder)
        run = loop.step.run

        def dying(number, *given):
            if number == die:
                raise InterruptedError
            return run(number, *given)

        loop.step.run = dying
        return loop.run().state_dict(), scales_of(loop.step)

    whole, scales = train(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(tmp_path / "cut", die=died_at)
    resumed, resumed_scales = train(tmp_path / "cut")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert scales == resumed_scales == {"up": [2**13, 5], "down": [2**16, 6]}
    assert plain(tmp_path / "whole") == plain(tmp_path / "cut")


def test_the_log_has_the_share_of_skipped_steps_and_the_means_of_the_others(tmp_path):
    data, settings = ArrayDataset(), SETTINGS.model_copy(update={"log_every": 2, "checkpoint_every": 12})
    loop = Loop(Overflowing({1, 2, 3}), data, settings, tmp_path)
    loop.run()
    first, second, third, *_ = plain(tmp_path)
    assert first["train/up/skipped_fraction"] == 1 and "train/up/loss" not in first
    assert second["train/up/skipped_fraction"] == 0.5 and third["train/up/skipped_fraction"] == 0
    seen = data.train.rows(loop.sampler.indices(4))["image"].mean() / 255
    assert second["train/up/mean"] == pytest.approx(seen, rel=1e-5)


def test_a_training_whose_every_step_overflows_has_diverged(tmp_path):
    settings = SETTINGS.model_copy(update={"num_steps": 60, "checkpoint_every": 60})
    with pytest.raises(Diverged, match=re.escape("train/up/loss_scale is")):
        Loop(Overflowing(range(100)), ArrayDataset(), settings, tmp_path).run()
    assert len(plain(tmp_path)) > 5


def test_a_gradient_penalty_in_float16_is_that_of_float32_and_has_its_own_scale():
    """The inner gradient is not scaled: it is about one for each example, far from the limits of float16."""
    adam = {"kind": "adam", "learning_rate": 1e-3, "beta1": 0.0}
    optimizers = {"generator_optimizer": adam, "discriminator_optimizer": adam}
    settings = variants.ALL["gan/lazy_gradient_penalty"][1] | {"architecture": "mlp"} | optimizers
    trained = []
    for precision in ("float32", "float16"):
        data, task = ArrayDataset(), model_files.build("gan", settings, ArrayDataset().spec, 0)
        step = Step(task, task.phases(), TrainingSettings(precision=precision), DistributedContext())
        if precision == "float16":  # with the first scale, 65536, a few steps would be skipped
            step.load_state_dict({name: pair / 64 for name, pair in step.state_dict().items()})
        metrics = {}
        for number in range(1, 9):
            metrics |= step.run(number, data.train.batch(range(32)), Noise.whole(0, 32, step=number))
        trained.append((metrics, torch.cat([value.flatten() for value in task.discriminator.parameters()])))
    (full, weights), (half, half_weights) = trained
    assert scales_of(step) == {"discriminator": [2**10, 8], "penalty": [2**10, 4], "generator": [2**10, 8]}
    assert half["penalty/loss"].item() == pytest.approx(full["penalty/loss"].item(), rel=0.1)
    assert (weights - half_weights).abs().max() < 6e-3  # twelve steps of 1e-3 by Adam were taken


@pytest.mark.parametrize("name", ["cnn", "gan", "vae", "ae"])
def test_each_model_trains_and_resumes_in_float16(tmp_path, name):
    def train(folder, steps):
        task = model_files.build(name, {}, ArrayDataset().spec, 0)
        settings = SETTINGS.model_copy(update={"num_steps": steps})
        return Loop(task, ArrayDataset(), settings, folder).run().state_dict()

    whole = train(tmp_path / "whole", 8)
    train(tmp_path / "cut", 5)
    resumed = train(tmp_path / "cut", 8)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert all(value.isfinite().all() for value in whole.values())


TOLERANCE = 5e-4  # measured after four steps, in which the weights move by up to 0.07: 4e-5
# Not adam: for a gradient near zero its step depends on the sign alone, which is that of the rounding.
MOMENTUM = {"kind": "momentum", "learning_rate": 0.05}


def _train(task, folder, context=None):
    torch.set_num_threads(1)
    settings = SETTINGS.model_copy(update={"num_steps": 4, "log_every": 1, "clip_norm": 1.0})
    loop = Loop(task, ArrayDataset(), settings, folder, context)
    return loop.run().state_dict(), scales_of(loop.step)


def _tasks():
    return {
        "cnn": model_files.build("cnn", {"optimizer": MOMENTUM}, ArrayDataset().spec, 0),
        "overflowing": Overflowing({2, 3}, rank=1),
    }


def _one_of_two(context, folder):
    for name, task in _tasks().items():
        pieces = replace(context, microbatch=3)
        trained = _train(task, folder / name / str(context.rank), pieces)
        torch.save(trained, folder / f"{name} {context.rank}.pt")


@pytest.mark.slow
def test_two_processes_skip_the_same_steps_and_train_the_model_of_one(tmp_path):
    together(2, _one_of_two, tmp_path)
    for name, task in _tasks().items():
        if name == "overflowing":
            task.rank = 0  # all rows are on one worker
        single, scales = _train(task, tmp_path / name / "single")
        parts = [torch.load(tmp_path / f"{name} {rank}.pt", weights_only=True) for rank in (0, 1)]
        for weights, own_scales in parts:
            assert own_scales == scales == parts[0][1]
            assert all(torch.equal(value, parts[0][0][key]) for key, value in weights.items())
            assert all((single[key] - value).abs().max() < TOLERANCE for key, value in weights.items())
    assert scales["up"] == [2**14, 1]  # the gradient was infinite on one worker only
    shares = [line["train/up/skipped_fraction"] for line in plain(tmp_path / "overflowing/0")]
    assert shares == [0, 1, 1, 0]


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_off_unless_the_setting_says_so(tmp_path, allowed):
    settings = TrainingSettings(num_steps=1, batch_size=8, **({"tf32": True} if allowed else {}))
    model_files.write(model_files.build("cnn", {}, ArrayDataset().spec, 0), tmp_path / "model", {})
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not allowed
    try:
        Loop(TwoScalars(), ArrayDataset(), settings, tmp_path).run()
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if allowed else "ieee")
        assert torch.backends.cudnn.conv.fp32_precision == ("tf32" if allowed else "none")
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")  # no error
        model_files.load(tmp_path / "model")  # as tracking does in a thread during a training
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def test_a_process_that_trains_nothing_uses_no_tf32():
    code = "import torch; from pipeline.core import model_files; print(torch.backends.cudnn.allow_tf32)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class NoNumber(TwoScalars):
    def loss(self, phase, batch, noise):
        loss, values = super().loss(phase, batch, noise)
        return loss, values | {"odd": torch.tensor(torch.nan if noise.step == 2 else 1.0)}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_metric_that_is_no_number_is_found_in_each_precision(tmp_path, precision):
    settings = SETTINGS.model_copy(update={"precision": precision})
    with pytest.raises(Diverged, match=r"train/up/odd is (nan|inf) at step 2"):
        Loop(NoNumber(), ArrayDataset(), settings, tmp_path).run()


def test_an_endless_overflow_is_found_before_a_checkpoint_has_its_scale(tmp_path):
    settings = SETTINGS.model_copy(update={"num_steps": 200, "log_every": 200, "checkpoint_every": 200})
    with pytest.raises(Diverged, match=r"train/up/loss_scale is .*\n.*use precision: float32 or bfloat16"):
        Loop(Overflowing(range(201)), ArrayDataset(), settings, tmp_path).run()
    assert not list((tmp_path / "checkpoints").glob("*00200*"))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_parameters_that_no_optimizer_has_do_not_count_in_the_norm_of_the_gradient(precision):
    task = TwoScalars()
    task.up.frozen = torch.nn.Parameter(torch.tensor([[3.0]]))
    task.phases = lambda: [Phase("up", task.up, torch.optim.SGD([task.up.value], 0.1))]
    loss = lambda phase, batch, noise: ((task.up.value + 1000 * task.up.frozen).sum(), {})
    task.loss = loss
    settings = TrainingSettings(precision=precision, clip_norm=0.5)
    _, metrics = take(settings, (1, 2), task)
    assert [each["gradient_norm"].item() for each in metrics] == pytest.approx([1, 1])
    assert task.up.frozen.grad.item() in (1000, 1000 * 2**16)  # of the last step alone
    assert task.up.value.item() == pytest.approx(1 - 2 * 0.1 * 0.5)


def test_no_kernel_is_chosen_by_its_speed_and_those_that_are_not_deterministic_raise_errors():
    before = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    torch.backends.cudnn.benchmark = True
    try:
        make_deterministic(1)
        assert not torch.backends.cudnn.benchmark and torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.set_num_threads(before[1])


def test_a_worker_asks_for_deterministic_matrix_products_before_cuda_starts(monkeypatch):
    def started(num_threads):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and not torch.cuda.is_initialized()
        raise InterruptedError

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(worker, "make_deterministic", started)
    with pytest.raises(InterruptedError):
        worker.train_worker({"threads": 1})
