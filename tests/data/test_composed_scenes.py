"""Composed scenes: a pure function of the seed, the split and the number of the scene."""

import hashlib

import numpy as np
import pytest

from pipeline.core.dataset import SPLITS, Dataset
from pipeline.core.fields import DataSpec
from pipeline.data.scenes import write_scenes
from pipeline.data.scenes.composed import _place, compose, spec_of
from pipeline.data.scenes.settings import SceneSettings
from pipeline.errors import BadInput
from tests.arrays import array_split

SMALL = {"num_train": 12, "num_validation": 3, "num_test": 4}
PICTURES = DataSpec.labelled_images(1, 4, 3)


def composed(count=40, name="train", values=(100, 150, 200), **settings):
    """Scenes of full squares, a class for each brightness; and the settings."""
    images = np.array(values, np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)
    split = array_split(images, np.arange(len(values)), len(values))
    chosen = SceneSettings(**settings)
    spec = spec_of(PICTURES, chosen)
    parts = list(compose(name, split, count, spec, chosen))
    return {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}


def test_the_mask_names_the_picture_in_front_at_each_pixel():
    scenes = composed(num_objects=(3, 3))
    values = np.array([0, 100, 150, 200])[scenes["mask"]]
    assert (values == scenes["image"][:, 0]).all()
    assert scenes["image"].shape == (40, 1, 8, 8)
    # Not always the brightest is in front: a dark square covers a part of a brighter one in some scenes.
    covered = [(mask == 3).sum() in range(1, 16) for mask in scenes["mask"]]
    assert any(covered)


def test_pixels_up_to_the_threshold_are_background_and_keep_what_is_behind():
    scenes = composed(values=(60, 150, 200), threshold=60)
    assert set(np.unique(scenes["mask"])) == {0, 2, 3}
    assert set(np.unique(scenes["image"])) == {0, 60, 150, 200}


@pytest.mark.parametrize(("outline", "hidden"), [(0, 1), (1, 9), (2, 25), (9, 25)])
def test_an_outline_hides_what_is_behind_an_object(outline, hidden):
    image, mask = np.full((1, 9, 9), 200, np.uint8), np.full((9, 9), 2, np.uint8)
    dot = np.zeros((1, 5, 5), np.uint8)
    dot[0, 2, 2] = 150
    _place(image, mask, dot, 0, 1, 3, SceneSettings(outline=outline))
    assert image[0, 3, 5] == 150 and mask[3, 5] == 1
    assert (image[0] == 0).sum() == (mask == 0).sum() == hidden - 1
    assert ((image[0] == 0) == (mask == 0)).all() and ((image[0] == 200) == (mask == 2)).all()


@pytest.mark.parametrize("background", ["brightness", "noise"])
def test_a_background_is_random_and_at_most_as_bright_as_its_level(background):
    scenes = composed(background=background, background_level=0.3)
    outside = [image[0][mask == 0] for image, mask in zip(scenes["image"], scenes["mask"])]
    assert max(values.max() for values in outside) <= 0.3 * 255
    assert all((values.std() > 0) == (background == "noise") for values in outside)
    assert len({values[0] for values in outside}) > 5


def test_a_scene_depends_on_seed_split_and_number_alone(monkeypatch):
    first = composed(count=20)
    monkeypatch.setattr("pipeline.data.scenes.composed.CHUNK_BYTES", 8 * (128 + 3 * 16))  # eight scenes
    more = composed(count=60)
    assert all((first[name] == more[name][:20]).all() for name in first)
    assert not (composed(count=20, seed=1)["image"] == first["image"]).all()
    assert not (composed(count=20, name="test")["image"] == first["image"]).all()
    counts = [composed(count=30, size=16, num_objects=(number, number))["mask"] for number in (1, 4)]
    assert (counts[0] > 0).sum((1, 2)).tolist() == [16] * 30 and (counts[1] > 0).sum() > 30 * 32


def test_composed_scenes_have_the_same_bytes_again_and_pictures_of_their_own_split(
    processed_digits, tmp_path, monkeypatch
):
    settings = SceneSettings(**SMALL)
    written = [write_scenes(settings, processed_digits, tmp_path / name) for name in ("a", "b")]
    assert written[0] == written[1]
    source, scenes = Dataset.open(processed_digits), Dataset.open(tmp_path / "a")
    assert [len(getattr(scenes, name)) for name in SPLITS] == [12, 3, 4]
    assert scenes.class_names == ("background", *source.class_names) and scenes.spec.size == 16
    used = {}
    for name in SPLITS:
        split = getattr(source, name)
        rows = split.rows
        monkeypatch.setattr(
            split, "rows", lambda indices, name=name, rows=rows: used.setdefault(name, rows(indices))
        )
        list(compose(name, split, 4, scenes.spec, settings))
        monkeypatch.undo()
        pictures = {picture.tobytes() for picture in used[name]["image"]}
        assert pictures <= {picture.tobytes() for picture in split.rows(np.arange(len(split)))["image"]}


def test_known_scenes_have_known_bytes():
    """So that another version of NumPy or of this code does not change data that was written before."""
    scenes = composed(count=50, background="noise", size=12, num_objects=(2, 4))
    digest = hashlib.sha256(scenes["image"].tobytes() + scenes["mask"].tobytes()).hexdigest()
    assert digest[:16] == "91614b87c3259e09"


def test_pictures_that_do_not_fit_are_refused(processed_digits, tmp_path):
    with pytest.raises(BadInput, match="is 8, less than the 16"):
        spec_of(DataSpec.labelled_images(1, 16, 3), SceneSettings(size=8))
    with pytest.raises(BadInput, match="set it to 1024, or"):
        spec_of(DataSpec.labelled_images(1, 600, 3), SceneSettings(size=8))
    with pytest.raises(BadInput, match="classes of pictures are too many"):
        spec_of(DataSpec.labelled_images(1, 4, 300), SceneSettings())
