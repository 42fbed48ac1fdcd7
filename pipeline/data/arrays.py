"""Pictures and labels in NumPy files: an .npz such as MedMNIST's, or .npy files in a folder."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.archives import Archive
from pipeline.data.split_names import split_of

CHANNELS = (1, 3, 4)
VALUES = "save the pictures with values from 0 to 1, 255 or 65535"
REMEDY = "save the pictures as (N, H, W) or (N, H, W, C), the labels as (N,)"


class Arrays(Archive):
    """Each picture of the arrays as a file ``<array>[<index>]``, with its split and class.

    Arrays of three or four dimensions are pictures: (N, H, W), (N, H, W, C) or (N, C, H, W). Arrays of N
    integers or texts are their labels. The names of the arrays give the splits, if they have any:
    ``train_images``, ``y_test``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.members: list[tuple[str, str | None, str]] = []  # file, split, class ('' without labels)
        self._pictures: dict[str, Pictures] = {}
        labels: dict[str | None, tuple[str, np.ndarray]] = {}
        for name, array in _load(path).items():
            split = split_of(name)
            if array.size and array.dtype.kind in "buif" and _are_pictures(array.shape):
                self._pictures[name] = Pictures(array)
                if not array.min() >= 0 or array.max() == np.inf:  # also for NaN
                    self.fault("has negative values, or some that are not finite", [name], VALUES)
            elif array.ndim in (1, 2) and 0 < array.size == len(array) and array.dtype.kind in "iuUb":
                labels[split] = name, array.ravel()
            else:
                self.fault(f"holds an array of the shape {array.shape}", [name], REMEDY)
        integers = [int(values.max()) for _, values in labels.values() if values.dtype.kind in "iu"]
        self._width = len(str(max(integers, default=0)))
        for name, pictures in self._pictures.items():
            self._pair(name, len(pictures.array), *labels.pop(split_of(name), ("", None)))
        self.fault("has labels without pictures", [name for name, _ in labels.values()], REMEDY)
        self.files = [name for name, *_ in self.members]

    def _pair(self, name: str, count: int, labels_name: str, labels: np.ndarray | None) -> None:
        """Add the pictures of an array with their labels."""
        if labels is None:
            labels = np.full(count, "")
        elif len(labels) != count:
            self.fault(f"has {len(labels):,} labels for {count:,} pictures", [name, labels_name], REMEDY)
        # Numbers of the same width sort as numbers.
        classes = [
            f"{value:0{self._width}d}" if isinstance(value, int) else value for value in labels.tolist()
        ]
        split = split_of(name)
        self.members += [(f"{name}[{index}]", split, label) for index, label in enumerate(classes)]

    def read(self, name: str) -> bytes:
        """A picture as a PNG file."""
        array, _, index = name.removesuffix("]").rpartition("[")
        stream = io.BytesIO()
        Image.fromarray(self._pictures[array][int(index)]).save(stream, "PNG", compress_level=0)
        return stream.getvalue()


class Pictures:
    """The pictures of an array as uint8 (H, W) or (H, W, C), or uint16 (H, W)."""

    def __init__(self, array: np.ndarray) -> None:
        if array.ndim == 4 and array.shape[-1] not in CHANNELS and array.shape[1] in CHANNELS:
            array = array.transpose(0, 2, 3, 1)
        self.array, largest = array, array.max()
        self.factor = 1.0
        self.type: np.dtype[Any] = np.dtype(np.uint8)
        if array.dtype.kind == "b" or (array.dtype.kind == "f" and largest <= 1):
            self.factor = 255.0
        elif largest > 255 and array.shape[-1] in CHANNELS[1:] and array.ndim == 4:
            self.factor = 1 / 257
        elif largest > 255:
            self.type = np.dtype(np.uint16)

    def __getitem__(self, index: int) -> np.ndarray:
        picture = self.array[index]
        if picture.ndim == 3 and picture.shape[-1] == 1:
            picture = picture[..., 0]
        if picture.dtype == self.type:
            return np.ascontiguousarray(picture)
        scaled = (picture * self.factor).round().clip(0, np.iinfo(self.type).max)
        return np.ascontiguousarray(scaled.astype(self.type))


def _are_pictures(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 or (len(shape) == 4 and bool({shape[1], shape[-1]} & {*CHANNELS}))


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, of an .npy, or of the .npy files in a folder, by name."""
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in sorted(file.files)}
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files}
