"""The user's scenes: pictures below ``images/`` and their masks, with equal names, below ``masks/``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.core.fields import DataSpec, Field
from pipeline.data.findings import FULL_LIST, Findings
from pipeline.data.folders import list_files, read_file, seen_by_dvc
from pipeline.data.images import SUFFIXES, BrokenImage, decode, resize, upright_size
from pipeline.data.scenes.masks import read_colors, read_mask
from pipeline.data.scenes.settings import SceneSettings
from pipeline.data.settings import COLORS
from pipeline.data.split_names import is_split, split_of
from pipeline.data.splits import MIN_IMAGES, divide
from pipeline.data.threads import in_order
from pipeline.errors import BadInput
from pipeline.layers.label_maps import IGNORED

CHUNK = 16  # scenes that a thread decodes at a time
ROLES = ("images", "masks")
MASK_SUFFIXES = {".png", ".bmp", ".gif", ".tif", ".tiff"}  # formats without loss
REMEDY = "put pictures into images/ and a mask with the same name for each into masks/"
LAYOUT = "perhaps below train/, val/ and test/"


class Pair(NamedTuple):
    """A picture and its mask: paths in the folder, and their common part without the suffix."""

    key: str
    image: str
    mask: str


@dataclass
class Scenes(Findings):
    """The pairs by the split of the source, and 'train' without splits; and what is wrong with them."""

    pairs: dict[str, list[Pair]] = field(default_factory=dict)


def find_pairs(path: Path) -> Scenes:
    """The pictures and masks of a folder or archive. All faults of their names are in the result.

    Raises ``BadInput`` only if ``path`` cannot be listed.
    """
    listing = list_files(path)
    scenes = Scenes(listing.skipped, listing.faults, listing.remedies, listing.warnings)
    files: dict[str, dict[str, list[str]]] = {role: {} for role in ROLES}  # by role and key
    others, lossy = list[str](), list[str]()
    for name in listing.files:
        parts = PurePosixPath(name).parts
        role = next((part.lower() for part in parts[:-1] if part.lower() in ROLES), "")
        suffix = PurePosixPath(name).suffix.lower()
        if not role or suffix not in SUFFIXES:
            others.append(name)
        elif role == "masks" and suffix not in MASK_SUFFIXES:
            lossy.append(name)
        else:
            rest = "/".join(part for part in parts if part.lower() != role)
            files[role].setdefault(rest.removesuffix(PurePosixPath(name).suffix), []).append(name)
    images, masks = (files[role] for role in ROLES)
    scenes.skip("not pictures in images/ or masks/", others)
    coco = [name for name in others if name.lower().endswith(".json")]
    if coco and not masks:
        remedy = "draw a mask for each picture, with pycocotools: coco.annToMask(annotation)"
        scenes.fault("has polygons (COCO's annotations), which no installed library reads", coco, remedy)
    elif not images or not masks:
        missing = [f"{role}/" for role in ROLES if not files[role]]
        scenes.fault("has no pictures in the folders", missing, f"{REMEDY}, {LAYOUT}")
    lossless = "save masks as PNG files: formats with loss change the classes of pixels"
    scenes.fault("has masks in a format with loss", lossy, lossless)
    twice = [name for some in files.values() for names in some.values() if len(names) > 1 for name in names]
    scenes.fault("has several files with the same name, apart from the suffix", twice, "rename them")
    without = [names[0] for key, names in images.items() if key not in masks]
    scenes.fault("has images without a mask", without, REMEDY)
    scenes.fault(
        "has masks without an image", [masks[key][0] for key in masks.keys() - images.keys()], REMEDY
    )
    for key in sorted(images.keys() & masks.keys()):
        tops = [part for part in key.split("/")[:-1] if is_split(part)]
        split = str(split_of(tops[0])) if tops else ""
        scenes.pairs.setdefault(split, []).append(Pair(key, images[key][0], masks[key][0]))
    _check_splits(scenes)
    return scenes


def _check_splits(scenes: Scenes) -> None:
    splits = scenes.pairs
    if "" in splits and len(splits) > 1:
        names = [pair.image for pair in splits.pop("")]
        scenes.fault("has pictures outside the folders of its splits", names, "move them into a split")
    elif "" in splits:
        splits["train"] = splits.pop("")
    if splits and "train" not in splits:
        scenes.fault("has no training split, only", list(splits), "add a folder train/")
    few = len(splits.get("train", [])) < MIN_IMAGES and len(splits) < 3
    if splits and few and not scenes.faults:
        what = f"has fewer than the {MIN_IMAGES} pictures that are needed to draw splits"
        scenes.fault(what, [pair.image for pair in splits["train"]], "add pictures, or all three splits")


@dataclass(frozen=True)
class FolderReader:
    """Reads the pairs of a folder or archive."""

    path: Path
    settings: SceneSettings
    colors: Mapping[int, int]

    def mask(self, pair: Pair) -> np.ndarray:
        """The label map (H, W), uint8, as the file has it. Raises ``BrokenImage``."""
        return read_mask(read_file(self.path, pair.mask), self.colors)

    def picture_size(self, pair: Pair) -> tuple[int, int]:
        """Width and height of the picture, which is decoded. Raises ``BrokenImage``."""
        data = read_file(self.path, pair.image)
        self._decode(data)
        return upright_size(data)

    def _decode(self, data: bytes) -> np.ndarray:
        channels, size, fit = COLORS[self.settings.color], self.settings.size, self.settings.fit
        return decode(data, channels, size, fit)

    def chunks(self, pairs: Sequence[Pair]) -> Iterator[dict[str, np.ndarray]]:
        """The scenes, resized to the settings' size: images (n, C, size, size) and masks, uint8."""
        parts = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
        yield from in_order(self._chunk, parts, "scenes", f"decoding: chunks of {CHUNK}")

    def _chunk(self, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
        size, fit = self.settings.size, self.settings.fit
        masks = [resize(Image.fromarray(self.mask(pair)), size, fit, "label_map") for pair in pairs]
        images = np.stack([self._decode(read_file(self.path, pair.image)) for pair in pairs])
        return {"image": images, "mask": np.stack([np.asarray(mask) for mask in masks])}


def open_folder(
    settings: SceneSettings, root: Path
) -> tuple[DataSpec, tuple[str, ...], dict[str, Iterator[dict[str, np.ndarray]]]]:
    """The fields, the names of the classes, and the chunks of each split.

    Every file is decoded once before. The folder is relative to ``root``. Raises ``BadInput`` with
    all faults at once.
    """
    path = seen_by_dvc(root / settings.folder, root)
    if not path.exists():
        remedy = "correct the setting; DVC watches data/own"
        raise BadInput(
            "no such folder or archive", where=f"params.yaml: scenes.folder: {path}", remedy=remedy
        )
    scenes = find_pairs(path)
    names, colors = _read_table(path, settings.colors, scenes) if settings.colors else (settings.classes, {})
    reader = FolderReader(path, settings, colors)
    largest = _check_pixels(scenes, reader, len(names))
    scenes.refuse(str(path), root / FULL_LIST)
    names = names or ("background", *map(str, range(1, largest + 1)))
    mask = Field("label_map", (settings.size, settings.size), len(names))
    channels = COLORS[settings.color]
    spec = DataSpec({"image": Field("image", (channels, settings.size, settings.size)), "mask": mask})
    parts = {
        split: [pairs[index] for index in indices] for split, pairs, indices in _divided(scenes, settings)
    }
    return spec, names, {split: reader.chunks(pairs) for split, pairs in parts.items()}


def _read_table(path: Path, name: str, scenes: Scenes) -> tuple[tuple[str, ...], dict[int, int]]:
    """The classes and their colours; both empty, and a fault of ``scenes``, if the file cannot be used."""
    try:
        return read_colors(read_file(path, name).decode("utf-8-sig"))
    except (OSError, ValueError, KeyError) as error:
        remedy = f"name a table of colours in {path} in scenes.colors, or correct it"
        scenes.fault(f"has no table of colours that can be read ({error})", [name], remedy)
        return (), {}


class _Examined(NamedTuple):
    """What is wrong with a pair: reasons and names of files, and different sizes; and the mask's values."""

    broken: list[tuple[str, str]]
    sizes: str
    values: list[int]


def _examine(reader: FolderReader, pair: Pair) -> _Examined:
    """Decode a pair; its mask is left out if the table of colours cannot be used."""
    broken, size, mask = list[tuple[str, str]](), None, None

    @contextmanager
    def attempt(name: str) -> Iterator[None]:
        try:
            yield
        except (BrokenImage, OSError, ValueError) as error:
            reason, bracket, detail = str(error).partition(" (")
            broken.append((reason, name + bracket + detail))

    with attempt(pair.image):
        size = reader.picture_size(pair)
    with attempt(pair.mask):
        mask = reader.mask(pair) if reader.colors or not reader.settings.colors else None
    if mask is None:
        return _Examined(broken, "", [])
    shapes = ""
    if size and mask.shape != size[::-1]:
        shapes = f"{mask.shape[1]} x {mask.shape[0]}, the picture {size[0]} x {size[1]}"
    return _Examined(broken, shapes, np.unique(mask).tolist())


def _check_pixels(scenes: Scenes, reader: FolderReader, num_classes: int) -> int:
    """Decode all files and add their faults. Returns the largest class, at least 1."""
    largest, values = 1, set[int]()
    broken: dict[str, list[str]] = {}
    sizes, unknown = list[str](), list[str]()

    pairs = [pair for some in scenes.pairs.values() for pair in some]
    for one, pair in zip(in_order(partial(_examine, reader), pairs, "scenes", "checking: scenes"), pairs):
        for reason, name in one.broken:
            broken.setdefault(reason, []).append(name)
        if one.sizes:
            sizes.append(f"{pair.mask} ({one.sizes})")
        found = set(one.values)
        values |= found
        wrong = {value for value in found - {IGNORED} if value >= num_classes} if num_classes else set()
        unknown += [f"{pair.mask} ({', '.join(map(str, sorted(wrong)))})"] if wrong else []
        largest = max(largest, *(found - {IGNORED}), 0)
    for reason, names in broken.items():
        scenes.fault(f"has a file that {reason}", names, "repair, replace or remove it")
    scenes.fault("has masks of another size than their picture", sizes, "make masks of the same size")
    classes = f"has masks with classes above {num_classes - 1}, the last of {num_classes}"
    scenes.fault(classes, unknown, "name all classes in scenes.classes or in the table of colours")
    if values and values <= {0, IGNORED}:
        remedy = f"write 1 for the object: {IGNORED} means pixels that are ignored"
        scenes.fault(f"has only masks with the values 0 and {IGNORED}", sorted(map(str, values)), remedy)
    return largest


def _divided(scenes: Scenes, settings: SceneSettings) -> Iterator[tuple[str, list[Pair], np.ndarray]]:
    """Train, validation and test: the pairs of the source's split, and indices in it."""
    labels = {split: np.zeros(len(pairs), np.int64) for split, pairs in scenes.pairs.items()}
    names = [pair.key for pair in scenes.pairs["train"]]
    for split, (origin, indices) in divide(labels, ("scene",), settings, names).items():
        yield split, scenes.pairs[origin], indices
