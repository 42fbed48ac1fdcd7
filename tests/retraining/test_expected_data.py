"""The data of the next training, as far as it is known before the start."""

import json

import pytest

from pipeline.data.settings import DataSettings
from pipeline.retraining.champion_challenger import Expected, expected_data
from pipeline.retraining.incoming import look
from tests.data.conftest import fill

OWN = DataSettings(source="folder", folder="data/own/pets", image_size=8)


def test_accepted_and_new_pictures_together_give_classes_and_test_pictures(tmp_path):
    fill(tmp_path / "data/own/pets", {"cat": 10, "dog": 10})
    fill(tmp_path / "watched", {"owl": 20})
    arrival = look(tmp_path / "watched", tmp_path / "data/own/pets", {})
    accepted, new = ([picture.name for picture in found] for found in (arrival.accepted, arrival.fresh))
    expected = expected_data(OWN, tmp_path, accepted + new)
    assert expected == (Expected((3, 8, 8), ("cat", "dog", "owl")), 8)
    assert expected_data(OWN, tmp_path, accepted) == (Expected((3, 8, 8), ("cat", "dog")), 4)


def test_a_folder_that_is_not_watched_is_read_and_its_own_test_split_counts(tmp_path):
    for split, count in (("train", 6), ("test", 3)):
        fill(tmp_path / f"data/own/pets/{split}", {"cat": count, "dog": count})
    grey = OWN.model_copy(update={"color": "grey"})
    assert expected_data(grey, tmp_path) == (Expected((1, 8, 8), ("cat", "dog")), 6)


@pytest.mark.parametrize("classes", [{}, {"cat": 3, "Cat": 3}])
def test_a_folder_that_cannot_be_trained_on_has_no_expected_data(tmp_path, classes):
    fill(tmp_path / "data/own/pets", classes)
    assert expected_data(OWN, tmp_path) == (None, None)


def test_the_classes_of_a_published_source_are_known_once_it_is_prepared(tmp_path):
    digits = DataSettings(source="digits", color="rgb")
    assert expected_data(digits, tmp_path) == (
        Expected((3, 8, 8), None),
        None,
    )
    (tmp_path / "data/processed/images").mkdir(parents=True)
    for source, names in (("mnist", None), ("digits", ("a", "b"))):
        (tmp_path / "data/processed/images/manifest.json").write_text(
            json.dumps({"source": source, "class_names": ["a", "b"]})
        )
        assert expected_data(digits, tmp_path) == (
            Expected((3, 8, 8), names),
            None,
        )


def test_expected_data_is_described_without_a_long_list():
    assert str(Expected((1, 8, 8), ("a", "b"))) == "2 classes (a, b) of 1 x 8 x 8 pixels"
    assert (
        str(Expected((3, 32, 32), tuple("abcdefg"))) == "7 classes (a, b, c, d, e, ...) of 3 x 32 x 32 pixels"
    )
    assert str(Expected((3, 32, 32), None)) == "images of 3 x 32 x 32 pixels"
    assert str(Expected((6, 1, 8, 8), None)) == "clips of 6 x 1 x 8 x 8 pixels"
