import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.core.dataset import Split
from pipeline.core.fields import DataSpec, Field
from pipeline.core.task import Ratio
from pipeline.errors import BadInput, DarkroomError
from pipeline.estimate import Estimate
from pipeline.evaluation import context, figures, glossary, report
from pipeline.evaluation.evaluate import protocol_of
from pipeline.evaluation.evaluators import generation, own, reconstruction
from pipeline.evaluation.measure import Measure
from pipeline.evaluation.settings import EvaluationSettings
from tests.evaluation.conftest import (
    SETTINGS,
    Autoencoder,
    Classifier,
    Conditional,
    Diverged,
    run,
    sorted_world,
    split,
    world,
    write_history,
)

COMPARED = {
    *("fid", "kid", "precision", "recall", "density", "coverage"),
    *("memorisation", "pixel_memorisation", "copies", "diversity", "sharpness"),
}


@pytest.mark.parametrize("dataset", [1, 3], ids=["grey", "rgb"], indirect=True)
def test_each_model_is_measured_by_what_it_can_do(dataset, tasks, tmp_path):
    results = run(dataset, tasks, tmp_path)
    assert json.loads((tmp_path / "metrics/details.json").read_text()) == results
    for name in tasks:
        for parts in results[name].values():
            assert set(parts) <= {"value", "low", "high", "floor"} and all(map(math.isfinite, parts.values()))
    assert {"accuracy", "cross_entropy", "calibration_error"} <= set(results["cnn"])
    assert set(results["cnn"]["accuracy"]) == {"value", "low", "high", "floor"}
    assert COMPARED | {"label_agreement"} <= set(results["gan"])
    assert (
        set(results["free"]) >= COMPARED and "label_agreement" not in results["free"]
    )  # its classes are its own choice
    rebuilt = {f"reconstruction_{name}" for name in COMPARED}
    rebuilt |= {"mse", "psnr", "ssim", "compression_ratio"} | {
        f"untrained_{name}_psnr" for name in ("denoised", "inpainted", "upscaled")
    }
    assert rebuilt <= set(results["ae"]) and "fid" not in results["ae"]
    assert all(set(results["gan"][name]) == {"value", "low", "high", "floor"} for name in COMPARED)
    assert results["cnn"]["brightness"]["value"] == pytest.approx(
        dataset.test.rows(np.arange(31))["image"].mean() / 255
    )
    data = results["protocol"]["gan"]
    assert (data["data_digest"], data["test_examples"]) == (dataset.digest, 31)
    expected = {
        "network": "cnn",
        "network_digest": "cnn" * 4,
        "reference_split": "train",
        "generated_images": 31,
        "reference_images": 90,
        "floor_images": 31,
    }
    assert expected.items() <= data["features"].items()


def test_the_protocol_of_a_model_names_the_feature_network_where_it_was_used(dataset, tasks, tmp_path):
    results = run(dataset, tasks, tmp_path)
    protocols = {name: protocol_of(results, name) for name in tasks}
    assert protocols["gan"] == protocols["ae"] and protocols["gan"]["features"]["network"] == "cnn"
    assert "features" not in protocols["cnn"] and protocols["cnn"]["data_digest"] == dataset.digest
    changed = run(dataset, tasks, tmp_path, digests={"cnn": "other"})
    other = {name: protocol_of(changed, name) for name in tasks}
    assert {name for name in tasks if other[name] != protocols[name]} == {"gan", "free", "ae"}


def test_metrics_match_the_quality_of_the_models(dataset, tasks, tmp_path):
    found = run(dataset, tasks, tmp_path)
    results = {name: Estimate.read(found[name]) for name in tasks}
    assert results["cnn"]["accuracy"].value == 1 and results["gan"]["label_agreement"].value == 1
    assert results["gan"]["label_agreement"].floor == 1
    assert results["cnn"]["accuracy"].floor == pytest.approx(11 / 31)
    assert results["gan"]["fid"].value < 10 * results["gan"]["fid"].floor
    assert results["gan"]["kid"].low < results["gan"]["kid"].floor < results["gan"]["kid"].high
    assert results["ae"]["mse"].value < results["ae"]["mse"].floor
    assert results["ae"]["psnr"].value > results["ae"]["psnr"].floor
    assert results["ae"]["untrained_denoised_psnr"].value > results["ae"]["untrained_denoised_psnr"].floor
    assert results["ae"]["compression_ratio"] == Estimate(dataset.spec.channels * 36 / (4 * 6))


def test_the_same_inputs_give_the_same_bytes(dataset, tasks, tmp_path):
    for name in ("one", "two"):
        write_history(tmp_path / name / "history" / "gan")
        run(dataset, tasks, tmp_path / name)
    written = [
        {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    ]
    assert written[0] == written[1] and len(written[0]) > 10


def test_batches_change_nothing_that_is_not_noise(dataset, tasks, tmp_path, monkeypatch):
    del tasks["gan"], tasks["free"]
    whole = run(dataset, tasks, tmp_path)
    for module in (context, reconstruction):
        monkeypatch.setattr(module, "BATCH", 7)  # 31 = 4 * 7 + 3
    apart = run(dataset, tasks, tmp_path)
    for quantity in ("mse", "ssim", "brightness"):
        assert apart["ae"][quantity] == pytest.approx(whole["ae"][quantity])
    fid = "reconstruction_fid"
    assert apart["ae"][fid] == pytest.approx(whole["ae"][fid], rel=1e-6)


def test_features_of_another_size_change_no_number(dataset, tasks, tmp_path):
    class Louder(Classifier):
        def features(self, images):
            return 8 * super().features(images)

    quiet = run(dataset, tasks, tmp_path)["gan"]
    loud = run(dataset, {**tasks, "cnn": Louder(dataset.spec.channels)}, tmp_path)["gan"]
    assert all(loud[quantity] == pytest.approx(parts, rel=1e-9) for quantity, parts in quiet.items())


def test_values_that_are_measured_already_are_not_computed_again(dataset, tasks, tmp_path, monkeypatch):
    class Same(Classifier):
        num_batches = 0

        def evaluate(self, batch, noise):
            Same.num_batches += 1
            return {"accuracy": torch.zeros(len(batch))}

    monkeypatch.setattr(context, "BATCH", 7)
    found = run(dataset, {**tasks, "cnn": Same(dataset.spec.channels)}, tmp_path)
    assert found["cnn"]["accuracy"]["value"] == 1 and Same.num_batches == 1


def test_plots_replace_those_of_earlier_models(dataset, tasks, tmp_path):
    write_history(tmp_path / "history" / "gan")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "of-a-model-that-is-gone.png").touch()
    run(dataset, tasks, tmp_path)
    found = {file.relative_to(tmp_path / "plots").as_posix() for file in (tmp_path / "plots").rglob("*.*")}
    drawn = {"cnn-confusion", "gan-samples", "gan-curves", "free-samples", "ae-reconstructions"}
    drawn |= {"gan-nearest", "free-nearest", "cnn-mistakes", "cnn-unsure"}
    drawn |= {f"{name}-distance-attack" for name in ("gan", "free")} | {"ae-reconstruction-attack"}
    curves = {"curves/gan/train/net/loss.csv", "curves/gan/validation/loss.csv"}
    assert found == {
        "confusion.csv",
        "tables/cnn-classes.csv",
        "tables/cnn-maps.csv",
        *(f"tables/{name}-membership.csv" for name in tasks),
        *curves,
        *(f"pictures/{name}.png" for name in drawn),
    }
    rows = pd.read_csv(tmp_path / "plots/confusion.csv")
    assert rows["actual"].tolist() == [dataset.class_names[label] for label in dataset.test.labels]
    assert (rows["actual"] == rows["predicted"]).all()
    assert (
        tmp_path / "plots/curves/gan/validation/loss.csv"
    ).read_text() == "step,value\n1,2.0\n2,2.0\n3,2.0\n"


def test_without_a_classifier_generators_are_refused_and_the_remedy_is_named(dataset, tmp_path):
    with pytest.raises(BadInput, match="train-cnn"):
        run(dataset, {"gan": Conditional(dataset.spec.channels)}, tmp_path)
    with pytest.raises(BadInput, match="no features"):
        run(dataset, {"cnn": Conditional(dataset.spec.channels)}, tmp_path)
    assert not (tmp_path / "metrics").exists() and not (tmp_path / "plots").exists()


def test_an_unknown_classifier_is_refused_before_anything_is_measured(dataset, tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(context.Context, "batches", lambda model, purpose: pytest.fail(purpose))
    with pytest.raises(BadInput, match=r"evaluate\.classifier: cnm.*no trained classifier"):
        run(dataset, tasks, tmp_path, SETTINGS.model_copy(update={"classifier": "cnm"}))
    assert not (tmp_path / "metrics").exists()


def test_a_model_of_clips_is_measured_by_what_it_computes_itself(tasks, tmp_path):
    spec = DataSpec({"clip": Field("clip", (4, 1, 5, 7))})

    class Clips(Classifier):
        dataset = "clips"

        def __init__(self):
            super().__init__()
            self.spec = spec

        def generate(self, labels, count, noise):
            raise AssertionError("it makes clips, not images")

        classify = reconstruct = generate

        def evaluate(self, batch, noise):
            frames = batch["clip"]
            moving = (frames[:, 1:] - frames[:, :-1]).abs()  # (N, T - 1, C, H, W)
            return {
                "motion": moving.mean(dim=(1, 2, 3, 4)),
                "share": Ratio(moving.sum((2, 3, 4)), frames[:, 1:].sum((2, 3, 4))),
            }

    values = np.random.default_rng(0).integers(0, 256, size=(31, 4, 1, 5, 7), dtype=np.uint8)
    split = Split([{"clip": values}], spec)
    clips = SimpleNamespace(train=split, test=split, class_names=[], digest="c1" * 32)
    results = run(
        world(tasks["gan"].spec.channels), {**tasks, "mover": Clips()}, tmp_path, more={"clips": clips}
    )
    assert set(results["mover"]) == {"motion", "share"}
    steps = np.abs(np.diff(values / 255, axis=1))
    expected = steps.sum((0, 2, 3, 4)) / (values[:, 1:] / 255).sum((0, 2, 3, 4))
    assert results["mover"]["motion"]["value"] == pytest.approx(steps.mean())
    assert results["mover"]["share"]["value"] == pytest.approx(expected.mean())
    assert set(results["mover"]["share"]) == {"value", "low", "high"}
    assert results["protocol"]["mover"]["dataset"] == "clips"
    assert protocol_of(results, "mover")["data_digest"] == clips.digest
    assert "features" not in protocol_of(results, "mover")


def test_models_of_two_data_sets_are_each_compared_within_their_own(tmp_path):
    class OtherClassifier(Classifier):
        dataset = "other"

    class OtherGan(Conditional):
        dataset = "other"

    other = world()
    other.test, other.digest = split(20, 1, 7), "e2" * 32
    tasks = {"cnn": Classifier(), "gan": Conditional(), "gan2": OtherGan()}
    with pytest.raises(BadInput, match="no classifier learns from other, the data of gan2"):
        run(world(), tasks, tmp_path, more={"other": other})
    results = run(world(), {**tasks, "zcnn": OtherClassifier()}, tmp_path, more={"other": other})
    used = {name: results["protocol"][name]["features"] for name in ("gan", "gan2")}
    assert {name: data["network"] for name, data in used.items()} == {"gan": "cnn", "gan2": "zcnn"}
    assert used["gan2"]["generated_images"] == 20
    assert (
        protocol_of(results, "gan2")["data_digest"]
        == other.digest
        != protocol_of(results, "gan")["data_digest"]
    )


def test_a_new_measure_is_one_entry_of_one_evaluator(dataset, tasks, tmp_path, monkeypatch):
    """Report, headlines and glossary read the lists of the evaluators."""
    measure = Measure("Brightness", "higher", explanation="Mean of the pixels.", percent=True, headline=True)
    evaluator = replace(own.EVALUATOR, measures={"brightness": measure})
    evaluators = [*glossary.EVALUATORS[:-1], evaluator]
    measures = {name: each for every in evaluators for name, each in every.measures.items()}
    monkeypatch.setattr(glossary, "MEASURES", measures)
    monkeypatch.setattr(glossary, "EVALUATORS", evaluators)
    results = run(dataset, tasks, tmp_path)
    headlines = json.loads((tmp_path / "metrics/evaluation.json").read_text())
    assert headlines["ae"]["brightness"] == results["ae"]["brightness"]["value"]
    report.write(results, {"images": tmp_path}, plots=tmp_path / "plots", path=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Mean of the pixels." in page and measure.show(headlines["ae"]["brightness"]) in page


def test_the_evaluators_are_the_files_of_their_folder():
    files = {path.stem for path in Path(generation.__file__).parent.glob("[!_]*.py")}
    assert {each.evaluate.__module__.rpartition(".")[2] for each in glossary.EVALUATORS} == files
    assert glossary.EVALUATORS[-1] is own.EVALUATOR


def test_too_few_samples_are_refused_naming_the_key(dataset, tasks, tmp_path):
    with pytest.raises(BadInput, match=r"evaluate\.minimum_samples"):
        run(dataset, tasks, tmp_path, EvaluationSettings())


def test_a_diverged_model_is_named(dataset, tasks, tmp_path):
    with pytest.raises(DarkroomError, match="broken: makes images whose pixels are not finite"):
        run(dataset, {**tasks, "broken": Diverged(dataset.spec.channels)}, tmp_path)


def test_the_reference_may_be_the_test_split_and_then_nothing_counts_as_memorised(dataset, tasks, tmp_path):
    results = run(
        dataset,
        tasks,
        tmp_path,
        SETTINGS.model_copy(update={"reference_split": "test", "num_samples": 40, "max_reference": 20}),
    )
    assert not {"memorisation", "copies"} & results["gan"].keys()
    used = results["protocol"]["gan"]["features"]
    assert [used[f"{name}_images"] for name in ("reference", "floor", "generated")] == [20, 40, 40]


def test_fewer_images_than_the_test_split_has_are_generated_of_all_classes(tmp_path):
    dataset, wanted = sorted_world(), []

    class Recording(Conditional):
        def generate(self, labels, count, noise):
            wanted.append((noise.phase, labels))
            return super().generate(labels, count, noise)

    run(
        dataset,
        {"cnn": Classifier(), "gan": Recording()},
        tmp_path,
        SETTINGS.model_copy(update={"num_samples": 12}),
    )
    generated = torch.cat([labels for phase, labels in wanted if phase == "samples"])
    assert torch.bincount(generated).tolist() == [4, 4, 4]


def test_reconstructions_show_each_class_in_turn_of_a_sorted_test_split(tmp_path, monkeypatch):
    drawn, save = {}, figures.save_grid

    def recorded(images, path, columns=(), rows=(), legend=()):
        drawn[path.name] = (images, list(columns), list(rows))
        save(images, path, columns, rows, legend)

    monkeypatch.setattr(figures, "save_grid", recorded)
    monkeypatch.setattr(context, "BATCH", 5)
    run(sorted_world(), {"cnn": Classifier(), "ae": Autoencoder()}, tmp_path)
    images, columns, rows = drawn["ae-reconstructions.png"]
    in_turn = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert Classifier().classify(images[0]).argmax(dim=1).tolist() == in_turn
    assert columns == [sorted_world().class_names[label] for label in in_turn]
    assert rows[:2] == ["original", "reconstructed"]
    assert rows[2:] == [
        text.format(name)
        for name in ("denoised", "inpainted", "upscaled")
        for text in ("to be {}", "{}, untrained")
    ]


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 25])
def test_one_of_each_class_is_picked_before_a_second_one(classes):
    labels = np.repeat(np.arange(classes), 20)
    picked = figures.one_of_each(labels)
    assert len(set(picked)) == len(picked) == 10
    assert len(set(labels[picked][: min(classes, 10)])) == min(classes, 10)
    assert figures.one_of_each(np.array([4, 4, 7])).tolist() == [0, 2, 1]
