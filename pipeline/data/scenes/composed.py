"""Scenes that are composed of labelled pictures: several on one background, the later ones in front."""

import hashlib
from collections.abc import Iterator

import numpy as np
from scipy.ndimage import maximum_filter

from pipeline.core.dataset import Split
from pipeline.core.fields import DataSpec, Field, chunks
from pipeline.data.scenes.settings import MAX_SIZE, SceneSettings
from pipeline.errors import BadInput
from pipeline.layers.label_maps import IGNORED

CHUNK_BYTES = 64_000_000  # of the scenes and their pictures in memory


def spec_of(pictures: DataSpec, settings: SceneSettings) -> DataSpec:
    """The fields of the scenes. Raises ``BadInput`` if the pictures do not fit."""
    size = settings.size or 2 * pictures.size
    if size < pictures.size:
        what = f"is {size}, less than the {pictures.size} pixels of the pictures"
        remedy = f"set it to {min(MAX_SIZE, 2 * pictures.size)}, or to 0"
        raise BadInput(what, where="params.yaml: scenes.size", remedy=remedy)
    if pictures.classes >= IGNORED:
        what = f"{pictures.classes} classes of pictures are too many: {IGNORED - 1} fit into a mask"
        raise BadInput(what, where="data", remedy="use data with fewer classes")
    mask = Field("label_map", (size, size), 1 + pictures.classes)
    return DataSpec({"image": Field("image", (pictures.channels, size, size)), "mask": mask})


def compose(
    name: str, split: Split, count: int, spec: DataSpec, settings: SceneSettings
) -> Iterator[dict[str, np.ndarray]]:
    """``count`` scenes of the pictures of the split ``name``, in chunks.

    A scene is a pure function of the seed, the split's name and pictures, and the number of the scene.
    """
    most = settings.num_objects[1]
    size = spec.size**2 * (spec.channels + 1) + most * int(np.prod(split.spec["image"].shape))
    for numbers in chunks(count, max(1, CHUNK_BYTES // size)):
        random = np.stack([_random((settings.seed, name, int(one)), 1 + 3 * most) for one in numbers])
        rows = split.rows(random[:, 1 : 1 + most].flatten() % len(split))
        pictures = rows["image"].reshape(len(numbers), most, *rows["image"].shape[1:])
        labels = rows["label"].reshape(len(numbers), most)
        images = np.stack([_background(name, int(one), spec, settings) for one in numbers])
        masks = np.zeros((len(numbers), *spec["mask"].shape), np.uint8)
        least = settings.num_objects[0]
        for row, drawn in enumerate(random):
            for turn in range(least + int(drawn[0] % (most - least + 1))):
                places = drawn[1 + most + 2 * turn : 3 + most + 2 * turn]
                free = spec.size - pictures.shape[-1] + 1
                top, left = (int(place % free) for place in places)
                _place(images[row], masks[row], pictures[row, turn], labels[row, turn], top, left, settings)
        yield {"image": images, "mask": masks}


def _place(
    image: np.ndarray,
    mask: np.ndarray,
    picture: np.ndarray,
    label: int,
    top: int,
    left: int,
    settings: SceneSettings,
) -> None:
    """Put a picture (C, h, w) in front of what is in ``image`` (C, H, W) and ``mask`` (H, W)."""
    side = picture.shape[-1]
    area = (slice(top, top + side), slice(left, left + side))
    is_object = picture.max(0) > settings.threshold
    hides = maximum_filter(is_object, 2 * settings.outline + 1)
    behind = image[:, *area]
    image[:, *area] = np.where(hides, picture, np.maximum(picture, behind))
    mask[area][hides] = 0
    mask[area][is_object] = 1 + label


def _background(name: str, number: int, spec: DataSpec, settings: SceneSettings) -> np.ndarray:
    shape = spec["image"].shape
    if settings.background == "black":
        return np.zeros(shape, np.uint8)
    count = int(np.prod(shape)) if settings.background == "noise" else 1
    random = _random((settings.seed, name, number, "background"), -(-count // 8)).view(np.uint8)[:count]
    values = (random * settings.background_level).astype(np.uint8)
    return np.resize(values, shape)


def _random(key: tuple[int | str, ...], count: int) -> np.ndarray:
    """``count`` random numbers, uint64, that depend only on the key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    # The raw values are the same in all versions of NumPy.
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
