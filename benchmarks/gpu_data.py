"""Data sets for gpu.py: processed ones, arrays in .npz files, and synthetic images.

Only :func:`prepare` needs more than torch, numpy, pydantic and safetensors.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline.core.dataset import SPLITS, Dataset
from pipeline.core.fields import DataSpec, Field
from pipeline.data.shards import ShardWriter
from pipeline.errors import DarkroomError
from pipeline.files import atomic_folder, write_json

NAMES = ("mnist", "cifar10")
VALIDATION_FRACTION = 0.1  # of the training images in an .npz file
CIFAR_ZIP = "cifar10-images.zip"  # class folders in train/ and test/; used if the official archive is missing
CLASSES, NUM_FRAMES = 10, 8  # of synthetic examples
Arrays = dict[str, dict[str, np.ndarray]]  # by split: the stored values of each field


def prepare(folder: Path, mirror: Path) -> None:
    """Write ``folder``/mnist and ``folder``/cifar10 from the archives in ``mirror``, as the stages do."""
    from pipeline.data.download import download
    from pipeline.data.preprocess import preprocess
    from pipeline.data.settings import DataSettings
    from pipeline.environment import Environment

    settings = {name: DataSettings(source=name) for name in NAMES}
    if not (mirror / "cifar10").is_dir() and (mirror / CIFAR_ZIP).is_file():
        settings["cifar10"] = DataSettings(source="folder", folder=str(mirror / CIFAR_ZIP), image_size=32)
    for name, chosen in settings.items():
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            environment = Environment(root=root, storage=root / "storage", mirror=str(mirror.resolve()))
            download(chosen, environment, root / "raw")
            manifest = preprocess(chosen, environment, root / "raw", folder / name)
        counts = {split: entry["count"] for split, entry in manifest["splits"].items()}
        print(f"{folder / name}: {counts}", flush=True)


def open_all(folder: Path, temporary: Path) -> dict[str, Dataset]:
    """The data sets in ``folder``: for each name a processed folder or ``<name>.npz``.

    The file has the arrays train_images, train_labels, test_images and test_labels; images are uint8,
    (N, H, W), (N, H, W, C) or (N, C, H, W). One that cannot be read is reported on stderr and left out.
    """
    found = {}
    for name in NAMES:
        try:
            if (folder / name / "manifest.json").is_file():
                found[name] = Dataset.open(folder / name)
            elif (folder / f"{name}.npz").is_file():
                arrays = _read_npz(folder / f"{name}.npz")
                images, labels = arrays["train"].values()
                spec = DataSpec.labelled_images(images.shape[1], images.shape[2], int(labels.max()) + 1)
                found[name] = write(temporary / name, name, spec, arrays)
        except (DarkroomError, OSError, ValueError, KeyError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def synthetic(folder: Path, kind: str, channels: int, size: int, count: int, seed: int = 0) -> Dataset:
    """``count`` training examples of ``kind`` images, clips or scenes, in squares of ``size`` pixels.

    An image is one of ten classes: a bright square in another place for each, and noise. A clip is an image
    that moves to the right. The mask of a scene is 1 + the class in the square, and 0 outside of it.
    """
    random = np.random.default_rng(seed)

    def draw(number: int) -> dict[str, np.ndarray]:
        labels = np.arange(number, dtype=np.int64) % CLASSES
        images = random.integers(0, 60, (number, channels, size, size), dtype=np.uint8)
        mask = np.zeros((number, size, size), dtype=np.uint8)
        side = size // 4
        for label in range(CLASSES):
            top, left = divmod(label, 4)
            square = np.s_[top * side : (top + 1) * side, left * side : (left + 1) * side]
            images[label::CLASSES, :, *square] += 150
            mask[label::CLASSES, *square] = 1 + label
        if kind == "clips":
            return {"clip": np.stack([np.roll(images, shift, 3) for shift in range(NUM_FRAMES)], 1)}
        return {"image": images} | ({"mask": mask} if kind == "scenes" else {"label": labels})

    image, clip = (channels, size, size), (NUM_FRAMES, channels, size, size)
    spec = {
        "images": DataSpec.labelled_images(channels, size, CLASSES),
        "clips": DataSpec({"clip": Field("clip", clip)}),
        "scenes": DataSpec(
            {"image": Field("image", image), "mask": Field("label_map", (size, size), 1 + CLASSES)}
        ),
    }[kind]
    numbers = {"train": count, "validation": max(64, count // 10), "test": max(64, count // 10)}
    return write(
        folder, f"synthetic {kind}", spec, {split: draw(number) for split, number in numbers.items()}
    )


def write(folder: Path, source: str, spec: DataSpec, arrays: Arrays) -> Dataset:
    """Write ``arrays`` as a processed data set, and open it."""
    with atomic_folder(folder) as temporary:
        splits = {}
        for split in SPLITS:
            writer = ShardWriter(temporary / split, spec)
            writer.write(arrays[split])
            count = len(next(iter(arrays[split].values())))
            splits[split] = {"count": count, "shards": writer.close()}
        names = [str(label) for label in range(spec.classes)] if "label" in spec.fields else []
        about = {"source": source, "class_names": names, "fields": spec.to_json(), "splits": splits}
        write_json(temporary / "manifest.json", about)
    return Dataset.open(folder)


def _read_npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        train, test = (
            {
                "image": _channels_first(file[f"{split}_images"]),
                "label": file[f"{split}_labels"].astype(np.int64).ravel(),
            }
            for split in ("train", "test")
        )
    order = np.random.default_rng(0).permutation(len(train["label"]))
    held_out, kept = np.split(order, [int(VALIDATION_FRACTION * len(order))])
    parts = {"train": kept, "validation": held_out}
    of_train = {part: {name: values[rows] for name, values in train.items()} for part, rows in parts.items()}
    return of_train | {"test": test}


def _channels_first(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    return images if images.shape[1] in (1, 3) else images.transpose(0, 3, 1, 2)
