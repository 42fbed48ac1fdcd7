"""What the commands of README.md and docs/ expect to find: pictures, and settings merged into YAML files."""

import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

NUM_PICTURES, NUM_NEW = 120, 20  # of each class, at the start and in the delivery
AN_HOUR_SECONDS = 3600


def digits() -> None:
    """photo.png, mask.png, pictures/, scans/, small/ and the clip clip/: digits as a user's own files."""
    from sklearn.datasets import load_digits

    images = (load_digits().images * 15).astype(np.uint8)
    folders = ["pictures/1.png", "pictures/2.png", "scans/1.png", "scans/2.png", "small/1.png"]
    for number, name in enumerate(["photo.png", "mask.png", *folders]):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(images[number]).resize((40, 40)).save(name)
    Path("clip").mkdir(exist_ok=True)
    for number in range(8):  # a digit that moves to the right
        frame = Image.new("L", (40, 40))
        frame.paste(Image.fromarray(images[0]).resize((20, 20)), (2 * number, 10))
        frame.save(f"clip/{number}.png")


def flowers(accepted: str, incoming: str) -> None:
    """Flowers of two classes in the folder ``accepted``, and newer ones in ``incoming``."""
    random = np.random.default_rng(0)
    for label, colour in (("daisy", (235, 235, 225)), ("rose", (200, 30, 60))):
        for number in range(NUM_PICTURES + NUM_NEW):
            path = Path(accepted if number < NUM_PICTURES else incoming, label, f"{number:04d}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_flower(random, np.array(colour), petals=13 if label == "daisy" else 5)).save(
                path
            )
            long_ago = time.time() - AN_HOUR_SECONDS  # a delivery that is still arriving has to wait
            os.utime(path, (long_ago, long_ago))


def merge(target: str, source: str) -> None:
    """Merge a YAML block into params.yaml, or a stage into dvc.yaml."""
    round_trip = YAML()  # keeps comments, and builds no objects
    values, added = (round_trip.load(Path(name)) for name in (target, source))
    if Path(target).name == "dvc.yaml":
        values["stages"].update(added)
    else:
        for name, section in added.items():
            values.setdefault(name, {}).update(section)
    round_trip.dump(values, Path(target))


def _flower(random: np.random.Generator, colour: np.ndarray, petals: int) -> np.ndarray:
    """A flower (40, 40, 3), uint8, on a green ground."""
    y, x = np.mgrid[-1:1:40j, -1:1:40j] - random.uniform(-0.2, 0.2, (2, 1, 1))
    radius, angle = np.hypot(x, y), np.arctan2(y, x) + random.uniform(0, 6)
    image = np.where((radius < 0.5 + 0.2 * np.cos(petals * angle))[..., None], colour, (40, 120, 50))
    image = np.where((radius < 0.15)[..., None], (240, 200, 40), image)
    return np.clip(image + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    {"digits": digits, "flowers": flowers, "merge": merge}[sys.argv[1]](*sys.argv[2:])
