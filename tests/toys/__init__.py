"""Small models that use what the four models of Darkroom do not: a file, a section and a stage each.

``toy_clip`` predicts the last frame of a clip, ``toy_mask`` labels pixels, ``toy_probe`` needs a trained
autoencoder, ``toy_wgan`` has a gradient penalty in a phase that runs on every second step.
"""

from pathlib import Path

from pipeline.core.dataset import Split

FOLDER = Path(__file__).parent
NAMES = ("toy_clip", "toy_mask", "toy_probe", "toy_wgan")
TRAINING = {"num_steps": 24, "batch_size": 16, "log_every": 4, "validate_every": 8, "checkpoint_every": 6}
PARAMS = {name: {"training": {**TRAINING, "ema_decay": 0.9}, "model": {}} for name in NAMES}
PARAMS["toy_mask"]["training"] |= {"keep": "best", "monitor": "validation/mean_iou", "monitor_mode": "max"}


def register() -> None:
    """Find these models like those of pipeline/models, in this process."""
    import pipeline.models

    pipeline.models.__path__.append(str(FOLDER / "models"))


def array_dataset(name: str):
    """In-memory data for the model ``name``."""
    from pipeline.core import model_files
    from tests.arrays import ArrayDataset
    from tests.toys import compose

    data = ArrayDataset()
    if (kind := model_files.find(name).dataset) != "images":
        data.spec, make = compose.DATASETS[kind](data.spec["image"])
        for split in ("train", "validation", "test"):
            images = getattr(data, split).rows(range(len(getattr(data, split))))["image"]
            setattr(data, split, Split([make(images)], data.spec))
    return data
