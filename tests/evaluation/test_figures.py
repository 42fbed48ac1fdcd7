"""Grids of pictures, and which classes they show."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.evaluation import figures
from pipeline.evaluation.evaluators import generation
from tests.evaluation.conftest import (
    CLASSES,
)


def test_grids_show_the_pixels_they_were_given(tmp_path):
    images = torch.zeros(2, CLASSES, 1, 4, 4)
    images[1, 2, 0, 0, 0] = 1
    figures.save_grid(images, tmp_path / "grid.png")
    drawn = np.asarray(Image.open(tmp_path / "grid.png"))
    assert (drawn[:, :, 0] == 255).sum() == 16 * 16  # one pixel, enlarged sixteen times, its edges sharp
    figures.save_grid(
        images.expand(-1, -1, 3, -1, -1),
        tmp_path / "named.png",
        columns=["a", "a very long name", "c"],
        rows=["x", "y"],
    )
    assert Image.open(tmp_path / "named.png").size > Image.open(tmp_path / "grid.png").size


@pytest.mark.parametrize(("classes", "shown"), [(1, 10), (2, 10), (3, 9), (7, 7), (10, 10), (100, 10)])
def test_sample_sheets_have_at_most_ten_columns_and_show_each_class_equally_often(classes, shown):
    columns = figures.columns(classes)
    assert len(columns) == shown and columns.min() == 0 and columns.max() == classes - 1
    counts = np.bincount(columns)
    assert len(set(counts[counts > 0])) == 1


@pytest.mark.parametrize(
    ("count", "mix"), [(10, [6, 3, 1]), (50, [30, 15, 5]), (100, [60, 30, 10]), (250, [150, 75, 25])]
)
def test_any_number_of_labels_keeps_the_class_mix_of_a_sorted_split(count, mix):
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    chosen = generation.same_mix(labels, count)
    assert len(chosen) == count and np.bincount(chosen).tolist() == mix
    shuffled = labels[::-1]
    assert generation.same_mix(shuffled, len(labels)).tolist() == shuffled.tolist()
