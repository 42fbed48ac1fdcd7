"""The stage ``compose-clips``: write the data set ``clips``."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.core.dataset import SPLITS, Dataset
from pipeline.core.fields import PROCESSED, DataSpec, Field
from pipeline.data.class_folders import ONE_CLASS, Entry, find_classes
from pipeline.data.clips.folder import ReadFrames, check, find_clips
from pipeline.data.clips.moving import moving_clips
from pipeline.data.clips.settings import DIRECTIONS, ClipSettings
from pipeline.data.findings import FULL_LIST, Findings
from pipeline.data.folders import seen_by_dvc
from pipeline.data.images import resize_array
from pipeline.data.settings import COLORS
from pipeline.data.shards import write_dataset
from pipeline.data.split_names import split_of
from pipeline.data.splits import MIN_IMAGES, divide
from pipeline.data.threads import in_order
from pipeline.errors import BadInput

NUM_AT_A_TIME = 512  # frames of a clip that are decoded at a time
Rows = Iterable[Mapping[str, np.ndarray]]


def compose(
    settings: ClipSettings,
    root: Path = Path(),
    images: Path = PROCESSED / "images",
    target: Path = PROCESSED / "clips",
) -> dict[str, Any]:
    """Create ``target`` and return its manifest. The same data and settings give the same bytes.

    A folder is relative to ``root``. Raises ``BadInput`` with all its faults before anything is written.
    """
    moving = settings.source == "moving"
    spec, splits, manifest = _of_pictures(settings, images) if moving else _of_folder(settings, root)
    described = {**manifest, "settings": settings.model_dump()}
    return write_dataset(target, spec, splits, described)


def _spec(num_frames: int, channels: int, side: int, class_names: list[str]) -> DataSpec:
    shape = (num_frames, channels, side, side)
    label = {"label": Field("label", (), len(class_names))} if class_names else {}
    return DataSpec({"clip": Field("clip", shape), **label})


def _of_pictures(settings: ClipSettings, images: Path) -> tuple[DataSpec, dict[str, Rows], dict[str, Any]]:
    data = Dataset.open(images)
    channels, side, _ = data.spec["image"].shape
    canvas = settings.canvas or 2 * side
    if canvas < side:
        what, remedy = f"is smaller than the pictures, which have {side} pixels", "set it higher"
        raise BadInput(what, where="params.yaml: clips.canvas", remedy=remedy)
    names = {"none": [], "motion": list(DIRECTIONS), "class": list(data.class_names)}[settings.labels]
    splits: dict[str, Rows] = {
        split: moving_clips(split, getattr(data, split), canvas, settings) for split in SPLITS
    }
    manifest: dict[str, Any] = {"source": data.source, "class_names": names, "pictures": data.digest}
    return _spec(settings.num_frames, channels, canvas, names), splits, manifest


def _of_folder(settings: ClipSettings, root: Path) -> tuple[DataSpec, dict[str, Rows], dict[str, Any]]:
    path, findings = seen_by_dvc(root / settings.folder, root), Findings()
    if not path.is_dir():
        remedy = "correct clips.folder in params.yaml"
        raise BadInput("no such folder", where=str(path), remedy=remedy)
    clips = find_clips(path, findings)
    lengths = check(clips, settings.num_frames, findings)
    entries = find_classes(list(clips), [], {}, findings) if clips else []
    entries = [entry._replace(split=entry.split or _split_of_array(entry.path)) for entry in entries]
    counts = defaultdict[str | None, set[str]](set)
    for entry in entries:
        counts[entry.split].add(entry.label)
    if counts and "train" not in counts and counts.keys() != {None}:
        findings.fault("has no training split, only", map(str, counts), "add one")
    classes = sorted({entry.label for entry in entries})
    for split, found in counts.items():
        lacking = set(classes) - found
        findings.fault(f"has no clips in the split '{split}' of the classes", lacking, "add some")
    splits = _divide(entries, classes, settings, findings)
    findings.refuse(str(path), root / FULL_LIST)
    names = [] if classes == [ONE_CLASS] else classes
    channels = COLORS[settings.color]
    rows: dict[str, Rows] = {
        split: _decode(
            [_Clip(clips[entry.path], lengths[entry.path], classes.index(entry.label)) for entry in some],
            settings,
            bool(names),
        )
        for split, some in splits.items()
    }
    manifest = {"source": f"folder {settings.folder}", "class_names": names, "reading": findings.summary()}
    return _spec(settings.num_frames, channels, settings.canvas, names), rows, manifest


def _split_of_array(name: str) -> str | None:
    """The split that the name of an array means: train.npy[3], clips.npz[train][3]."""
    return split_of(Path(name.rpartition("[")[0]).name) if name.endswith("]") else None


def _divide(
    entries: list[Entry], classes: list[str], settings: ClipSettings, findings: Findings
) -> dict[str, list[Entry]]:
    """The clips by split; drawn are those that the folder does not have."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.split or "train", []).append(entry)
    if len(found) < len(SPLITS):
        few = [
            name for name in classes if sum(one.label == name for one in found.get("train", [])) < MIN_IMAGES
        ]
        findings.fault(f"has fewer than {MIN_IMAGES} clips to divide of the classes", few, "add clips")
    if findings.faults:
        return {}
    labels = {
        split: np.array([classes.index(entry.label) for entry in some]) for split, some in found.items()
    }
    parts = divide(labels, tuple(classes), settings, [entry.path for entry in found["train"]])
    return {split: [found[source][index] for index in rows] for split, (source, rows) in parts.items()}


class _Clip(NamedTuple):
    """A clip of a folder, its number of frames, and its class."""

    read: ReadFrames
    length: int
    label: int


def _decode(clips: list[_Clip], settings: ClipSettings, labelled: bool) -> Iterator[Any]:
    """The pieces of the clips, by clip, with their labels; what is left at the end of a clip is not used.

    Long clips are decoded in parts, so that they fit into memory.
    """
    whole = settings.num_frames
    span = whole * max(1, NUM_AT_A_TIME // whole)
    parts = [
        (clip, start, min(start + span, clip.length // whole * whole))
        for clip in clips
        for start in range(0, clip.length // whole * whole, span)
    ]
    decoded = in_order(partial(_pixels, settings), parts, "clips", "decoding: parts of clips")
    for rows, (clip, _, _) in zip(decoded, parts):
        labels = np.full(len(rows), clip.label)
        yield {"clip": rows} | ({"label": labels} if labelled else {})


def _pixels(settings: ClipSettings, part: tuple[_Clip, int, int]) -> np.ndarray:
    """The pieces (n, T, C, canvas, canvas) of a part of a clip, uint8."""
    clip, start, stop = part
    resize = partial(resize_array, channels=COLORS[settings.color], size=settings.canvas, fit=settings.fit)
    images = np.stack([resize(image) for image in clip.read(start, stop)])
    return images.reshape(-1, settings.num_frames, *images.shape[1:])
