"""`darkroom segment` on a network with initial weights."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core import model_files
from pipeline.core.fields import DataSpec, Field
from pipeline.core.task import Batch
from pipeline.layers.label_maps import colors
from pipeline.models.unet.settings import UnetConfig
from tests.cli.pictures import broken, picture, pixels
from tests.command import darkroom, done

SPEC = DataSpec({"image": Field("image", (1, 8, 8)), "mask": Field("label_map", (8, 8), 3)})


@pytest.fixture
def segmenter(place):
    """A project with a segmentation network only."""
    os.remove("models")
    task = model_files.build("unet", UnetConfig(width=8, depth=1), SPEC, seed=1)
    model_files.write(task, Path("models/unet"), {"class_names": ["background", "one", "two"]})
    return model_files.load(Path("models/unet"))


def test_each_picture_gets_a_mask_with_a_palette_and_an_overlay(segmenter):
    for number in range(2):
        picture(f"in/{number}.png", number)
    picture("more/0.png", 7)
    lines = done("segment", "in", "more", "--out", "new/out").splitlines()
    assert lines[-1] == "3 masks -> new/out, overlays -> new/out/overlays"
    shares = [float(line.split("\t")[1].split("%")[0]) for line in lines[:-1]]
    assert [line.split("\t")[0] for line in lines[:-1]] == ["background", "one", "two"]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert sorted(os.listdir("new/out")) == ["0-1.png", "0.png", "1.png", "overlays"]
    for name, seed in (("0", 0), ("1", 1), ("0-1", 7)):
        image = Batch.load({"image": pixels(seed)[None, None]}, SPEC).images
        expected = segmenter.segment(image).argmax(1)[0].numpy()
        with Image.open(f"new/out/{name}.png") as mask:
            assert mask.mode == "P" and (np.asarray(mask) == expected).all()
            assert tuple(mask.getpalette()[3:6]) == colors(3)[1]
        overlay = np.asarray(Image.open(f"new/out/overlays/{name}.png")).astype(int)
        behind = pixels(seed)[..., None].astype(int)
        drawn = np.where(expected[..., None] > 0, np.array(colors(3))[expected], behind)
        assert np.abs(overlay - (behind + drawn) / 2).max() <= 1


def test_a_broken_picture_is_reported_and_the_others_are_segmented(segmenter):
    picture("in/a.png", 1)
    broken("in/b.png")
    code, output, error = darkroom("segment", "in")
    assert code == 2 and "1 masks" in output and "1 picture could not be read" in error
    assert os.listdir("segmented/overlays") == ["a.png"]


def test_a_model_that_does_not_segment_is_refused():
    picture("a.png")
    code, _, error = darkroom("segment", "a.png", "--model", "cnn")
    assert code == 2 and "does not segment" in error and not Path("segmented").exists()
