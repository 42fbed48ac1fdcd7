"""A classifier of classes of different sizes: weights of the loss, and balanced sampling."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.core import model_files
from pipeline.core.loop import Loop
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.task import DataSpec
from pipeline.errors import BadInput
from pipeline.settings_check import find_faults
from tests.arrays import ArrayDataset, array_split, batch_of, dataset_for

SETTINGS = TrainingSettings(num_steps=9, batch_size=16, sampling="balanced", checkpoint_every=4)


def skewed(counts=(80, 16, 4)):
    """A data set whose training split has so many images of each class."""
    data = ArrayDataset(classes=len(counts))
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 1, 8, 8), dtype=np.uint8)
    data.train = array_split(images, labels, len(counts))
    return data


def classifier(classes=3, **config):
    return model_files.build("cnn", config, DataSpec.labelled_images(1, 8, classes), 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weights_are_inverse_to_the_frequencies_with_a_mean_of_one_over_the_images(smoothing):
    data = skewed()
    task = classifier(class_weights="auto", label_smoothing=smoothing)
    task.on_train_start(data.train)
    weights = 100 / (3 * torch.tensor([80.0, 16.0, 4.0]))
    assert torch.allclose(task.class_weights, weights)
    whole = data.train.batch(np.arange(100))
    noise = Noise.whole(0, 100, "classifier")
    losses = F.cross_entropy(
        task.classify(whole.images), whole.labels, label_smoothing=smoothing, reduction="none"
    )
    by_class = torch.stack([losses[whole.labels == label].mean() for label in range(3)])
    assert torch.allclose(task.loss("classifier", whole, noise)[0], by_class.mean())
    parts = [task.loss("classifier", whole.rows(a, b), noise.rows(a, b))[0] for a, b in ((0, 50), (50, 100))]
    assert torch.allclose(sum(parts) / 2, by_class.mean())  # as workers with these rows average it


def test_a_class_without_training_images_gets_a_finite_weight_and_does_not_change_the_others():
    task, other = classifier(class_weights="auto"), classifier(4, class_weights="auto")
    task.on_train_start(skewed((30, 10, 20)).train)
    other.on_train_start(skewed((30, 10, 20, 0)).train)
    assert torch.equal(task.class_weights, other.class_weights[:3]) and other.class_weights.isfinite().all()


def test_without_weights_each_image_counts_the_same():
    task = classifier()
    task.on_train_start(skewed().train)
    images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 0])
    loss, _ = task.loss("classifier", batch_of(images, labels), Noise.whole(0, 5))
    torch.testing.assert_close(loss, F.cross_entropy(task.classify(images), labels))


def test_a_training_with_both_resumes_bit_for_bit(tmp_path):
    def run(folder, die=None):
        loop = Loop(classifier(class_weights="auto", flip=0.5, rotate=20.0), skewed(), SETTINGS, folder)
        take = loop.step.run

        def dying(number, batch, noise):
            if number == die:
                raise InterruptedError
            return take(number, batch, noise)

        loop.step.run = dying
        return loop.run().state_dict()

    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", die=7)
    whole, resumed = run(tmp_path / "whole"), run(tmp_path / "cut")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.mark.parametrize(
    ("sampling", "weights", "refused"),
    [("balanced", "auto", True), ("balanced", "none", False), ("shuffle", "auto", False)],
)
def test_weights_and_balanced_sampling_together_are_refused(tmp_path, sampling, weights, refused):
    path = tmp_path / "params.yaml"
    path.write_text(f"cnn: {{training: {{sampling: {sampling}}}, model: {{class_weights: {weights}}}}}")
    valid, faults = find_faults(path)
    assert valid == ["cnn"] * (not refused) and len(faults) == refused
    if refused:
        assert faults[0].where == f"{path}: cnn.model.class_weights"
        assert faults[0].remedy == "set class_weights: none or training.sampling: shuffle"


def test_balanced_sampling_of_data_without_labels_is_refused(tmp_path):
    data = dataset_for("unet")
    task = model_files.build("unet", {}, data.spec, 0)
    with pytest.raises(BadInput, match=r"no field 'label'\n  -> set training.sampling: shuffle"):
        Loop(task, data, SETTINGS, tmp_path)


def test_both_raise_the_recall_of_a_rare_class(tmp_path):
    """On images of noise with a faint mark of the rare class, that a plain training hardly finds."""
    random = np.random.default_rng(1)

    def split(counts):
        labels = np.repeat([0, 1], counts)
        images = random.integers(0, 200, (len(labels), 1, 8, 8), dtype=np.uint8)
        images[labels == 1, :, 2:6, 2:6] += 25
        return array_split(images, labels, 2)

    data = ArrayDataset()
    data.train, test = split((950, 50)), split((200, 200))
    recalls = {}
    for name, sampling, weights in (
        ("plain", "shuffle", "none"),
        ("sampled", "balanced", "none"),
        ("weighted", "shuffle", "auto"),
    ):
        settings = TrainingSettings(num_steps=60, batch_size=64, sampling=sampling)
        task = classifier(2, channels=[8], dense=[8], class_weights=weights)
        task = Loop(task, data, settings, tmp_path / name).run()
        found = task.classify(test.batch(np.arange(400)).images).argmax(1)
        recalls[name] = float(found[200:].float().mean())
    assert recalls["sampled"] > recalls["plain"] + 0.2 and recalls["weighted"] > recalls["plain"] + 0.2
