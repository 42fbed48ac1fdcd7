"""Data sets for gpu.py: processed ones, arrays in .npz files, and synthetic images.

Only :func:`prepare` needs more than torch, numpy, pydantic and safetensors.
"""

import tempfile
from pathlib import Path

import numpy as np

from pipeline.core.dataset import SPLITS, Dataset
from pipeline.core.fields import DataSpec
from pipeline.data.shards import ShardWriter
from pipeline.files import atomic_folder, write_json

NAMES = ("mnist", "cifar10")
VALIDATION_FRACTION = 0.1  # of the training images in an .npz file
CIFAR_ZIP = "cifar10-images.zip"  # class folders in train/ and test/; used if the official archive is missing
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # by split: images (N, C, H, W), uint8, and labels (N,)


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
    (N, H, W), (N, H, W, C) or (N, C, H, W).
    """
    found = {}
    for name in NAMES:
        if (folder / name / "manifest.json").is_file():
            found[name] = Dataset.open(folder / name)
        elif (folder / f"{name}.npz").is_file():
            found[name] = write(temporary / name, name, _read_npz(folder / f"{name}.npz"))
    return found


def synthetic(folder: Path, channels: int, size: int, count: int, seed: int = 0) -> Dataset:
    """``count`` training images of ten classes: a bright square in another place for each, and noise."""
    random = np.random.default_rng(seed)

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(number, dtype=np.int64) % 10
        images = random.integers(0, 60, (number, channels, size, size), dtype=np.uint8)
        side = size // 4
        for label in range(10):
            top, left = divmod(label, 4)
            square = np.s_[label::10, :, top * side : (top + 1) * side, left * side : (left + 1) * side]
            images[square] += 150
        return images, labels

    numbers = {"train": count, "validation": max(64, count // 10), "test": max(64, count // 10)}
    return write(folder, "synthetic", {split: draw(number) for split, number in numbers.items()})


def write(folder: Path, source: str, arrays: Arrays) -> Dataset:
    """Write ``arrays`` as a processed data set, and open it."""
    images, labels = arrays["train"]
    classes = int(labels.max()) + 1
    spec = DataSpec.labelled_images(images.shape[1], images.shape[2], classes)
    with atomic_folder(folder) as temporary:
        splits = {}
        for split in SPLITS:
            writer = ShardWriter(temporary / split, spec)
            writer.write(dict(zip(spec.fields, arrays[split], strict=True)))
            splits[split] = {"count": len(arrays[split][1]), "shards": writer.close()}
        names = [str(label) for label in range(classes)]
        about = {"source": source, "class_names": names, "fields": spec.to_json(), "splits": splits}
        write_json(temporary / "manifest.json", about)
    return Dataset.open(folder)


def _read_npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        train, test = (
            (_channels_first(file[f"{split}_images"]), file[f"{split}_labels"].astype(np.int64).ravel())
            for split in ("train", "test")
        )
    order = np.random.default_rng(0).permutation(len(train[1]))
    held_out, kept = np.split(order, [int(VALIDATION_FRACTION * len(order))])
    return {
        "train": (train[0][kept], train[1][kept]),
        "validation": (train[0][held_out], train[1][held_out]),
        "test": test,
    }


def _channels_first(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    return images if images.shape[1] in (1, 3) else images.transpose(0, 3, 1, 2)
