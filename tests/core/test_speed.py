"""Between two log entries nothing waits for the device. PyTorch's compiler is imported only if it is used.

The device "meta" stands for a GPU here: its tensors have no values, so whatever reads one raises an error.
"""

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core import batch, feed, model_files
from pipeline.core.distributed import DistributedContext
from pipeline.core.loop import Loop
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.core.task import Phase
from pipeline.layers.optimizers import OptimizerSettings
from tests.arrays import ArrayDataset, dataset_for, needs_for
from tests.core.fake import TwoScalars
from tests.project import ROOT

META = torch.device("meta")
SETTINGS = TrainingSettings(num_steps=9, batch_size=16, ema_decay=0.9, clip_norm=1.0, l2=1e-4)


class CopiesDoNotWait(TorchDispatchMode):
    """Copies from the CPU to the device must be asynchronous."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and result.is_meta and not args[0].is_meta:
            assert kwargs.get("non_blocking"), f"a copy of {tuple(result.shape)} waits for the device"
        if func is torch.ops.aten.copy_.default and args[0].is_meta and not args[1].is_meta:
            assert kwargs.get("non_blocking") or args[2:] == (True,), "a copy waits for the device"
        return result


def take_steps(task, data, tmp_path, monkeypatch, resident=True):
    """Three steps as the loop takes them between two log entries."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know "meta"
    loop = Loop(task, data, SETTINGS, tmp_path, DistributedContext(device=META, microbatch=12))
    if resident:
        loop.feed = feed.ResidentFeed(data.train, META, loop.sampler.indices)
    with CopiesDoNotWait():
        for number in (1, 2, 3):
            metrics = loop.step.run(number, *loop._batch(number))
            loop.average.update(number)
    assert all(value.is_meta for value in metrics.values())


@pytest.mark.parametrize("name", model_files.names())
def test_a_step_reads_no_value_from_the_device(name, tmp_path, monkeypatch):
    data = dataset_for(name)
    take_steps(model_files.build(name, {}, data.spec, 0, needs_for(name)), data, tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "rmsprop", "adam", "adamw", "muon"])
def test_neither_does_any_optimizer_nor_a_feed_that_reads_the_shards(kind, tmp_path, monkeypatch):
    task = model_files.build("cnn", {"optimizer": {"kind": kind}}, ArrayDataset().spec, 0)
    take_steps(task, ArrayDataset(), tmp_path, monkeypatch, resident=False)


@pytest.mark.parametrize(
    "read",
    [
        lambda values: values.mean().item(),
        lambda values: bool(values.sum() > 0),
        lambda values: values[values > 0],
        lambda values: values.flatten().tolist(),
        lambda values: torch.tensor([1.0, 2.0]).to(values.device),
    ],
)
def test_a_loss_that_reads_a_value_or_copies_one_is_found(read, tmp_path, monkeypatch):
    class Reading(TwoScalars):
        def loss(self, phase, batch, noise):
            read(batch.images)
            return super().loss(phase, batch, noise)

    with pytest.raises((RuntimeError, AssertionError)):
        take_steps(Reading(), ArrayDataset(), tmp_path, monkeypatch)


def test_copies_to_a_gpu_go_through_pinned_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values: calls.append("pin") or values)
    monkeypatch.setattr(torch.Tensor, "to", lambda values, *to, **how: calls.append((*to, how)) or values)
    gpu = torch.device("cuda", 0)
    replace(Noise.whole(0, 3), device=gpu).normal("a", 2)
    batch.to_device(torch.ones(1), gpu)
    assert calls == ["pin", (gpu, {"non_blocking": True})] * 2
    calls.clear()
    Noise.whole(0, 3).normal("a", 2)
    assert calls == [(torch.device("cpu"), {"non_blocking": True})]


class OnGpu(torch.nn.Parameter):
    is_cuda = True


@pytest.mark.parametrize("kind", ["sgd", "momentum", "rmsprop", "adam", "adamw"])
def test_optimizers_are_fused_on_a_gpu_and_not_on_a_cpu(kind):
    """A fused optimizer has other bits, so those of a CPU stay as they are."""
    settings, on_cpu = OptimizerSettings(kind=kind), torch.nn.Parameter(torch.ones(2))
    on_gpu = OnGpu(torch.ones(2))
    fused = kind not in ("rmsprop", "momentum")  # fused momentum is not initialised if a step is skipped
    assert settings.build(iter([on_gpu])).defaults.get("fused") is (True if fused else None)
    assert not settings.build([on_cpu]).defaults.get("fused")
    assert not settings.build([on_gpu, on_cpu]).defaults.get("fused")


class ValuesRead(TorchDispatchMode):
    """Counts how often the value of a tensor was read."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("kind", "reads"),
    [("sgd", False), ("momentum", True), ("adam", False), ("adamw", False), ("rmsprop", True)],
)
@pytest.mark.parametrize("overflow", [1, 2])
def test_a_fused_optimizer_skips_a_step_of_float16_without_reading_whether_it_overflowed(
    kind, reads, overflow
):
    """PyTorch has fused optimizers for the CPU, too."""
    task, data = TwoScalars(), ArrayDataset()
    task.up.value = OnGpu(task.up.value.detach())
    optimizer = OptimizerSettings(kind=kind, learning_rate=0.1).build(task.up.parameters())
    task.phases = lambda: [Phase("up", task.up, optimizer)]
    task.loss = lambda phase, batch, noise: (
        task.up.value.sum() * (torch.inf if noise.step == overflow else 1.0),
        {},
    )
    step = Step(task, task.phases(), TrainingSettings(precision="float16"), DistributedContext())
    weights = []
    for number in (1, 2, 3):
        with ValuesRead() as values:
            step.run(number, data.train.batch(np.arange(8)), Noise.whole(0, 8, step=number))
        assert bool(values.count) is reads
        weights.append(task.up.value.item())
    if overflow == 1:
        assert 1 == weights[0] > weights[1] > weights[2] > -10
    else:
        assert 1 > weights[0] == weights[1] > weights[2] > -10
    assert step.state_dict()["scaler/up"].tolist() == [2**15, 3 - overflow]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", model_files.names())
def test_no_step_on_a_gpu_waits_for_it(name, precision, tmp_path):
    data, settings = dataset_for(name), SETTINGS.model_copy(update={"precision": precision})
    task = model_files.build(name, {}, data.spec, 0, needs_for(name))
    loop = Loop(task, data, settings, tmp_path, DistributedContext(device=torch.device("cuda", 0)))
    for number in range(1, 6):
        if number == 3:
            torch.cuda.set_sync_debug_mode("error")
        try:
            loop.step.run(number, *loop._batch(number))
            loop.average.update(number)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_training_imports_pytorchs_compiler_only_to_compile(tmp_path):
    """Its import takes over a second."""
    code = (
        "import sys, pathlib\n"
        "from pipeline.core import model_files\n"
        "from pipeline.core.loop import Loop\n"
        "from pipeline.core.settings import TrainingSettings\n"
        "from tests.arrays import ArrayDataset\n"
        "for precision in ('float32', 'float16'):\n"
        "    settings = TrainingSettings(num_steps=2, batch_size=8, precision=precision, clip_norm=1.0)\n"
        "    task = model_files.build('gan', {'width': 8}, ArrayDataset().spec, 0)\n"
        "    Loop(task, ArrayDataset(), settings, pathlib.Path(sys.argv[1], precision)).run()\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "False\n", ended.stderr
