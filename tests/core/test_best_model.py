"""The best validation: which weights are handed on, and when a training ends early."""

import pytest
import torch

from pipeline.core.loop import Loop
from pipeline.core.metrics_log import read
from pipeline.core.settings import TrainingSettings, read_training
from pipeline.errors import BadInput
from pipeline.params import Section
from tests.arrays import ArrayDataset
from tests.core.fake import TwoScalars

VALUES = [5.0, 3.0, 4.0, 3.5, 3.0, 9.0]  # of the validations
SETTINGS = {
    "num_steps": 12,
    "batch_size": 8,
    "validate_every": 2,
    "checkpoint_every": 3,
    "monitor": "validation/score",
}


class Scored(TwoScalars):
    """Its validations have the values VALUES, by the number of steps taken."""

    def __init__(self, values=VALUES):
        super().__init__()
        self.values = values
        self.register_buffer("steps", torch.zeros(()))

    def loss(self, phase, batch, noise):
        if phase == "up":
            self.steps += 1
        return super().loss(phase, batch, noise)

    def evaluate(self, batch, noise):
        return {"score": torch.full((len(batch),), self.values[int(self.steps) // 2 - 1])}


def run(folder, die_after=None, values=VALUES, **settings):
    """The trained model, and the steps that were logged."""
    loop = Loop(Scored(values), ArrayDataset(), TrainingSettings(**SETTINGS, **settings), folder)
    if die_after:
        save, loop.checkpoints.save = loop.checkpoints.save, None

        def save_and_die(step, state):
            save(step, state)
            if step >= die_after:
                raise KeyboardInterrupt

        loop.checkpoints.save = save_and_die
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        return None, None
    task = loop.run()
    return task, [line["step"] for line in read(folder / "metrics.jsonl")]


def test_the_last_weights_are_handed_on_unless_the_best_are_asked_for(tmp_path):
    assert int(run(tmp_path / "last")[0].steps) == 12
    assert int(run(tmp_path / "best", keep="best")[0].steps) == 4  # the first of two equal values
    assert int(run(tmp_path / "max", keep="best", monitor_mode="max")[0].steps) == 12


def test_a_training_ends_after_so_many_validations_without_improvement(tmp_path):
    task, steps = run(tmp_path / "two", patience=2)
    assert max(steps) == 8 and int(task.steps) == 8  # 4.0 and 3.5 are no improvement of 3.0
    task, steps = run(tmp_path / "best", patience=3, keep="best")
    assert max(steps) == 10 and int(task.steps) == 4  # nor is an equal value
    assert max(run(tmp_path / "four", patience=5)[1]) == 12


@pytest.mark.parametrize("die_after", [3, 6, 8])
def test_a_killed_training_decides_like_an_uninterrupted_one(tmp_path, die_after):
    settings = {"patience": 2, "keep": "best"}
    whole, steps = run(tmp_path / "whole", **settings)
    run(tmp_path / "cut", die_after=die_after, **settings)
    resumed, resumed_steps = run(tmp_path / "cut", **settings)
    assert resumed_steps == steps
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    again, again_steps = run(tmp_path / "cut", **settings)  # it is finished
    assert again_steps == steps and torch.equal(again.up.value, whole.up.value)


def test_an_unknown_metric_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(BadInput, match="validation/accuracy") as caught:
        Loop(
            Scored(),
            ArrayDataset(),
            TrainingSettings(**{**SETTINGS, "monitor": "validation/accuracy"}),
            tmp_path,
        ).run()
    assert "validation/score" in caught.value.remedy


@pytest.mark.parametrize("setting", ["keep: best", "patience: 3"])
def test_a_metric_to_monitor_has_to_be_named(tmp_path, setting):
    (tmp_path / "params.yaml").write_text(f"toy:\n  training:\n    {setting}\n")
    with pytest.raises(BadInput, match="need a metric to monitor"):
        read_training("toy", Section, tmp_path / "params.yaml")
