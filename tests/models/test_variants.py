"""Each variant of a model in 16 bits: one step in which all of its phases run."""

import pytest

from pipeline.core import model_files
from pipeline.core.distributed import DistributedContext
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from tests.arrays import dataset_for, needs_for
from tests.models import variants

NUMBER = 4  # of the step: a multiple of every phase's interval


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", variants.ALL)
def test_each_variant_takes_a_step_in_16_bits(name, precision):
    model, settings = variants.ALL[name]
    data = dataset_for(model, labelled=settings.get("task") == "classify")
    task = model_files.build(model, settings, data.spec, 0, needs_for(model))
    task.on_train_start(data.train)
    if getattr(task, "private", None):
        if precision == "float16":
            pytest.skip("it is refused")
        task.private.begin(TrainingSettings(batch_size=4, precision=precision), len(data.train), b"key")
    phases = task.phases()
    assert all(phase.num_runs(NUMBER - 1, NUMBER) for phase in phases)
    step = Step(task, phases, TrainingSettings(precision=precision), DistributedContext())
    batch, noise = data.train.batch(range(4)), Noise.whole(0, 4, step=NUMBER)
    metrics = step.run(NUMBER, batch, noise)
    assert all(value.isfinite().all() for value in task.state_dict().values())
    if precision == "bfloat16":  # a float16 step may overflow, and is then skipped
        assert all(value.isfinite() for value in metrics.values())
