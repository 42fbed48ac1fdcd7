"""Clips of pictures that move."""

import numpy as np
import pytest

from pipeline.core.dataset import SPLITS, Dataset
from pipeline.core.fields import DataSpec, Field
from pipeline.data.clips import moving
from pipeline.data.clips.compose import compose
from pipeline.data.clips.settings import DIRECTIONS, ClipSettings
from pipeline.data.shards import write_dataset
from pipeline.errors import BadInput
from tests.data.test_preprocess import tree

SIDE, CANVAS = 4, 16


@pytest.fixture
def pictures(tmp_path):
    """Three pictures in each split: grey squares whose tones tell picture and split."""
    tones = {split: np.arange(1, 4) + 10 * number for number, split in enumerate(SPLITS)}
    rows = {
        split: [
            {
                "image": np.stack([np.full((1, SIDE, SIDE), tone, np.uint8) for tone in some]),
                "label": np.arange(3),
            }
        ]
        for split, some in tones.items()
    }
    folder = tmp_path / "images"
    spec = DataSpec.labelled_images(1, SIDE, 3)
    write_dataset(folder, spec, rows, {"source": "squares", "class_names": ["a", "b", "c"]})
    return folder


def settings(**changes):
    few = {"num_train": 40, "num_validation": 6, "num_test": 8, "num_frames": 10}
    return ClipSettings(**{**few, **changes})


def composed(pictures, name="clips", **changes):
    target = pictures.parent / name
    compose(settings(**changes), images=pictures, target=target)
    return Dataset.open(target)


def clips_of(split):
    return split.rows(np.arange(len(split)))["clip"]


def corners(clip):
    """Top and left of what is not black, (T, 2), and its height and width."""
    found = [np.argwhere(frame[0]) for frame in clip]
    shapes = {tuple(places.max(0) - places.min(0) + 1) for places in found}
    return np.stack([places.min(0) for places in found]), shapes


def test_clips_have_the_numbers_and_the_shape_of_the_settings(pictures):
    data = composed(pictures)
    assert [len(getattr(data, split)) for split in SPLITS] == [40, 6, 8]
    assert data.spec == DataSpec({"clip": Field("clip", (10, 1, 2 * SIDE, 2 * SIDE))})
    assert data.class_names == () and data.source == "squares"
    assert composed(pictures, "large", canvas=CANVAS).spec["clip"].shape == (10, 1, CANVAS, CANVAS)


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(pictures):
    first, same, other = (
        composed(pictures, name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert tree(first.folder) == tree(same.folder)
    assert not np.array_equal(clips_of(first.train), clips_of(other.train))


def test_a_clip_depends_on_seed_split_and_index_alone(pictures):
    few, many = composed(pictures, "few", num_train=7), composed(pictures, "many")
    assert np.array_equal(clips_of(few.train), clips_of(many.train)[:7])
    assert not np.array_equal(clips_of(many.train)[:6] > 0, clips_of(many.validation) > 0)


def test_a_chunk_at_a_time_gives_the_same_clips(pictures, monkeypatch):
    whole = composed(pictures, "whole")
    monkeypatch.setattr(moving, "CHUNK_BYTES", 3 * 10 * 4 * SIDE**2)
    assert tree(composed(pictures, "chunks").folder) == tree(whole.folder)


def test_the_clips_of_a_split_show_pictures_of_this_split_alone(pictures):
    data = composed(pictures)
    for number, split in enumerate(SPLITS):
        tones = set(np.unique(clips_of(getattr(data, split))).tolist()) - {0}
        assert tones <= set(range(10 * number + 1, 10 * number + 4))
    assert len(np.unique(clips_of(data.train))) == 4  # all of them are used


def test_a_picture_stays_within_the_canvas_and_keeps_its_speed(pictures):
    clips = clips_of(composed(pictures, canvas=CANVAS, num_objects=1, speed=0.07).train)
    for clip in clips:
        places, shapes = corners(clip)
        assert shapes == {(SIDE, SIDE)}
        assert places.min() >= 0 and places.max() <= CANVAS - SIDE


def test_paths_are_straight_with_constant_speed_and_are_reflected_at_the_edges():
    start, velocity = np.array([0.5, 0.9]), np.array([0.06, 0.08])
    found = moving.paths(start, velocity, 40)
    place, step = start.copy(), velocity.copy()
    for row in found:
        assert np.allclose(row, place)
        place = place + step
        over, under = place > 1, place < 0
        place, step = (
            np.where(over, 2 - place, np.where(under, -place, place)),
            np.where(over | under, -step, step),
        )
    steps = np.linalg.norm(np.diff(found, axis=0), axis=1)
    inner = ((found[:-1] > 0.08) & (found[:-1] < 0.92)).all(1)
    assert inner.any() and np.allclose(steps[inner], 0.1)


def test_pictures_that_overlap_show_the_brighter_one(pictures):
    data = composed(pictures, num_objects=30)
    assert clips_of(data.train).max() == 3  # not a sum
    single = settings(num_objects=2)
    clip = clips_of(composed(pictures, "two").train)[0]
    chosen, start, angles = moving.draw("train", 0, 3, single)
    expected = np.zeros((10, 2 * SIDE, 2 * SIDE), int)
    for picture, place, angle in zip(chosen, start, angles):
        path = moving.paths(place, 0.1 * np.array([np.sin(angle), np.cos(angle)]), 10) * SIDE
        for frame, (top, left) in zip(expected, np.rint(path).astype(int)):
            area = frame[top : top + SIDE, left : left + SIDE]
            area[:] = np.maximum(area, picture + 1)
    assert np.array_equal(clip[:, 0], expected)


def test_the_label_is_the_class_of_the_picture(pictures):
    data = composed(pictures, num_objects=1, labels="class")
    assert data.class_names == ("a", "b", "c")
    assert np.array_equal(clips_of(data.train).max((1, 2, 3, 4)) - 1, data.train.labels)


def test_the_label_is_the_direction_at_the_start(pictures):
    data = composed(pictures, canvas=64, num_objects=1, labels="motion", num_frames=3, speed=0.05)
    assert data.class_names == DIRECTIONS
    num_checked = 0
    for clip, label in zip(clips_of(data.train), data.train.labels):
        places = corners(clip)[0]
        if places[0].min() > 6 and places[0].max() < 54:  # no edge is met
            down, right = places[-1] - places[0]
            found = (
                ("right" if right > 0 else "left")
                if abs(right) > abs(down)
                else ("down" if down > 0 else "up")
            )
            num_checked += abs(abs(right) - abs(down)) > 1
            assert found == DIRECTIONS[label] or abs(abs(right) - abs(down)) <= 1
    assert num_checked > 5


def test_a_canvas_smaller_than_the_pictures_is_refused_and_nothing_is_written(pictures, tmp_path):
    with pytest.raises(BadInput, match=r"clips\.canvas") as raised:
        compose(settings(canvas=8), images=enlarged(pictures), target=tmp_path / "clips")
    assert "12 pixels" in raised.value.what and not (tmp_path / "clips").exists()


def enlarged(pictures):
    """A data set of pictures with 12 pixels."""
    rows = {
        split: [{"image": np.ones((2, 1, 12, 12), np.uint8), "label": np.zeros(2, int)}] for split in SPLITS
    }
    target = pictures.parent / "larger"
    write_dataset(target, DataSpec.labelled_images(1, 12, 1), rows, {"source": "s", "class_names": ["a"]})
    return target


@pytest.mark.parametrize(
    "values",
    [
        {"labels": "class"},
        {"labels": "motion", "num_objects": 3},
        {"source": "folder"},
        {"source": "folder", "folder": "data/own/clips"},
        {"source": "folder", "folder": "data/own/clips", "canvas": 32, "num_train": 5},
        {"folder": "data/own/clips"},
        {"fit": "pad"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(values):
    with pytest.raises(ValueError):
        ClipSettings(**values)
