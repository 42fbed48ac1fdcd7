"""The folders and archives that people have: what is read of each, and what is said about it.

Every layout that docs/data.md names under "Your own pictures" is a row here.
"""

import os
from collections import Counter

import numpy as np
import pytest

from pipeline.core.dataset import Dataset
from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.reading import read_layout
from pipeline.data.settings import DataSettings
from pipeline.errors import BadInput

from .layout_rows import ROWS


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_each_layout_is_read_as_expected_or_refused_with_the_reason(environment, row):
    root = environment.root
    path = row.build(root)
    before = sorted(os.listdir(root))
    settings = DataSettings(**{"source": "folder", "folder": path.name, "image_size": 8, **row.settings})
    if row.name == "neither folder nor archive":
        settings = settings.model_copy(update={"folder": "own/00.png"})
    if row.refusal:
        with pytest.raises(BadInput) as caught:
            download(settings, environment, root / "raw")
            before = sorted([*before, "raw"])
            preprocess(settings, environment, root / "raw", root / "processed")
        text = str(caught.value)
        assert all(part in text for part in row.refusal.split("|")) and "->" in text, text
        assert sorted({*os.listdir(root)} - {".darkroom"}) == before
        return
    layout = read_layout(path, settings)
    assert not layout.faults
    assert " ".join(layout.class_names) == row.classes
    assert {split: len(entries) for split, entries in layout.splits().items()} == row.counts
    assert row.warning in "\n".join(layout.warnings) and (row.warning or not layout.warnings), layout.warnings
    if row.skipped:
        assert {reason: len(names) for reason, names in layout.skipped.items()} == row.skipped
    record = download(settings, environment, root / "raw")
    manifest = preprocess(settings, environment, root / "raw", root / "processed")
    data = Dataset.open(root / "processed")
    assert " ".join(data.class_names) == row.classes
    assert len(data.train) + len(data.validation) + len(data.test) == sum(row.counts.values())
    assert manifest["reading"] == record["reading"] == layout.summary()
    assert data.train.rows(np.arange(1))["image"].std() > 0


def test_there_are_enough_layouts_and_no_name_is_used_twice():
    assert len(ROWS) >= 45 and max(Counter(row.name for row in ROWS).values()) == 1
