"""Measures of segmentation by closed form, and a whole evaluation."""

import csv
import json

import numpy as np
import pytest
import torch

from pipeline.core.fields import DataSpec, Field
from pipeline.core.task import Ratio, Task
from pipeline.errors import BadInput
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.evaluators.segmentation import boundary_scores
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.layers.label_maps import IGNORED
from pipeline.params import Section
from tests.arrays import ArrayDataset, mask_split

SIZE = 16


def square(top, left, side=6, label=1):
    mask = np.zeros((1, SIZE, SIZE), np.int64)
    mask[0, top : top + side, left : left + side] = label
    return mask


@pytest.mark.parametrize(
    ("shift", "f1"),
    [(0, 1.0), (1, 1.0), (2, 0.6)],  # 12 of 20 boundary pixels are within one of the other's
)
def test_boundary_f1_of_a_shifted_square(shift, f1):
    scores = boundary_scores(square(4, 4 + shift), square(4, 4), 2)
    assert scores.tolist() == [[pytest.approx(f1), 1]]


def test_boundary_f1_counts_each_class_that_is_in_either():
    found, real = square(2, 2) + square(9, 9, 4, 2), square(2, 2)
    assert boundary_scores(found, real, 4).tolist() == [[pytest.approx(1), 2]]
    ignored = np.where(found == 2, IGNORED, real)
    assert boundary_scores(found, ignored, 4).tolist() == [[pytest.approx(1), 1]]
    assert boundary_scores(0 * found, 0 * real, 4).tolist() == [[0, 0]]


def test_boundary_f1_counts_a_class_that_fills_the_image():
    filled = np.ones((1, SIZE, SIZE), np.int64)
    assert boundary_scores(filled, filled, 3).tolist() == [[pytest.approx(1), 1]]
    assert boundary_scores(2 * filled, filled, 3).tolist() == [[0, 2]]


class Threshold(Task):
    """Class 1 where the image is bright, so that half of the object is found."""

    Config = Section
    dataset = "scenes"

    def __init__(self, spec):
        super().__init__(Section(), spec)
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def phases(self):
        return []

    def loss(self, phase, batch, noise):
        return self.bias, {}

    def evaluate(self, batch, noise):
        objects = (batch["mask"] == 1).sum((1, 2))
        return {"foreground_iou": Ratio(objects, objects)}

    def segment(self, images):
        bright = (images[:, :1] > 0.5).float()
        return torch.cat([1 - bright, bright, 0 * bright], 1)


def evaluated(images, masks, folder):
    """The parts of the measures of `Threshold` on these images and masks."""
    mask = Field("label_map", (SIZE, SIZE), 3)
    spec = DataSpec({"image": Field("image", (1, SIZE, SIZE)), "mask": mask})
    data = ArrayDataset()
    data.spec, data.class_names = spec, ("background", "square", "absent")
    data.train = data.validation = data.test = mask_split(images, masks, spec)
    settings = EvaluationSettings(num_bootstrap=10)
    folders = {"metrics": folder / "metrics", "plots": folder / "plots", "history": folder}
    task = Threshold(spec).eval()
    return evaluate(settings, {"scenes": data}, {"net": task}, {"net": "0" * 64}, **folders)["net"]


def test_few_or_no_objects_give_finite_measures_and_no_labelled_pixel_is_refused(tmp_path):
    images, masks = np.zeros((4, 1, SIZE, SIZE), np.uint8), np.zeros((4, SIZE, SIZE), np.uint8)
    assert evaluated(images, masks, tmp_path / "none").keys() == {"mean_iou", "pixel_accuracy"}
    masks[0, 4:8, 4:12] = 1
    images[0, :, 4:8, 4:8] = 255
    found = evaluated(images, masks, tmp_path / "one")
    assert found["foreground_iou"]["value"] == 0.5 and len(found) == 4
    assert all(0 <= parts["low"] <= parts["high"] <= 1 for parts in found.values())
    with pytest.raises(BadInput, match="no pixel of a class"):
        evaluated(images, np.full_like(masks, IGNORED), tmp_path / "ignored")


def test_a_whole_evaluation_has_known_measures_floors_a_table_and_a_sheet(tmp_path):
    images, masks = np.zeros((5, 1, SIZE, SIZE), np.uint8), np.zeros((5, SIZE, SIZE), np.uint8)
    masks[:, 4:8, 4:12] = 1
    images[:, :, 4:8, 4:8] = 255  # half of it
    found = evaluated(images, masks, tmp_path)
    background, floor = 224 / 240, 224 / 256
    values = {name: (parts["value"], parts["floor"]) for name, parts in found.items()}
    assert values["mean_iou"] == pytest.approx(((background + 0.5) / 2, floor / 2))
    assert values["foreground_iou"] == pytest.approx((0.5, 0))
    assert values["pixel_accuracy"] == pytest.approx((240 / 256, floor))
    assert 0 < values["boundary_f1"][0] < 1
    assert json.loads((tmp_path / "metrics/evaluation.json").read_text())["net"].keys() == {
        "mean_iou",
        "foreground_iou",
    }
    with (tmp_path / "plots/tables/net-pixel-classes.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert float(rows["square"]["iou"]) == 0.5 and float(rows["square"]["dice"]) == pytest.approx(2 / 3)
    assert float(rows["absent"]["share"]) == 0
    assert rows["absent"]["iou"] == rows["absent"]["dice"] == ""
    assert (tmp_path / "plots/pictures/net-segmentation.png").is_file()
