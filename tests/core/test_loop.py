"""The training loop: on a fake task, and with several processes."""

import json
import time
from dataclasses import replace

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.loop import Loop
from pipeline.core.memory_format import use_channels_last
from pipeline.core.metrics_log import read
from pipeline.core.settings import TrainingSettings
from pipeline.core.task import DataSpec
from tests.arrays import ArrayDataset, dataset_for, needs_for
from tests.core.fake import TwoScalars
from tests.workers import together

SETTINGS = TrainingSettings(
    num_steps=12, batch_size=8, log_every=4, validate_every=6, sample_every=6, checkpoint_every=5
)


def test_the_loop_takes_each_step_once_and_logs_at_the_set_intervals(tmp_path):
    task = TwoScalars()
    Loop(task, ArrayDataset(), SETTINGS, tmp_path).run()
    lines = {line["step"]: line["metrics"] for line in read(tmp_path / "metrics.jsonl")}
    assert sorted(lines) == [4, 5, 6, 8, 10, 12]
    assert (
        "validation/label" in lines[6]
        and "validation/label" in lines[12]
        and "validation/label" not in lines[4]
    )
    assert lines[6].keys() == {"validation/label"} and "train/up/loss" in lines[5]
    assert lines[12]["validation/label"] == 0.5  # a mean over the split, not of batch means


@pytest.mark.parametrize("values", [5 * 65, 1])  # an image of 8 x 8 pixels and a label have 65
def test_batches_of_a_validation_have_a_bounded_number_of_values(tmp_path, monkeypatch, values):
    monkeypatch.setattr("pipeline.core.loop.EVALUATION_VALUES", values)
    task, data, seen = TwoScalars(), ArrayDataset(), []
    loop = Loop(task, data, SETTINGS, tmp_path)
    evaluate = loop.average.task.evaluate
    monkeypatch.setattr(
        loop.average.task, "evaluate", lambda batch, noise: seen.append(len(batch)) or evaluate(batch, noise)
    )
    assert loop._validate() == {"validation/label": 0.5}
    assert max(seen) == max(1, values // 65) and sum(seen) == len(data.validation)


def test_the_logged_means_cover_the_steps_since_the_last_entry(tmp_path):
    task, data = TwoScalars(), ArrayDataset()
    loop = Loop(task, data, SETTINGS, tmp_path)
    loop.run()
    seen = [data.train.rows(loop.sampler.indices(step))["image"].mean() / 255 for step in (6, 7, 8)]
    line = next(line for line in read(tmp_path / "metrics.jsonl") if line["step"] == 8)
    assert line["metrics"]["train/up/mean"] == pytest.approx(sum(seen) / 3, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 7, 17])
def test_sample_grids_keep_an_original_and_its_reconstruction_in_one_row(tmp_path, monkeypatch, classes):
    class Inverting(TwoScalars):
        def reconstruct(self, images):
            return 1 - images

    grids = []
    monkeypatch.setattr(
        "pipeline.core.loop.write_png", lambda path, images, columns: grids.append((images, columns))
    )
    Loop(Inverting(classes=classes), ArrayDataset(classes=classes), SETTINGS, tmp_path).run()
    for images, columns in grids:
        assert len(images) % columns == 0
        rows = images.reshape(-1, columns, *images.shape[1:])
        assert columns % 2 == 0 and (rows[:, 0::2] == 255 - rows[:, 1::2]).all()
    assert len(grids) == 3  # at the start, and twice while training


@pytest.mark.parametrize(("classes", "columns"), [(1, 8), (2, 10), (3, 9), (10, 10), (16, 16), (17, 8)])
def test_sample_grids_show_one_class_in_each_column_where_there_are_few(
    tmp_path, monkeypatch, classes, columns
):
    class Labelled(TwoScalars):
        def generate(self, labels, count, noise):
            return (labels / 255).reshape(-1, 1, 1, 1).expand(count, 1, 8, 8)

    grids = []
    monkeypatch.setattr(
        "pipeline.core.loop.write_png", lambda path, images, columns: grids.append((images, columns))
    )
    Loop(Labelled(classes=classes), ArrayDataset(classes=max(2, classes)), SETTINGS, tmp_path).run()
    shown = grids[0][0][:, 0, 0, 0]
    assert grids[0][1] == columns and len(shown) % columns == 0
    if classes <= 16:
        assert all(len(set(column)) == 1 for column in shown.reshape(-1, columns).T)


@pytest.mark.parametrize("died_at", [1, 4, 5, 7, 11])
def test_a_training_that_died_ends_like_an_uninterrupted_one_with_the_same_record(tmp_path, died_at):
    class Died(Exception):
        pass

    def run(folder, die=None):
        task = TwoScalars()
        loop = Loop(task, ArrayDataset(), SETTINGS, folder)
        steps, take = [], loop.step.run

        def counted(number, batch, noise):
            if number == die:
                raise Died
            steps.append(number)
            return take(number, batch, noise)

        loop.step.run = counted
        try:
            return loop.run().state_dict(), steps
        except Died:
            return None, steps

    whole, _ = run(tmp_path / "whole")
    run(tmp_path / "cut", die=died_at)
    resumed, steps = run(tmp_path / "cut")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert steps[0] == died_at - (died_at - 1) % 5  # at most one checkpoint interval is redone
    plain = [
        [
            {k: v for k, v in line["metrics"].items() if not k.startswith("system/")}
            for line in read(tmp_path / f / "metrics.jsonl")
        ]
        for f in ("whole", "cut")
    ]
    assert plain[0] == plain[1]


def test_a_step_at_which_no_phase_runs_is_logged_too(tmp_path):
    task = TwoScalars()
    phases = task.phases()
    task.phases = lambda: [replace(phase, every=2) for phase in phases]
    Loop(task, ArrayDataset(), SETTINGS.model_copy(update={"num_steps": 2, "log_every": 1}), tmp_path).run()
    first, second = read(tmp_path / "metrics.jsonl")
    assert "train/up/loss" not in first["metrics"] and "train/up/loss" in second["metrics"]


def test_a_finished_training_trains_no_further(tmp_path):
    Loop(TwoScalars(), ArrayDataset(), SETTINGS, tmp_path).run()
    task = TwoScalars()
    loop = Loop(task, ArrayDataset(), SETTINGS, tmp_path)
    loop.step.run = None
    loop.run()


@pytest.mark.parametrize("died_at", [None, 3, 8])
def test_samples_are_written_for_the_initial_weights_and_at_each_interval(tmp_path, died_at):
    task = model_files.build("gan", {"width": 8, "latent_size": 8}, DataSpec.labelled_images(1, 8, 2), seed=0)
    loop = Loop(task, ArrayDataset(), SETTINGS, tmp_path)
    take = loop.step.run

    def dying(number, batch, noise):
        if number == died_at:
            raise InterruptedError
        return take(number, batch, noise)

    loop.step.run = dying
    samples = tmp_path / "samples"
    if died_at:
        with pytest.raises(InterruptedError):
            loop.run()
        first = (samples / "step-00000000.png").read_bytes()
        task = model_files.build(
            "gan", {"width": 8, "latent_size": 8}, DataSpec.labelled_images(1, 8, 2), seed=0
        )
        Loop(task, ArrayDataset(), SETTINGS, tmp_path).run()
        assert (samples / "step-00000000.png").read_bytes() == first
    else:
        loop.run()
    assert sorted(path.name for path in samples.iterdir()) == [f"step-{step:08d}.png" for step in (0, 6, 12)]


def test_the_parts_of_the_loops_time_are_disjoint_and_reporting_is_logging(tmp_path):
    loop = Loop(TwoScalars(), ArrayDataset(), SETTINGS, tmp_path, report=lambda metrics: time.sleep(0.1))
    began = time.perf_counter()
    loop.run()
    parts = {"data", "compute", "validation", "samples", "checkpoint", "logging"}
    assert set(loop.seconds) == parts
    assert loop.seconds["logging"] >= 3 * 0.1  # once for each checkpoint
    assert sum(loop.seconds.values()) <= time.perf_counter() - began


def _settings(steps=4):
    return TrainingSettings(
        num_steps=steps,
        batch_size=13,
        ema_decay=0.9,
        l2=1e-4,
        log_every=2,
        validate_every=4,
        sample_every=4,
        checkpoint_every=2,
    )


def _train(name, folder, context=None, steps=4):
    is_private, is_cnn = name == "private", name == "cnn"  # the cnn with all that is off by default
    name = "cnn" if is_private else name
    data = dataset_for(name)
    augmentation = {"flip": 0.5, "rotate": 20.0, "color_jitter": 0.2, "crop": 1, "erase": 0.3}
    more = {"mixup": 1.0, "cutmix": 1.0, "class_weights": "auto", "calibrate": True}
    config = augmentation | more if is_cnn else {}
    if is_private:
        config = augmentation | {"dropout": 0.2, "privacy": {"epsilon": 8.0}}
    task = model_files.build(name, config, data.spec, 0, needs_for(name))
    torch.set_num_threads(1)
    settings = _settings(steps).model_copy(update={"sampling": "balanced" if is_cnn else "shuffle"})
    if is_private:
        task.private.begin(_settings(), len(data.train), b"key")
    loop = Loop(task, data, settings, folder, context)
    return loop.run().state_dict()


def _one_of(context, names, folder):
    for name in names:
        own = folder / name / f"of {context.size}" / str(context.rank)  # no folder is shared
        _train(name, own, context, steps=3)
        # Resumes from rank 0's checkpoint, with microbatches; the last worker has one more than the others.
        final = _train(name, own, replace(context, microbatch=13 // context.size))
        torch.save(final, folder / name / f"{context.rank} of {context.size}.pt")


# Measured after these four steps: 5e-8 (cnn) to 2.3e-6 (vae). Workers sum the examples in another order.
TOLERANCE = 5e-5  # on every weight; 2.4e-5 was the largest seen, on one of three kinds of processors


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_several_processes_train_the_same_model_as_one(tmp_path, size):
    names = [*model_files.names(), "private"]
    for name in names:
        (tmp_path / name).mkdir()
    together(size, _one_of, names, tmp_path)
    for name in names:
        _train(name, tmp_path / name / "single", steps=3)
        single = _train(name, tmp_path / name / "single")
        parts = [
            torch.load(tmp_path / name / f"{rank} of {size}.pt", weights_only=True) for rank in range(size)
        ]
        for key, value in single.items():
            assert all(torch.equal(parts[0][key], part[key]) for part in parts), (
                f"{name}: workers differ in {key}"
            )
            assert torch.allclose(value.float(), parts[0][key].float(), atol=TOLERANCE, rtol=0), (
                f"{name}: {key}"
            )
        lines = [read(tmp_path / name / folder / "metrics.jsonl") for folder in ("single", f"of {size}/0")]
        for one, several in zip(*lines, strict=True):
            close = {
                k: pytest.approx(v, rel=2e-3, abs=2e-3)
                for k, v in one["metrics"].items()
                if not k.startswith("system/")
            }
            assert {k: v for k, v in several["metrics"].items() if not k.startswith("system/")} == close, (
                json.dumps(one)
            )


class Prepared(TwoScalars):
    """Needs in its validation what it learns before the first step."""

    def on_train_start(self, split):
        self.count = len(split)
        self.register_buffer("share", torch.tensor(0.5))

    def evaluate(self, batch, noise):
        return {"count": torch.full((len(batch),), float(self.count * self.share))}


def test_the_averaged_model_has_what_was_prepared_before_the_first_step(tmp_path):
    data = ArrayDataset()
    Loop(Prepared(), data, SETTINGS, tmp_path).run()
    assert read(tmp_path / "metrics.jsonl")[-1]["metrics"]["validation/count"] == len(data.train) / 2


def test_only_tensors_with_four_dimensions_get_another_layout(tmp_path):
    task = TwoScalars()
    task.video, task.image = torch.nn.Conv3d(2, 2, 3), torch.nn.Conv2d(2, 2, 3)
    loop = Loop(task, ArrayDataset(), SETTINGS, tmp_path)
    assert loop.task.image.weight.is_contiguous(memory_format=torch.channels_last)
    assert loop.task.video.weight.is_contiguous()


@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (1, 4, 1, 1), (4, 2, 1, 1), (4, 2, 3, 3)])
def test_the_layout_is_that_of_pytorch_also_where_a_dimension_is_one(shape):
    """Other strides of the same layout choose other kernels, and so other bits."""
    module, expected = torch.nn.Module(), torch.nn.Module()
    module.weight, expected.weight = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    use_channels_last(module)
    assert module.weight.stride() == expected.to(memory_format=torch.channels_last).weight.stride()
