"""Faults of models on digits are said in words; models without them are not warned about."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import doctor
from pipeline.core import model_files
from pipeline.core.dataset import Dataset, Split
from pipeline.core.loop import Loop
from pipeline.core.settings import TrainingSettings, read_training
from pipeline.core.task import Task
from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings
from pipeline.environment import Environment
from pipeline.estimate import Estimate
from pipeline.evaluation import warnings
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.params import Section
from tests.evaluation.conftest import run
from tests.project import MODELS, PARAMS, ROOT

SETTINGS = EvaluationSettings(allow_few_samples=True, num_bootstrap=3)


class Drawing(Task):
    """Images of given classes, picked from ``split``, as one of the first ``most`` of the class."""

    Config = Section

    def __init__(self, split, most, blur=0.0):
        super().__init__(Section(), split.spec)
        images, labels = torch.from_numpy(split.rows(np.arange(len(split)))["image"]), split.labels
        self.by_class = [images[labels == label][:most].float() / 255 for label in range(10)]
        self.blur, self.weight = blur, nn.Parameter(torch.zeros(()))

    def phases(self):
        return []

    def loss(self, phase, batch, noise):
        return self.weight, {}

    def evaluate(self, batch, noise):
        return {}

    def generate(self, labels, count, noise):
        places = noise.uniform("place")
        picked = [self.by_class[label] for label in labels.tolist()]
        images = torch.stack([one[int(place * len(one))] for one, place in zip(picked, places)])
        return (images + self.blur * noise.normal("blur", 1, 8, 8)).clamp(0, 1)


@pytest.fixture(scope="module")
def data(processed_digits):
    return Dataset.open(processed_digits)


@pytest.fixture(scope="module")
def train(tmp_path_factory, data):
    def train(name, num_steps, dataset=data, **model):
        task = model_files.build(name, {**PARAMS[name]["model"], **model}, data.spec, 0)
        often = {"log_every": 100, "validate_every": 1000, "sample_every": 1000, "checkpoint_every": 1000}
        settings = TrainingSettings(num_steps=num_steps, batch_size=64, ema_decay=0.9, **often)
        return Loop(task, dataset, settings, tmp_path_factory.mktemp(name)).run().eval()

    return train


@pytest.fixture(scope="module")
def classifier(train):
    return train("cnn", 250, dense=[32], channels=[16, 16])


@pytest.fixture(scope="module")
def shuffled(data):
    """The same images, with shuffled labels in all splits."""
    changed = {}
    for name in ("train", "validation", "test"):
        rows = getattr(data, name).rows(np.arange(len(getattr(data, name))))
        rows["label"] = np.random.default_rng(0).permutation(rows["label"])
        changed[name] = Split([rows], data.spec)
    return SimpleNamespace(**{**vars(data), **changed})


def rules(results, name):
    return [warned["rule"] for warned in results["warnings"].get(name, [])]


def test_a_collapsed_a_copying_and_a_sound_generator_are_told_apart(data, classifier, tmp_path, capsys):
    models = {
        "cnn": classifier,
        "collapsed": Drawing(data.train, 1, blur=0.02),
        "copying": Drawing(data.train, 10),  # 100 training images
        "sound": Drawing(data.validation, 1000),
    }
    results = run(data, models, tmp_path, SETTINGS)
    assert results == json.loads((tmp_path / "metrics/details.json").read_text())
    assert "collapsed" in rules(results, "collapsed") and "collapsed" not in rules(results, "copying")
    assert "memorised" in rules(results, "copying") and not rules(results, "sound")
    assert not rules(results, "cnn")
    printed = capsys.readouterr().out
    assert "collapsed makes few distinct images: Recall" in printed
    assert "copying repeats training images: Nearness to training images 100.0 %" in printed


def test_a_vae_with_a_large_beta_is_over_smooth(data, classifier, train, tmp_path):
    models = {"cnn": classifier, "vae": train("vae", 150, beta=20.0)}
    results = run(data, models, tmp_path, SETTINGS)
    assert "over-smooth" in rules(results, "vae")
    (warned,) = [each for each in results["warnings"]["vae"] if each["rule"] == "over-smooth"]
    assert "Sharpness of reconstructions" in warned["what"] and "lower beta" in warned["remedy"]


def test_shuffled_labels_show_in_the_classifier_and_in_a_generator(
    data, shuffled, classifier, train, tmp_path
):
    results = run(shuffled, {"cnn": train("cnn", 150, shuffled)}, tmp_path, SETTINGS)
    assert rules(results, "cnn") == ["shuffled labels"]
    assert "always one class" in results["warnings"]["cnn"][0]["what"]
    wrong = Drawing(shuffled.validation, 1000)
    results = run(data, {"cnn": classifier, "gan": wrong}, tmp_path, SETTINGS)
    assert "ignored labels" in rules(results, "gan") and not rules(results, "cnn")


def test_a_weak_classifier_is_named_with_the_models_that_are_compared_by_it(data, train, tmp_path):
    models = {"cnn": train("cnn", 8), "sound": Drawing(data.validation, 1000)}
    results = run(data, models, tmp_path, SETTINGS)
    (warned,) = [each for each in results["warnings"]["cnn"] if each["rule"] == "weak features"]
    assert "evaluate.feature_network" in warned["remedy"]
    assert "by which images of sound are compared, recognises" in warned["what"]
    assert "ignored labels" not in rules(results, "sound")  # its answers mean little


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_default_models_on_digits_are_sound(tmp_path):
    settings, environment = DataSettings(image_size=16), Environment(root=tmp_path, storage=tmp_path)
    download(settings, environment, tmp_path / "raw")
    preprocess(settings, environment, tmp_path / "raw", tmp_path / "images")
    data, models = Dataset.open(tmp_path / "images"), {}
    for name in MODELS:
        training, config = read_training(name, model_files.find(name).Config, ROOT / "params.yaml")
        task = model_files.build(name, config, data.spec, training.seed)
        models[name] = Loop(task, data, training, tmp_path / name).run().eval()
    results = run(data, models, tmp_path, SETTINGS)
    assert results["warnings"] == {}
    assert results["gan"]["distance_attack"]["high"] < 0.6


BARE = {"architecture": "mlp", "width": 8, "shift": 0, "spectral_normalisation": False}
BARE |= {"latent_size": 16, "r1": 0.1, "penalty_every": 4}


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_gan_that_knows_100_images_by_heart_repeats_them_and_gives_them_away(
    data, classifier, train, tmp_path
):
    ten_of_each = [np.flatnonzero(data.train.labels == label)[:10] for label in range(10)]
    few = Split([data.train.rows(np.concatenate(ten_of_each))], data.spec)
    small = SimpleNamespace(**{**vars(data), "train": few})
    results = run(small, {"cnn": classifier, "gan": train("gan", 2500, small, **BARE)}, tmp_path, SETTINGS)
    assert "memorised" in rules(results, "gan"), results["gan"]["pixel_memorisation"]
    assert results["gan"]["distance_attack"]["low"] > 0.9
    found = [finding.what for finding in doctor._results(tmp_path)]
    for text in ("gan repeats training images", "gan gives its training images away"):
        assert any(text in what for what in found), found


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_same_gan_does_not_give_many_images_away(data, classifier, train, tmp_path):
    results = run(data, {"cnn": classifier, "gan": train("gan", 2500, **BARE)}, tmp_path, SETTINGS)
    assert not {"memorised", "exposed"} & {*rules(results, "gan")}
    assert results["gan"]["distance_attack"]["high"] < 0.6


def evidence(measured=None, **known):
    return warnings.Evidence("model", measured or {}, **known)


GOOD = Estimate(0.98, floor=0.1)


def precision(floor):
    return {"gan": {"precision": Estimate(0.9, floor=floor)}}


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (
            warnings.weak_features,
            evidence({"accuracy": GOOD}, dimensions=64, compared=precision(0.95)),
            evidence({"accuracy": Estimate(0.4, floor=0.1)}, compared=precision(0.95)),
        ),
        (
            warnings.weak_features,
            evidence(compared=precision(0.9)),
            evidence(compared=precision(0.3)),
        ),
        (
            warnings.small_features,
            evidence({"accuracy": GOOD}, dimensions=16, training_images=1000),
            evidence({"accuracy": GOOD}, dimensions=15, training_images=1000),
        ),
        (
            warnings.small_features,
            evidence(dimensions=64, training_images=9),
            evidence({"accuracy": GOOD}, dimensions=64, training_images=9),
        ),
        (
            warnings.shuffled_labels,
            evidence({"accuracy": Estimate(0.3, floor=0.1)}),
            evidence({"accuracy": Estimate(0.1, floor=0.1), "training_accuracy": Estimate(0.99, floor=0.1)}),
        ),
        (
            warnings.ignored_labels,
            evidence({"label_agreement": Estimate(0.1)}, accuracy=Estimate(0.3, floor=0.1)),
            evidence({"label_agreement": Estimate(0.1)}, accuracy=GOOD),
        ),
        (
            warnings.memorised,
            evidence({"memorisation": Estimate(0.99, 0.85), "sharpness": Estimate(1.0, floor=1.0)}),
            evidence({"memorisation": Estimate(0.99, 0.95), "sharpness": Estimate(1.0, floor=1.0)}),
        ),
        (
            warnings.memorised,
            evidence({"memorisation": Estimate(0.99, 0.95), "sharpness": Estimate(0.4, floor=1.0)}),
            evidence({"pixel_memorisation": Estimate(0.99, 0.95)}),
        ),
        (
            warnings.memorised,
            evidence({"copies": Estimate(0.03, 0.015, floor=0.0)}),
            evidence({"copies": Estimate(0.05, 0.03, floor=0.0), "sharpness": Estimate(0.4, floor=1.0)}),
        ),
        (
            warnings.memorised,
            evidence({"copies": Estimate(0.05, 0.03, floor=0.02)}),
            evidence({"copies": Estimate(0.06, 0.05, floor=0.02)}),
        ),
        (
            warnings.exposed,
            evidence({"loss_attack": Estimate(0.65, 0.59), "loss_attack_found": Estimate(0.1)}),
            evidence({"loss_attack": Estimate(0.65, 0.61), "loss_attack_found": Estimate(0.1)}),
        ),
        (
            warnings.prior_gap,
            evidence(
                {
                    "fid": Estimate(9, floor=0.1),
                    "reconstruction_fid": Estimate(0.5, floor=0.1),
                    "label_agreement": Estimate(0.9, floor=1),
                }
            ),
            evidence(
                {
                    "fid": Estimate(9, floor=0.1),
                    "reconstruction_fid": Estimate(0.5, floor=0.1),
                    "label_agreement": Estimate(0.7, floor=1),
                }
            ),
        ),
    ],
)
def test_a_rule_fires_beyond_its_threshold_only(rule, good, bad):
    assert rule(good) is None
    warned = rule(bad)
    assert "model" in warned.what and warned.remedy


UNEVEN = {"accuracy": Estimate(0.935, floor=0.95), "balanced_accuracy": Estimate(0.92, floor=0.5)}


@pytest.mark.parametrize(
    ("rule", "healthy"),
    [
        (warnings.shuffled_labels, evidence(UNEVEN)),
        (warnings.weak_features, evidence(UNEVEN, compared=precision(0.95))),
        (warnings.weak_features, evidence({"accuracy": Estimate(0.72, floor=0.01)}, compared=precision(0.9))),
        (
            warnings.ignored_labels,  # 10 % of the classes are rare; its images of both are right
            evidence(
                {"label_agreement": Estimate(0.915), "balanced_label_agreement": Estimate(0.89)},
                accuracy=UNEVEN["balanced_accuracy"],
            ),
        ),
    ],
)
def test_sound_models_of_uneven_or_many_classes_are_not_warned_about(rule, healthy):
    assert rule(healthy) is None


def test_with_uneven_classes_faults_are_still_found():
    chance = {"accuracy": Estimate(0.95, floor=0.95), "balanced_accuracy": Estimate(0.5, floor=0.5)}
    assert "50.0% of the test images of a class" in warnings.shuffled_labels(evidence(chance)).what
    ignored = {"label_agreement": Estimate(0.9), "balanced_label_agreement": Estimate(0.5)}
    warned = warnings.ignored_labels(evidence(ignored, accuracy=UNEVEN["balanced_accuracy"]))
    assert warned and "or its images are too poor to be recognised" in str(warned)


def test_noise_is_unlike_real_images_and_does_not_count_as_few_distinct_ones():
    floors = {"precision": 0.9, "recall": 0.9, "coverage": 0.8, "diversity": 1.0}
    found = {}
    for values in ((0, 0, 0, 1.8), (0.9, 0.05, 0.1, 0.5), (0, 0, 0, 0.01), (0.3, 0.1, 0.1, 1.8)):
        measured = {name: Estimate(value, floor=floors[name]) for name, value in zip(floors, values)}
        found[values] = warnings.collapsed(evidence(measured)).rule
    assert [*found.values()] == ["unlike real images", "collapsed", "collapsed", "unlike real images"]


def protocol(dataset="images", network="pixels", dimensions=64, digest="d"):
    used = {"network": network, "network_digest": network, "dimensions": dimensions}
    return {"dataset": dataset, "model_digest": digest, "features": used}


def test_labels_are_judged_by_the_classifier_in_use_and_every_space_by_its_dimensions():
    weak, good = ({"accuracy": Estimate(value, floor=0.1).to_json()} for value in (0.3, 0.98))
    ignored = {"label_agreement": Estimate(0.1).to_json()}
    results = {"a": weak, "cnn": good, "gan": ignored, "tiny": {}, "large": {}}
    protocols = {name: {"dataset": "images", "model_digest": name} for name in ("a", "cnn")}
    protocols |= {"gan": protocol(), "tiny": protocol("tiny", dimensions=9), "large": protocol("large")}
    classifiers, images = {"a": "cnn", "cnn": "cnn", "gan": "cnn"}, dict.fromkeys(results, 60_000)
    found = warnings.find({**results, "protocol": protocols}, classifiers, images)
    assert [each["rule"] for each in found["gan"]] == ["ignored labels"]
    assert "has 9 features" in found["pixels"][0]["what"] and found.keys() == {"gan", "pixels"}


def test_few_reference_images_are_not_few_training_images(data, classifier, tmp_path):
    few = SETTINGS.model_copy(update={"max_reference": 100})
    models = {"cnn": classifier, "sound": Drawing(data.validation, 1000)}
    assert len(data.train) > 1000 and "small features" not in rules(run(data, models, tmp_path, few), "cnn")


def test_a_classifier_that_knows_wrong_labels_by_heart_is_described_so():
    measured = {"accuracy": Estimate(0.1, floor=0.1), "training_accuracy": Estimate(0.99, floor=0.1)}
    assert "99.0% of the training images" in warnings.shuffled_labels(evidence(measured)).what
    assert "by heart" in warnings.shuffled_labels(evidence(measured)).what


def test_without_readable_results_there_are_no_warnings(tmp_path):
    assert warnings.read(tmp_path) == {}
    (tmp_path / "metrics").mkdir()
    for text in ("[]", "{", '{"gan": {}}'):
        (tmp_path / "metrics/details.json").write_text(text)
        assert warnings.read(tmp_path) == {}
