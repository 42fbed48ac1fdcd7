"""Membership inference against a VAE and a GAN that learned from some of the images, by number of steps.

    python benchmarks/privacy.py [vae gan] [--source mnist] [--size 28] [--images 5400] [--steps 1000 2000]
        [--attacked 2500] [--generated 10000]

The settings of the models are those of params.yaml, with a constant learning rate; the models of more steps
continue the trainings of fewer. The images are the first ones of each class of the training split.
For each attack the area under the ROC curve is printed, with its 95 % interval, the share of training images
found with 1 % false alarms, and the accuracy of "in the training" for the half of the images with the higher
scores: what Hilprecht et al. 2019 call single membership inference.
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from pipeline import environment
from pipeline.core import model_files
from pipeline.core.dataset import Dataset, Split
from pipeline.core.loop import Loop
from pipeline.core.settings import read_training
from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings
from pipeline.evaluation import averages
from pipeline.evaluation.context import Context
from pipeline.evaluation.evaluators import membership
from pipeline.evaluation.settings import EvaluationSettings

ROOT = Path(__file__).parents[1]


def prepare(folder: Path, source: str, size: int, count: int) -> SimpleNamespace:
    """The data set with ``count`` training images, as many of each class."""
    settings = DataSettings(source=source, image_size=size)
    download(settings, environment.read(), folder / "raw")
    preprocess(settings, environment.read(), folder / "raw", folder / "images")
    data = Dataset.open(folder / "images")
    labels = data.train.labels
    of_each = [
        np.flatnonzero(labels == label)[: count // len(data.class_names)] for label in np.unique(labels)
    ]
    few = Split([data.train.rows(np.concatenate(of_each))], data.spec)
    return SimpleNamespace(**{**vars(data), "train": few})


def attack(name: str, task: torch.nn.Module, data: SimpleNamespace, steps: int, seconds: float) -> None:
    """Print the success of each attack."""
    settings = EvaluationSettings(allow_few_samples=True)
    model = Context(settings, {"images": data}, {name: task}, {name: name}, ROOT, name)
    members, unseen = membership.chosen(model)
    for kind, each in membership.attacks(model).items():
        known, others = (membership.scores(model, each, rows) for rows in (members, unseen))
        area = averages.auroc(others, known)
        found = averages.true_positive_rate(known, others, membership.FALSE_POSITIVES, 200, 0)
        half = np.argsort(-np.concatenate([known, others]), kind="stable")[: len(known)]
        print(
            f"{name}, {len(data.train):,} images, {steps:,} steps, {seconds:.0f} processor seconds: {kind}: "
            f"area {area.value:.3f} ({area.low:.3f} to {area.high:.3f}), found {found.value:.1%} "
            f"({found.low:.1%} to {found.high:.1%}), accuracy {np.mean(half < len(known)):.1%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=["vae", "gan"])
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--images", type=int, default=5400)
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--attacked", type=int, default=2500)
    parser.add_argument("--generated", type=int, default=10_000)
    chosen = parser.parse_args()
    membership.NUM_IMAGES, membership.NUM_GENERATED = chosen.attacked, chosen.generated
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = prepare(folder, chosen.source, chosen.size, chosen.images)
        for name in chosen.models:
            training, config = read_training(name, model_files.find(name).Config, ROOT / "params.yaml")
            began = time.process_time()
            for steps in chosen.steps:
                changed = training.model_copy(
                    update={
                        "num_steps": steps,
                        "schedule": type(training.schedule)(),
                        "validate_every": 10**6,
                        "sample_every": 10**6,
                    }
                )
                task = model_files.build(name, config, data.spec, training.seed)
                trained = Loop(task, data, changed, folder / name).run().eval()
                seconds = time.process_time() - began
                with torch.inference_mode():
                    attack(name, trained, data, steps, seconds)


if __name__ == "__main__":
    main()
