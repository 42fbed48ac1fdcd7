"""The champion judges the labels of new pictures."""

import numpy as np
import pytest
from PIL import Image

from pipeline.core.task import DataSpec
from tests.retraining import test_quality
from tests.retraining.test_quality import examined, finding, plain, put

places = test_quality.places


def champion(places, wrong, confidence, seen=None):
    """A classifier that knows the class of each picture, but is wrong about those in ``wrong``."""
    answers = {}
    for path in places[0].rglob("*.png"):
        pixels = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).tobytes()
        answers[pixels] = (path.parent.name == "dog") != (path.relative_to(places[0]).as_posix() in wrong)

    def classify(images):
        if seen is not None:
            seen.append(len(images))
        assert images.dtype == np.uint8 and images.shape[1:] == (3, 12, 12)
        columns = np.array([answers[image.tobytes()] for image in images], int)
        return np.where(np.arange(2) == columns[:, None], confidence, 1 - confidence)

    return classify


@pytest.mark.parametrize(
    ("wrong", "confidence", "contradicted", "refused"),
    [
        ((), 0.95, 0, False),
        (("cat/20.png", "dog/21.png"), 0.95, 2, False),
        (("cat/20.png", "dog/21.png"), 0.85, 0, False),
        (("cat/20.png", "cat/21.png", "cat/22.png", "dog/20.png"), 0.95, 4, False),
        (("cat/20.png", "cat/21.png", "cat/22.png", "dog/20.png", "dog/21.png"), 0.9, 5, True),
    ],
)
def test_labels_that_a_sure_champion_contradicts_are_counted_and_kept(
    places, wrong, confidence, contradicted, refused
):
    quality = examined(places, classify=champion(places, wrong, confidence))
    found = finding(quality, "labels")
    assert (
        found.sentence.startswith(f"{contradicted} of 8 new pictures") and "it can be wrong" in found.sentence
    )
    assert found.names == (tuple(sorted(wrong)) if contradicted else ()) and len(quality.kept) == 8
    assert bool(quality.refused) == refused and found.level == ("refuse" if refused else "fine")


def test_the_champion_judges_good_pictures_of_its_own_classes_alone(places):
    for number in range(5):
        put(places[0], f"bird/{number}.png", 200 + number)
    put(places[0], "cat/a.png", plain(9))
    quality = examined(places, {"new_classes": True}, champion(places, (), 0.95))
    assert finding(quality, "labels").sentence.startswith("0 of 8 new pictures") and len(quality.kept) == 13


def test_without_a_champion_labels_are_not_measured(places):
    assert finding(examined(places), "labels").sentence.startswith("not measured")


def test_a_delivery_of_bad_pictures_alone_leaves_nothing(tmp_path, places):
    put(tmp_path / "bad", "cat/a.png", b"bad")
    quality = examined((tmp_path / "bad", places[1]), classify=champion(places, (), 0.95))
    assert not quality.kept and len(quality.quarantined) == 1 and quality.refused and quality.waits


def test_pictures_are_decoded_in_chunks_as_for_training(places, monkeypatch):
    monkeypatch.setattr("pipeline.retraining.quality.chunk_size", lambda channels, size: 3)
    seen: list[int] = []
    quality = examined(places, classify=champion(places, (), 0.95, seen))
    assert seen == [3, 3, 2] and len(quality.kept) == 8
    shapes = []
    examined(
        places,
        classify=lambda images: shapes.append(images.shape) or np.ones((len(images), 2)),
        spec=DataSpec.labelled_images(1, 5, 2),
    )
    assert shapes == [(3, 1, 5, 5), (3, 1, 5, 5), (2, 1, 5, 5)]
