"""The parts of gpu.py on real data: classifiers to a target accuracy, GANs for some minutes."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gpu_child
import numpy as np
import torch
from gpu_bench import Bench, LeftOut, settings_for
from gpu_speed import make_loop, now

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.task import Task

BATCH = 500  # images of an evaluation
MARGIN_SECONDS = 3  # to end a process before the time is over
GAN_SHARE = 0.8  # of the time; evaluation takes the rest
START_SECONDS = 15  # of a process, and of the first step of a training
SETTINGS_SECONDS = 25  # of the training of a change of the recipe


@dataclass(frozen=True)
class Recipe:
    """Settings of a model for a data set. A setting that the model does not have is left out."""

    model: dict[str, Any]
    training: dict[str, Any]
    num_steps: int = 1_000_000  # fewer if they do not fit the time
    target: float = 0.0  # test accuracy


CLASSIFIERS = {
    "mnist": Recipe(
        {
            "channels": (32, 64, 128, 128),
            "dense": (128,),
            "normalisation": "group",
            "dropout": 0.3,
            "shift": 0.08,
            "zoom": 0.1,
            "label_smoothing": 0.05,
            "optimizer": {"kind": "adamw", "learning_rate": 3e-3, "weight_decay": 0.03},
        },
        {"batch_size": 256, "clip_norm": 1.0, "ema_decay": 0.999},
        num_steps=4200,
        target=0.996,
    ),
    "cifar10": Recipe(
        {
            "architecture": "fast",
            "channels": (128, 384, 384),  # of airbench95
            "normalisation": "weight",
            "flip": 0.5,
            "crop": 4,
            "label_smoothing": 0.2,
            "test_time_flip": True,
            "optimizer": {"kind": "adamw", "learning_rate": 1e-2, "weight_decay": 0.05},
        },
        {"batch_size": 1024, "clip_norm": 1.0, "ema_decay": 0.99},
        num_steps=2200,  # 50 epochs
        target=0.94,
    ),
}
# Changes of the recipe of CIFAR-10 that are compared on the validation images, in order of interest.
CHANGES: dict[str, dict[str, Any]] = {
    "recipe": {},
    "erase": {"erase": 0.5},
    "momentum": {"optimizer": {"kind": "momentum", "learning_rate": 0.5, "weight_decay": 5e-4}},
    "group": {"normalisation": "group"},
    "residual": {"architecture": "residual", "channels": (64, 128, 256), "depth": 3, "crop": 4},
    "decay": {"optimizer": {"kind": "adamw", "learning_rate": 1e-2, "weight_decay": 0.2}},
    "mixup": {"mixup": 0.2},
}
GANS = {
    "mnist": Recipe(  # params.yaml
        {"latent_size": 32, "width": 16, "shift": 0.06}, {"batch_size": 64, "ema_decay": 0.995}
    ),
    "cifar10": Recipe(  # not tuned
        {"latent_size": 128, "width": 64, "flip": 0.5, "shift": 0.125},
        {"batch_size": 64, "ema_decay": 0.999},
    ),
}


def data_of(bench: Bench, name: str) -> Dataset:
    """A real data set; with ``tiny`` sizes synthetic images."""
    if bench.sizes.tiny:
        return bench.data["images"]
    if name not in bench.data:
        raise LeftOut(f"no {name} in the folder of --data")
    return bench.data[name]


def configure(bench: Bench, model: str, recipe: Recipe) -> Any:
    """The configuration of a recipe; with ``tiny`` sizes the smallest."""
    if bench.sizes.tiny:
        return bench.config(model)
    kind = model_files.find(model).Config
    known = {key: value for key, value in recipe.model.items() if key in kind.model_fields}
    return model_files.validate(known, kind, where=model)


def best_precision(device: torch.device) -> str:
    """The precision for fast training on ``device``."""
    if device.type != "cuda":
        return "float32"
    # Older GPUs emulate bfloat16.
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"


def classifier(bench: Bench, name: str) -> dict[str, Any]:
    """Train to the target: seconds from the start of a process (cold), and again in that process (warm)."""
    recipe, data = CLASSIFIERS[name], data_of(bench, name)
    config = configure(bench, "cnn", recipe)
    # Two trainings, each with a margin of a fifth for a rate that was measured too high.
    limit = min(bench.sizes.training_seconds * bench.scale, (bench.left - START_SECONDS) / 2.4)
    settings = fitting(bench, recipe, config, data, limit)
    job = gpu_child.Job("cnn", data, settings, config, bench.folder / f"classifier-{name}", times=2)
    cold, *warm = job.run(bench.device, bench.left - MARGIN_SECONDS)
    bench.check(all(again["sha256"] == cold["sha256"] for again in warm), "the two trainings differ")
    return {
        "accuracy": cold["accuracy"],
        "target": recipe.target,
        "reached": cold["accuracy"] >= recipe.target,
        "cold_seconds": cold["seconds_from_start"],
        "warm_seconds": warm[0]["seconds"] if warm else None,
        "steps": settings.num_steps,
        "steps_of_recipe": recipe.num_steps,
        "precision": settings.precision,
    }


def fitting(bench: Bench, recipe: Recipe, config: Any, data: Dataset, seconds: float) -> TrainingSettings:
    """The settings of a recipe for a classifier, with fewer steps if they take more than ``seconds``."""
    changes = {"precision": best_precision(bench.device)} | ({"batch_size": 32} if bench.sizes.tiny else {})
    settings = settings_for(bench, "cnn", config, data, seconds, **recipe.training | changes)
    steps = min(recipe.num_steps, settings.num_steps)
    schedule = {"kind": "cosine", "warmup_steps": min(200, steps // 10)}
    last = dict.fromkeys(("validate_every", "sample_every", "checkpoint_every"), steps)
    changes = {"num_steps": steps, "schedule": schedule, "log_every": max(1, steps // 20), **last}
    return TrainingSettings.model_validate({**settings.model_dump(), **changes})


def settings_of_cifar10(bench: Bench) -> dict[str, Any]:
    """Changes of the recipe, each trained once for a short time: accuracy on the validation images."""
    recipe, data = CLASSIFIERS["cifar10"], data_of(bench, "cifar10")
    for label, change in CHANGES.items():
        if bench.left < SETTINGS_SECONDS * bench.scale * 1.5:
            break
        with bench.going_on(label):
            config = configure(bench, "cnn", replace(recipe, model=recipe.model | change))
            seconds = min(SETTINGS_SECONDS, bench.sizes.training_seconds) * bench.scale
            settings = fitting(bench, recipe, config, data, seconds)
            began = now(bench.device)
            folder = bench.folder / f"settings-{label}"
            trained = make_loop("cnn", data, settings, config, folder, bench.device).run()
            seconds = now(bench.device) - began
            accuracy = gpu_child.accuracy(trained, data.validation)
            bench.found[label] = {"validation": accuracy, "seconds": seconds, "steps": settings.num_steps}
    return bench.found


def gan(bench: Bench, name: str) -> dict[str, Any]:
    """Train for some minutes; the Fréchet distance in the feature space of the classifier trained before."""
    recipe, data = GANS[name], data_of(bench, name)
    trained = bench.folder / f"classifier-{name}/run-0/model"
    if not trained.is_dir():
        raise LeftOut(f"no classifier of {name} was trained")
    config = configure(bench, "gan", recipe)
    limit = min(bench.sizes.gan_seconds * bench.scale, GAN_SHARE * bench.left - START_SECONDS)
    settings = settings_for(bench, "gan", config, data, limit, **recipe.training)
    began = now(bench.device)
    loop = make_loop("gan", data, settings, config, bench.folder / f"gan-{name}", bench.device)
    generator = loop.run()
    seconds = now(bench.device) - began
    distance, floor = _distances(generator, model_files.load(trained, str(bench.device)), data)
    rate = settings.num_steps * settings.batch_size / seconds
    found = {"seconds": seconds, "steps": settings.num_steps, "images_per_second": rate}
    return found | {"distance": distance, "real_against_real": floor, "generated_images": len(data.test)}


@torch.no_grad()
def _distances(generator: Task, classifier: Task, data: Dataset) -> tuple[float, float]:
    """Fréchet distances to the training split: of as many generated as test images, and of these."""
    from pipeline.evaluation.features import FeatureSpace
    from pipeline.evaluation.frechet import moments

    space, device = FeatureSpace.of_classifier("cnn", classifier, ""), generator.device
    starts = range(0, len(data.test), BATCH)

    def draw(start: int) -> torch.Tensor | None:
        count = min(BATCH, len(data.test) - start)
        labels = torch.arange(start, start + count, device=device) % data.spec.classes
        return generator.generate(labels, count, Noise.whole(0, count, "gpu.py", start, device))

    reference = space.vectors(batch.images for batch in data.train.batches(BATCH, device))
    scale = float(np.sqrt(np.mean(reference**2))) or 1.0  # as in the evaluation
    of_train = moments(reference / scale)
    real = space.vectors(batch.images for batch in data.test.batches(BATCH, device))
    return tuple(
        _frechet(moments(vectors / scale), of_train) for vectors in (space.vectors(map(draw, starts)), real)
    )


def _frechet(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """As pipeline.evaluation.frechet.distance, without SciPy. Mean (D,) and covariance (D, D) of each."""
    (mean1, covariance1), (mean2, covariance2) = first, second
    values, vectors = np.linalg.eigh(covariance1)
    root = vectors * np.sqrt(np.maximum(values, 0))  # root root^T is the covariance
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root.T @ covariance2 @ root), 0)).sum()
    traces = np.trace(covariance1) + np.trace(covariance2)
    return max(0.0, float(((mean1 - mean2) ** 2).sum() + traces - 2 * shared))


PARTS = {
    "mnist": partial(classifier, name="mnist"),
    "cifar10": partial(classifier, name="cifar10"),
    "gan-mnist": partial(gan, name="mnist"),
    "gan-cifar10": partial(gan, name="cifar10"),
}
