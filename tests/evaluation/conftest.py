"""Images of stripes whose column is their class, and a classifier, generators and an autoencoder for them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from pipeline.core.noise import generator
from pipeline.core.task import DataSpec, Task
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.params import Section
from tests.arrays import array_split

CLASSES = 3
SIZE = 6
SETTINGS = EvaluationSettings(allow_few_samples=True, num_bootstrap=10, num_neighbours=3)


def stripes(labels, blur, channels, size=SIZE):
    """Images (N, C, size, size) with two bright columns for each label, and noise ``blur`` of that shape."""
    columns = torch.arange(size)[None, :] // 2 == labels[:, None]
    return (
        (0.8 * columns[:, None, None, :].float() + 0.1 + 0.1 * blur).clamp(0, 1).expand(-1, channels, -1, -1)
    )


def split(count, channels, seed):
    labels = np.arange(count, dtype=np.int64) % CLASSES
    blur = torch.randn(count, channels, SIZE, SIZE, generator=generator(seed))
    images = (stripes(torch.from_numpy(labels), blur, channels) * 255).round().byte().numpy()
    return array_split(images, labels, CLASSES)


class Fake(Task):
    Config = Section

    def __init__(self, channels=1):
        super().__init__(Section(), DataSpec.labelled_images(channels, SIZE, CLASSES))
        self.weight = nn.Parameter(torch.zeros(()))

    def phases(self):
        return []

    def loss(self, phase, batch, noise):
        return self.weight, {}

    def evaluate(self, batch, noise):
        return {"brightness": batch.images.mean(dim=(1, 2, 3))}


class Classifier(Fake):
    def features(self, images):
        return F.avg_pool2d(images, (3, 2)).mean(dim=1).flatten(1)

    def classify(self, images):
        return 20 * images.mean(dim=(1, 2)).reshape(len(images), CLASSES, 2).mean(dim=2)


class Conditional(Fake):
    def generate(self, labels, count, noise):
        return stripes(labels, noise.normal("blur", self.spec.channels, SIZE, SIZE), self.spec.channels)


class Unconditional(Fake):
    def generate(self, labels, count, noise):
        return stripes(
            noise.integers("label", CLASSES),
            noise.normal("blur", self.spec.channels, SIZE, SIZE),
            self.spec.channels,
        )


class Autoencoder(Fake):
    def encode(self, images):
        return images.mean(dim=(1, 2))

    def reconstruct(self, images):
        return self.encode(images)[:, None, None, :].expand_as(images)


class Diverged(Fake):
    def generate(self, labels, count, noise):
        return torch.full((count, self.spec.channels, SIZE, SIZE), torch.nan)


def world(channels=1):
    counts = {"train": 90, "test": 31, "validation": 20}
    splits = {name: split(count, channels, seed) for seed, (name, count) in enumerate(counts.items(), 1)}
    spec = splits["train"].spec
    return SimpleNamespace(**splits, class_names=["a", "<b>bold</b>", "c"], spec=spec, digest="d1" * 32)


def sorted_world():
    """The same in grey, with a test split sorted by class, as that of a folder."""
    dataset = world()
    order = np.argsort(dataset.test.labels, kind="stable")
    rows = dataset.test.rows(order)
    dataset.test = array_split(rows["image"], rows["label"], CLASSES)
    return dataset


@pytest.fixture(params=[1, pytest.param(3, marks=pytest.mark.nightly)], ids=["grey", "rgb"])
def dataset(request):
    return world(request.param)


@pytest.fixture
def tasks(dataset):
    kinds = {"cnn": Classifier, "gan": Conditional, "free": Unconditional, "ae": Autoencoder}
    return {name: kind(dataset.spec.channels).eval() for name, kind in kinds.items()}


def write_history(folder: Path, steps=(1, 2, 3)):
    """Write what a training writes."""
    (folder / "samples").mkdir(parents=True)
    lines = [
        {
            "step": step,
            "time": 1_700_000_000_000 + step,
            "metrics": {"train/net/loss": 1 / step, "validation/loss": 2.0},
        }
        for step in steps
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in steps:
        Image.new("L", (8, 8), step).save(folder / "samples" / f"step-{step:08d}.png")
    (folder / "times.json").write_text(
        '{"total": 12.5, "loop": 10.0, "workers": 1, "device": "cpu", "mode": "local", '
        '"images_per_second": 1234.5}'
    )


def run(dataset, tasks, folder, settings=SETTINGS, more=None, digests=None):
    """Evaluate ``tasks`` on ``dataset``, named images, and ``more`` data sets."""
    digests = {name: name * 4 for name in tasks} | (digests or {})
    places = {"history": folder / "history", "metrics": folder / "metrics", "plots": folder / "plots"}
    return evaluate(settings, {"images": dataset, **(more or {})}, tasks, digests, **places)
