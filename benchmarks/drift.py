"""Measure the false alarm rate and the power of drift detection.

    python benchmarks/drift.py [--batches 200] [--mnist FOLDER]

Trains the pipeline's classifier on a part of scikit-learn's digits (or of MNIST, from a folder with its IDX
files). Then it draws many pairs of a reference of 600 held-out images and a disjoint batch, and changes the
batch. Prints the share of batches with an alarm and its 95 % interval, for all tests together and for each
test. Rotation also blurs the images, which the test ``sharpness`` detects; ``there and back`` rotates by 15
degrees and back, so that only the blur remains.
"""

import tempfile
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from pipeline.core import model_files
from pipeline.core.dataset import Split
from pipeline.core.loop import Loop
from pipeline.core.settings import ScheduleSettings, TrainingSettings
from pipeline.core.task import Batch, DataSpec, Task
from pipeline.data import formats, images
from pipeline.evaluation.averages import proportion
from pipeline.evaluation.features import FeatureSpace
from pipeline.retraining.drift import DriftSettings, measure, observe

REFERENCE, SIZES, HELD_OUT, CHUNK = 600, (50, 200), 6000, 500
NAMES = tuple("0123456789")
OPTIMIZER = {"learning_rate": 3e-3, "weight_decay": 0.01}


def rotated(degrees: float):
    """A bilinear rotation about the centre, with black borders."""
    return lambda pictures: ndimage.rotate(pictures, degrees, axes=(3, 2), reshape=False, order=1)


CHANGES = {
    "none": lambda pictures: pictures,
    "another class mix": lambda pictures: pictures,  # 0 to 4 three times as likely as 5 to 9
    "rotation, 10 degrees": rotated(10),
    "rotation, 20 degrees": rotated(20),
    "rotation, 30 degrees": rotated(30),
    "there and back": lambda pictures: rotated(-15)(rotated(15)(pictures)),
    "inversion": lambda pictures: 255 - pictures,
    "brightness, 20 % more": lambda pictures: np.clip(pictures * 1.2, 0, 255).round().astype(np.uint8),
    "thicker strokes": lambda pictures: ndimage.grey_dilation(pictures, (1, 1, 2, 2)),
}


def read(mnist: Path | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Images and labels in a fixed random order, and how many of them to train on."""
    if mnist is None:
        small, labels = formats.read_digits(Path(str(files("sklearn.datasets") / "data" / "digits.csv.gz")))
        resized = [images.resize_array(images.from_array(picture), 1, 16) for picture in small]
        pictures, count = np.stack(resized), 600
    else:
        paths = [mnist / f"train-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
        (pictures, labels), count = formats.read_idx_pair(*paths, (1, 28, 28), 10), 5000
    order = np.random.default_rng(0).permutation(len(labels))[: count + HELD_OUT]
    return pictures[order], labels[order], count


def trained(pictures: np.ndarray, labels: np.ndarray, steps: int = 300) -> Task:
    """The pipeline's classifier, trained with the pipeline's loop."""
    task = model_files.build(
        "cnn",
        {"dropout": 0.2, "shift": 0.08, "zoom": 0.1, "optimizer": OPTIMIZER},
        spec := DataSpec.labelled_images(1, pictures.shape[-1], 10),
        0,
    )
    schedule = ScheduleSettings(kind="cosine", warmup_steps=20)
    settings = TrainingSettings(
        num_steps=steps, clip_norm=1.0, ema_decay=0.99, schedule=schedule, checkpoint_every=steps
    )
    data = SimpleNamespace(
        train=Split([{"image": pictures, "label": labels}], spec),
        validation=Split([{"image": pictures[:100], "label": labels[:100]}], spec),
    )
    with tempfile.TemporaryDirectory() as folder:
        return Loop(task, data, settings, Path(folder)).run()  # type: ignore[arg-type]


@click.command()
@click.option("--batches", default=200, show_default=True, help="Batches of each size and change.")
@click.option(
    "--mnist",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with MNIST's IDX archives.",
)
def main(batches: int, mnist: Path | None) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    pictures, labels, count = read(mnist)
    task = trained(pictures[:count], labels[:count])
    pictures, labels = pictures[count:], labels[count:]
    space, settings, random = (
        FeatureSpace.of_classifier("cnn", task, ""),
        DriftSettings(),
        np.random.default_rng(1),
    )
    rows, quiet = [], None
    for change, function in CHANGES.items():
        changed = function(pictures)
        seen = observe(
            ((changed[at : at + CHUNK], labels[at : at + CHUNK]) for at in range(0, len(labels), CHUNK)),
            space,
        )
        quiet = quiet or seen
        logits = task.classify(Batch.load({"image": changed}, task.spec).images)
        correct = float((logits.argmax(1).numpy() == labels).mean())
        for size in SIZES:
            found = []
            for number in range(batches):
                order = random.permutation(len(labels))
                rest = order[REFERENCE:]
                odds = np.where((labels[rest] < 5) & (change == "another class mix"), 3.0, 1.0)
                batch = random.choice(rest, size, replace=False, p=odds / odds.sum())
                found.append(
                    measure(quiet.rows(order[:REFERENCE]), seen.rows(batch), settings, number, NAMES)
                )
            estimate = proportion(np.array([drift.alarm for drift in found]))
            shares = {
                test.name: np.mean([drift.tests[at].alarm for drift in found])
                for at, test in enumerate(found[0].tests)
            }
            interval = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
            effect = {"effect of features": np.median([drift.tests[0].effect for drift in found])}
            row = {
                "change": change,
                "accuracy": correct,
                "size": size,
                "alarm": estimate.value,
                "95 %": interval,
            }
            rows.append(row | shares | effect)
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda number: f"{number:.3f}"))


if __name__ == "__main__":
    main()
