"""The temperature of a classifier, and its top-5 accuracy."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from pipeline.core import model_files
from pipeline.core.loop import Loop
from pipeline.core.settings import TrainingSettings
from pipeline.evaluation.evaluators import classification
from pipeline.layers.calibration import fit_temperature
from tests.arrays import ArrayDataset, array_split
from tests.evaluation.conftest import Classifier, run, world


def confident_logits(count=4000, classes=5, sharpness=3.0):
    """Logits of a classifier that is too confident by the factor ``sharpness``, and labels."""
    logits = torch.randn(count, classes, generator=torch.Generator().manual_seed(0)) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    return sharpness * logits, labels


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_the_temperature_undoes_a_known_excess_of_confidence_and_has_the_largest_likelihood(sharpness):
    logits, labels = confident_logits(sharpness=sharpness)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(sharpness, rel=0.05)
    loss = lambda log_t: float(F.cross_entropy(logits.double() / np.exp(log_t), labels))
    best = np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x)
    assert found == pytest.approx(best, rel=0.01)


def test_the_temperature_is_finite_and_positive_if_all_or_no_labels_are_recognised():
    logits = torch.eye(3).repeat(10, 1) * 4
    right, wrong = torch.arange(3).repeat(10), (torch.arange(3).repeat(10) + 1) % 3
    assert 0.01 < fit_temperature(logits, right) < 4 and fit_temperature(logits, wrong) > 50
    assert fit_temperature(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)) > 0  # one class


def slow_calibration_error(probabilities, labels, bins=15):
    """By the definition, one bin after the other."""
    error = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [
            (max(row), int(np.argmax(row) == label))
            for row, label in zip(probabilities, labels, strict=True)
            if low <= max(row) < high or (number == bins - 1 and max(row) == 1)
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            error += len(inside) / len(labels) * abs(confidence - right)
    return error


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_calibration_error_agrees_with_a_slow_one(sharpness):
    logits, labels = confident_logits(300, sharpness=sharpness)
    probabilities, labels = logits.double().softmax(1).numpy(), labels.numpy()
    expected = slow_calibration_error(probabilities, labels)
    assert classification.calibration_error(probabilities, labels) == pytest.approx(expected)


class Calibrated(Classifier):
    """Too confident by three, and already divided by 1.5."""

    temperature = torch.tensor(1.5)

    def classify(self, images):
        return self.logits[images[:, 0, 0, 0].mul(255).round().long()] / self.temperature


def test_the_error_is_reported_before_and_after_the_temperature_and_the_accuracy_is_the_same(tmp_path):
    dataset = world()
    logits, labels = confident_logits(250, 3)
    rows = np.zeros((250, 1, 6, 6), np.uint8)
    rows[:, 0, 0, 0] = np.arange(250)
    dataset.train = dataset.test = dataset.validation = array_split(rows, labels.numpy(), 3)
    task = Calibrated().eval()
    task.logits = logits
    found = {name: parts["value"] for name, parts in run(dataset, {"cnn": task}, tmp_path)["cnn"].items()}
    assert found["temperature"] == pytest.approx(fit_temperature(logits, labels), rel=1e-4)
    error = lambda t: classification.calibration_error(
        (logits / t).double().softmax(1).numpy(), labels.numpy()
    )
    assert found["calibration_error"] == pytest.approx(error(1.5), abs=1e-4)
    assert found["uncalibrated_error"] == pytest.approx(error(1.0), abs=1e-4)
    assert found["calibrated_error"] == pytest.approx(error(found["temperature"]), abs=1e-3)
    assert found["calibrated_error"] < found["calibration_error"] < found["uncalibrated_error"]
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_a_training_with_calibrate_fits_the_temperature_on_the_validation_split(tmp_path):
    data = ArrayDataset(train=64, validation=50)
    data.validation = ArrayDataset(validation=50, seed=9).validation
    flipped = data.validation.labels[:15]
    flipped[:] = 1 - flipped  # so that the classifier is too confident there
    settings, trained = TrainingSettings(num_steps=30, batch_size=32, seed=1), {}
    for calibrate in (False, True):
        config = {"channels": [8], "dense": [8], "calibrate": calibrate, "optimizer": {"learning_rate": 0.01}}
        task = model_files.build("cnn", config, data.spec, 1)
        trained[calibrate] = Loop(task, data, settings, tmp_path / str(calibrate)).run()
    images = data.validation.batch(np.arange(50))
    plain, scaled = (trained[calibrate].classify(images.images) for calibrate in (False, True))
    temperature = trained[True].temperature
    assert float(temperature) == pytest.approx(fit_temperature(plain, images.labels), rel=1e-5)
    assert temperature > 1.5 and torch.allclose(scaled * temperature, plain, rtol=1e-5)
    assert torch.equal(plain.argmax(1), scaled.argmax(1))
    model_files.write(trained[True], tmp_path / "cnn", {})  # it is served with the model
    assert torch.allclose(model_files.load(tmp_path / "cnn").classify(images.images), scaled, rtol=1e-5)


def test_the_top_5_accuracy_counts_the_five_largest_logits_where_there_are_many_classes():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(300, 25)), random.integers(0, 25, 300)
    measured = classification.measures(logits, labels)["top_5_accuracy"]
    expected = np.mean([label in np.argsort(row)[-5:] for row, label in zip(logits, labels, strict=True)])
    assert measured.value == pytest.approx(expected) and measured.low < expected < measured.high
    assert measured.floor == pytest.approx(np.sort(np.bincount(labels))[-5:].sum() / 300)
    assert classification.measures(np.zeros((300, 25)), labels)["top_5_accuracy"].value == 0  # ties
    assert "top_5_accuracy" not in classification.measures(logits[:, :19], labels % 19)
    assert "top_5_accuracy" in classification.measures(logits[:, :20], labels % 20)
