"""Trainings of the GAN by one and two processes, and its export."""

from dataclasses import replace

import pytest
import torch

from pipeline.cli import onnx_export
from pipeline.core import model_files
from pipeline.core.abilities import Ability
from pipeline.core.distributed import DistributedContext
from pipeline.core.ema import ExponentialMovingAverage
from pipeline.core.loop import Loop
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.core.task import DataSpec
from tests.arrays import ArrayDataset, batch_of
from tests.models import variants
from tests.workers import together

SPEC = DataSpec.labelled_images(1, 8, 3)
FREE = {"width": 8, "latent_size": 8, "spectral_normalisation": False, "shift": 0.0}


def build(settings, seed=0):
    return model_files.build("gan", settings, SPEC, seed)


def batch(count=5):
    noise = Noise.whole(1, count)
    return batch_of(noise.uniform("x", 1, 8, 8), noise.integers("y", 3))


@pytest.mark.parametrize("name", ["style", "dcgan_unconditional"])
def test_generation_can_be_exported_for_any_number_of_images(name):
    task = build(variants.ALL[f"gan/{name}"][1]).eval().requires_grad_(False)
    inputs, _ = onnx_export._examples(task, Ability.GENERATE, task.config.conditional)
    module = onnx_export.Exported(task, Ability.GENERATE, list(inputs)).eval()
    sizes = (tuple({0: torch.export.Dim("batch")} for _ in inputs),)
    program = torch.export.export(module, tuple(each[:2] for each in inputs.values()), dynamic_shapes=sizes)
    assert torch.allclose(program.module()(*inputs.values()), module(*inputs.values()), atol=1e-6)


def _train(name, folder, context=None):
    torch.set_num_threads(1)
    data = ArrayDataset()
    task = model_files.build("gan", variants.ALL[name][1], data.spec, 0)
    settings = TrainingSettings(
        num_steps=4, batch_size=13, ema_decay=0.9, validate_every=4, checkpoint_every=4
    )
    return Loop(task, data, settings, folder, context).run().state_dict()


PARALLEL = [  # double backward in both networks, lazy phases, and what is kept from step to step
    "gan/lazy_gradient_penalty",
    "gan/style",
    "gan/r3",
    "gan/adaptive",
    "gan/mlp_historical_averaging",
]


def _one_of_two(context, folder):
    for name in PARALLEL:
        trained = _train(name, folder / name / str(context.rank), replace(context, microbatch=4))
        torch.save(trained, folder / f"{name[4:]}-{context.rank}.pt")


@pytest.mark.slow
def test_two_processes_train_each_kind_of_gan_as_one_does(tmp_path):
    together(2, _one_of_two, tmp_path)
    for name in PARALLEL:
        single = _train(name, tmp_path / name / "single")
        parts = [torch.load(tmp_path / f"{name[4:]}-{rank}.pt", weights_only=True) for rank in range(2)]
        for key, value in single.items():
            assert torch.equal(parts[0][key], parts[1][key]), f"{name}: workers differ in {key}"
            assert torch.allclose(value.float(), parts[0][key].float(), atol=5e-5, rtol=0), f"{name}: {key}"


def test_what_is_kept_from_step_to_step_is_part_of_a_model(tmp_path):
    """The adaptive probability and the historical mean are in the state of a training."""
    for name, keys in (
        ("adaptive", ["adaptive.value"]),
        ("mlp_historical_averaging", ["history.generator.mean"]),
    ):
        task = build(variants.ALL[f"gan/{name}"][1])
        average = ExponentialMovingAverage(task, 0.9)
        step = Step(task, task.phases(), TrainingSettings(), DistributedContext())
        before = {key: task.state_dict()[key].clone() for key in keys}
        for number in (1, 2):
            step.run(number, batch(), Noise.whole(0, 5, "", number))
            average.update(number)
        assert all(not torch.equal(task.state_dict()[key], value) for key, value in before.items())
