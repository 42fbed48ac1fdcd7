"""Accuracy, error and membership of models that were trained with differential privacy, by epsilon.

    python benchmarks/differential_privacy.py [cnn ae] [--source digits] [--size 16] [--epsilon 0 8 3 1]
        [--images 200 --steps 200]

Epsilon 0: without privacy. With few images and many steps the models learn images by heart. Both are small
networks, trained with large batches and delta 1e-5. For each are printed the measures of the test images, the
areas under the ROC curve of the attacks, and processor seconds.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline import environment
from pipeline.core import model_files
from pipeline.core.dataset import Dataset, Split
from pipeline.core.loop import Loop
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings
from pipeline.evaluation import averages
from pipeline.evaluation.context import Context
from pipeline.evaluation.evaluators import membership
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.params import validate

SETTINGS = {
    "cnn": (
        {"channels": [16, 32], "dense": [32], "optimizer": {"learning_rate": 0.01}},
        {"num_steps": 40, "batch_size": 647},
        {"max_grad_norm": 1.0},
    ),
    "ae": (
        {"width": 8, "prior": "none", "optimizer": {"learning_rate": 0.006}},
        {"num_steps": 120, "batch_size": 323, "ema_decay": 0.9, "schedule": {"kind": "cosine"}},
        {"max_grad_norm": 0.03},
    ),
}


def measure(name: str, data: Dataset, epsilon: float, folder: Path) -> None:
    """Train a model with this epsilon, and print its measures."""
    model, training, privacy = SETTINGS[name]
    private = {"privacy": {"epsilon": epsilon, **privacy}} if epsilon else {}
    config = validate({**model, **private}, model_files.find(name).Config, where=name)
    never = {f"{what}_every": 10**6 for what in ("log", "validate", "sample", "checkpoint")}
    training["batch_size"] = min(training["batch_size"], len(data.train))
    settings = validate({**training, **never}, TrainingSettings, where=name)
    task = model_files.build(name, config, data.spec, 0)
    multiplier = task.private.begin(settings, len(data.train), b"measured") if epsilon else 0.0
    began = time.process_time()
    trained = Loop(task, data, settings, folder / f"{name}-{epsilon}").run().eval()
    seconds = time.process_time() - began
    with torch.inference_mode():
        test = data.test.batch(range(len(data.test)))
        measures = trained.evaluate(test, Noise.whole(0, len(test)))
        shown = ", ".join(f"{key} {value.mean():.4f}" for key, value in measures.items())
        context = Context(
            EvaluationSettings(allow_few_samples=True),
            {"images": data},
            {name: trained},
            {name: name},
            folder,
            name,
        )
        members, unseen = membership.chosen(context)
        for kind, attack in membership.attacks(context).items():
            known, others = (membership.scores(context, attack, rows) for rows in (members, unseen))
            area = averages.auroc(others, known)
            shown += f", {kind} {area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
    print(f"{name}, epsilon {epsilon:g}, noise {multiplier:.2f}: {shown}; {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=["cnn", "ae"])
    parser.add_argument("--source", default="digits")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.0, 8.0, 3.0, 1.0])
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, settings = Path(temporary), DataSettings(source=chosen.source, image_size=chosen.size)
        download(settings, environment.read(), folder / "raw")
        preprocess(settings, environment.read(), folder / "raw", folder / "images")
        data = Dataset.open(folder / "images")
        if chosen.images:
            rows = np.linspace(0, len(data.train) - 1, chosen.images).astype(np.int64)
            data.train = Split([data.train.rows(rows)], data.spec)
        for name in chosen.models:
            if chosen.steps:
                SETTINGS[name][1]["num_steps"] = chosen.steps
            for epsilon in chosen.epsilon:
                measure(name, data, epsilon, folder)


if __name__ == "__main__":
    main()
