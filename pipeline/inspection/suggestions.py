"""The lines of params.yaml that fit a folder of pictures."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from pipeline.data.settings import DataSettings
from pipeline.data.splits import MIN_IMAGES
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.inspection.measurements import Picture

LARGEST_SIDE, SMALLEST_SIDE = 64, 8  # pixels
LONG = 1.5  # times as long as wide: a crop would cut too much
UNEVEN = 3  # times as many pictures in the largest class as in the smallest


def suggest(
    folder: str, pictures: Sequence[Picture], findings: Mapping[str, Any], params: Mapping[str, Any]
) -> str:
    """YAML lines. ``findings`` are those of the report, ``params`` is the content of params.yaml."""
    sizes = np.array([sorted((each.width, each.height)) for each in pictures if each.width] or [[1, 1]])
    short, proportion = np.median(sizes[:, 0]), np.median(sizes[:, 1] / sizes[:, 0])
    data = DataSettings(
        source="folder",
        folder=folder,
        image_size=min(LARGEST_SIDE, max(SMALLEST_SIDE, int(short) // 4 * 4)),
        fit="pad" if proportion > LONG else "crop",
        color="grey" if all(each.grey for each in pictures) else "rgb",
    )
    shown = ("source", "folder", "image_size", "fit", "color")
    lines: dict[str, Any] = {"data": {name: getattr(data, name) for name in shown}}
    if not findings["splits"] and any(row["pictures"] < MIN_IMAGES for row in findings["classes"]):
        lines["data"]["min_images_per_class"] = MIN_IMAGES
    if findings["drawn_splits"] and findings["near_duplicates"].get("across_splits"):
        lines["data"]["near_duplicates"] = "keep_together"
    counts = findings["splits"]
    sampling = ((params.get("cnn") or {}).get("training") or {}).get("sampling")
    if findings["imbalance"]["ratio"] > UNEVEN and sampling != "balanced":  # which does the same
        lines["cnn"] = {"model": {"class_weights": "auto"}}
    train = counts.get("train", 0)
    for name, section in params.items():
        batch = section.get("training", {}).get("batch_size", 0) if isinstance(section, dict) else 0
        if 0 < train < batch:
            fitting = {"batch_size": 2 ** int(np.log2(train))}
            lines[name] = {"training": fitting} | lines.get(name, {})
    if 0 < counts.get("test", 0) < EvaluationSettings().minimum_samples:
        lines["evaluate"] = {"allow_few_samples": True}
    stream = io.StringIO()
    YAML().dump(lines, stream)
    return stream.getvalue()


def folder_of(path: Path, root: Path | None) -> str:
    """``path`` as data.folder: relative to the project's root if it is inside."""
    path = path.resolve()
    inside = root is not None and path.is_relative_to(root.resolve())
    return path.relative_to(root.resolve()).as_posix() if root and inside else str(path)
