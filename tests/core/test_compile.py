"""A training whose losses are compiled, and what is said where they cannot be."""

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.distributed import DistributedContext
from pipeline.core.loop import Loop
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.launch.worker import _explained
from tests.arrays import ArrayDataset
from tests.core.fake import TwoScalars
from tests.models import variants

SETTINGS = TrainingSettings(batch_size=16, ema_decay=0.9, checkpoint_every=3, log_every=3)
COMPILED = SETTINGS.model_copy(update={"compile": True})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(Noise, "_draw", Noise._draw)  # which compiling changes
    torch._dynamo.reset()


def train(folder, settings, steps=12):
    """The weights, and how many graphs were compiled."""
    torch._dynamo.reset()  # as in a new process
    torch._dynamo.utils.counters.clear()
    task = model_files.build("cnn", {"dropout": 0.2, "shift": 0.08}, ArrayDataset().spec, 0)
    settings = settings.model_copy(update={"num_steps": steps})
    weights = Loop(task, ArrayDataset(), settings, folder).run().state_dict()
    return weights, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_a_compiled_training_is_near_the_other_one_and_resumes_bit_for_bit(tmp_path):
    plain, no_graphs = train(tmp_path / "plain", SETTINGS)
    whole, graphs = train(tmp_path / "whole", COMPILED)
    _, graphs_of_three_steps = train(tmp_path / "cut", COMPILED, steps=3)
    resumed, _ = train(tmp_path / "cut", COMPILED)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert all(torch.allclose(value, plain[key], atol=1e-4) for key, value in whole.items())
    assert no_graphs == 0 and graphs == graphs_of_three_steps >= 1  # the step is no part of them


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cnn", {"channels": [4], "dense": [4], "mixup": 0.4, "cutmix": 1.0}),
        ("gan", {"architecture": "mlp", "width": 8, "latent_size": 8, "historical_averaging": 0.1}),
    ],
)
def test_no_graph_depends_on_the_step(monkeypatch, name, settings):
    monkeypatch.setattr(Noise, "_draw", torch.compiler.disable(Noise._draw))  # as in PhaseLoss
    torch._dynamo.utils.counters.clear()
    data = ArrayDataset()
    task = model_files.build(name, settings, data.spec, 0)
    task.on_train_start(data.train)
    phase, batch = task.phases()[0].name, data.train.batch(range(16))
    loss, graphs = torch.compile(task.loss, backend="eager", dynamic=False), []
    for number in range(1, 6):
        loss(phase, batch, Noise.whole(0, 16, phase, number))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[1] == graphs[4]


def failure(task, data):
    step = Step(task, task.phases(), COMPILED, DistributedContext())
    with pytest.raises(RuntimeError) as caught:
        for number in (1, 2):
            step.run(number, data.train.batch(range(16)), Noise.whole(0, 16, step=number))
    return str(_explained(caught.value, {"name": "cnn"}, step.context))


@pytest.mark.slow
def test_without_a_compiler_the_error_names_what_is_missing_and_the_setting():
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        text = failure(TwoScalars(), ArrayDataset())
    assert "No working C++ compiler" in text and "cnn.training.compile" in text
    assert "install a C++ compiler" in text and len(text.splitlines()) <= 5


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_a_gradient_penalty_cannot_be_compiled_and_the_error_says_so():
    task = model_files.build("gan", variants.ALL["gan/lazy_gradient_penalty"][1], ArrayDataset().spec, 0)
    text = failure(task, ArrayDataset())
    assert "double backward" in text and "cnn.training.compile" in text


def test_for_a_gradient_penalty_no_compiler_is_the_remedy():
    error = RuntimeError("torch.compile with aot_autograd does not currently support double backward")
    assert str(_explained(error, {"name": "cnn"}, DistributedContext())).endswith("\n  -> set it to false")


def test_other_errors_are_left_as_they_are():
    assert _explained(RuntimeError("a worker was lost"), {"name": "cnn"}, DistributedContext()) is None
