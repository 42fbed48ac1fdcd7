"""Pictures whose label is probably wrong, by a classifier that was not trained on them."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.folders import read_file
from pipeline.data.images import decode
from pipeline.errors import DarkroomError
from pipeline.inspection.measurements import Picture

CLASSIFIER = "cnn"
MAX_PROBABILITY = 0.2  # of the given label
LISTED = 20
BATCH = 256


def suspects(
    path: Path,
    pictures: Sequence[Picture],
    class_names: Sequence[str],
    root: Path | None,
    held_out: Collection[str] | None,
) -> dict[str, Any]:
    """The pictures whose given label has the lowest probability, and how many were judged.

    ``held_out`` names the pictures on which the classifier was not trained; None: all.
    """
    folder = (root or Path()) / "models" / CLASSIFIER
    if root is None or not (folder / "model.json").is_file() or len(class_names) < 2:
        return {"judged": 0, "note": "no trained classifier in this project", "pictures": []}
    import torch

    from pipeline.core import model_files
    from pipeline.core.batch import Batch

    try:
        task, card = model_files.load(folder), model_files.read_card(folder)
    except DarkroomError as error:
        return {"judged": 0, "note": str(error), "pictures": []}
    names = card.get("class_names", [])
    if set(names) != set(class_names):
        return {"judged": 0, "note": f"models/{CLASSIFIER} knows other classes", "pictures": []}
    judged = [each for each in pictures if held_out is None or each.entry.path in held_out]
    found = list[dict[str, Any]]()
    for start in range(0, len(judged), BATCH):
        some = judged[start : start + BATCH]
        images = [
            decode(
                read_file(path, each.entry.path),
                task.spec.channels,
                task.spec.size,
                card.get("fit", "crop"),
                card.get("bit_depth", 16),
            )
            for each in some
        ]
        with torch.inference_mode():
            logits = task.classify(Batch.load({"image": np.stack(images)}, task.spec).images)
        assert logits is not None
        for picture, shares in zip(some, logits.softmax(1).tolist()):
            given, best = shares[names.index(picture.entry.label)], int(np.argmax(shares))
            if given < MAX_PROBABILITY and names[best] != picture.entry.label:
                row = {"path": picture.entry.path, "class": picture.entry.label, "probability": given}
                found.append(row | {"predicted": names[best]})
    found.sort(key=lambda row: row["probability"])
    note = f"by models/{CLASSIFIER}, for pictures on which it was not trained"
    return {"judged": len(judged), "note": note, "count": len(found), "pictures": found[:LISTED]}
