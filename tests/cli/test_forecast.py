"""`darkroom forecast` on a model with its initial weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core import model_files
from pipeline.core.fields import DataSpec, Field
from pipeline.core.image_grid import to_bytes
from pipeline.models.rcnn.settings import RcnnConfig
from tests.command import darkroom, done
from tests.data.test_clip_folders import animation, gap, pixels, write_frames

CLIPS = DataSpec({"clip": Field("clip", (6, 1, 8, 8))})  # 3 frames after 3


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project with a forecaster and an autoencoder, as the current folder."""
    config = RcnnConfig(width=4)
    model_files.write(
        model_files.build("rcnn", config, CLIPS, seed=1), tmp_path / "models/rcnn", {"class_names": []}
    )
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _in_project(place):
    pass


def expected(clip, count):
    frames = torch.from_numpy(clip).float()[None, :, None] / 255
    with torch.inference_mode():
        following = model_files.load(Path("models/rcnn")).forecast(frames, count)
    return to_bytes(following.numpy())[0, :, 0]


def written(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("*.png"))])


def test_the_next_frames_of_a_clip_are_written_with_an_animation():
    clip = pixels(0, 5)
    write_frames(Path("clip"), clip)
    assert done("forecast", "clip", "--out", "new") == "1 x 3 new frames -> new\n"
    assert np.abs(written("new").astype(int) - expected(clip[2:], 3)).max() <= 1
    with Image.open("new/forecast.gif") as picture:
        assert picture.n_frames == 6


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.png", "clip.npy"])
def test_other_layouts_of_a_clip_give_the_same(name):
    clip = pixels(0, 5)
    if name.endswith("npy"):
        np.save(name, clip[None])
    else:
        Path(name).write_bytes(animation(clip, name[5:]))
    done("forecast", name, "--count", "2", "--out", "new")
    assert np.abs(written("new").astype(int) - expected(clip[2:], 2)).max() <= 1


def test_each_of_several_clips_gets_its_folder():
    for name in ("a", "b"):
        write_frames(Path("clips", name), pixels(ord(name)))
    assert done("forecast", "clips") == "2 x 3 new frames -> forecast\n"
    for name in ("a", "b"):
        assert np.abs(written(f"forecast/{name}").astype(int) - expected(pixels(ord(name))[1:], 3)).max() <= 1


def test_a_clip_with_a_fault_is_refused_and_nothing_is_written():
    for name in ("a", "clip3"):
        write_frames(Path("clips", name), pixels(), first=9)
    gap(Path("clips"))
    code, _, message = darkroom("forecast", "clips")
    assert code == 2 and "clip3 (10)" in message and not Path("forecast").exists()


def test_a_broken_npz_is_refused_by_name():
    Path("clip.npz").write_bytes(b"PK\x03\x04")
    code, _, message = darkroom("forecast", "clip.npz")
    assert code == 2 and "cannot be read: 'clip.npz" in message and not Path("forecast").exists()


def test_a_model_that_does_not_forecast_is_refused():
    images = DataSpec.labelled_images(1, 8, 2)
    kind = model_files.find("ae")
    model_files.write(
        model_files.build("ae", kind.Config(), images, 0), Path("models/ae"), {"class_names": ["a", "b"]}
    )
    write_frames(Path("clip"), pixels())
    code, _, message = darkroom("forecast", "clip", "--model", "ae")
    assert code == 2 and "does not forecast" in message
