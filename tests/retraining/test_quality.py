"""Each check finds its own fault only, with numbers, and the good pictures are kept."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.task import DataSpec
from pipeline.data.settings import DataSettings
from pipeline.errors import BadInput
from pipeline.files import sha256
from pipeline.params import validate
from pipeline.retraining.incoming import copy, look
from pipeline.retraining.quality import QualitySettings, examine
from tests.data.conftest import encoded

SPEC = DataSpec.labelled_images(3, 12, 2)
CLASSES = ("cat", "dog")
PER_PICTURE = ("class folder", "same name", "one class", "readable", "size", "contrast")


def put(root: Path, name: str, content: int | bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(content, (12, 12)) if isinstance(content, int) else content)
    return path


@pytest.fixture
def places(tmp_path):
    """Twenty accepted pictures, and eight good new ones."""
    for folder, numbers in (("accepted", range(10)), ("new", range(20, 24))):
        for number in numbers:
            put(tmp_path / folder, f"cat/{number}.png", number)
            put(tmp_path / folder, f"dog/{number}.png", 100 + number)
    return tmp_path / "new", tmp_path / "accepted"


def examined(places, settings=None, classify=None, spec=SPEC, class_names=CLASSES, **data):
    checks = validate({"max_bad_fraction": 0.3} | (settings or {}), QualitySettings, "q")
    read_as = DataSettings(**data)
    return examine(look(*places, {}, settings=read_as), checks, spec, class_names, classify, read_as)


def finding(quality, check):
    (found,) = [one for one in quality.findings if one.check == check]
    return found


def named(quality):
    return [picture.name for picture in quality.kept]


def plain(grey: int, amplitude: int = 0) -> bytes:
    pixels = np.full((12, 12), grey, np.uint8)
    pixels[::2] += np.uint8(amplitude)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(("fit", "kept"), [("crop", False), ("stretch", True)])
def test_a_picture_that_is_not_square_is_checked_as_the_training_sees_it(places, fit, kept):
    pixels = np.full((12, 36), 90, np.uint8)
    pixels[:, :12] = 200  # left of the central square
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    put(places[0], "cat/wide.png", stream.getvalue())
    assert ("cat/wide.png" in named(examined(places, fit=fit))) == kept


def test_good_pictures_are_kept_and_pass_every_check(places):
    quality = examined(places)
    assert len(quality.kept) == 8 and not quality.quarantined and not quality.refused and not quality.waits
    assert {one.level for one in quality.findings} == {"fine"} and not [
        name for one in quality.findings for name in one.names
    ]
    others = {"duplicates", "bad pictures", "class balance", "labels", "layout", "number"}
    assert {one.check for one in quality.findings} >= {*PER_PICTURE, *others}
    assert finding(quality, "readable").sentence == "0 of 8 new pictures cannot be decoded"


@pytest.mark.parametrize(
    ("check", "name", "content", "reason"),
    [
        ("readable", "cat/a.png", b"no picture", "is not an image"),
        ("readable", "cat/a.png", encoded(50, (12, 12))[:-40], "cannot be decoded"),
        ("size", "cat/a.png", encoded(50, (40, 7)), "its shorter side has 7 pixels"),
        ("contrast", "cat/a.png", plain(90), "0.0000"),
        ("contrast", "cat/a.png", plain(90, 5), "0.0098"),  # half of 5 / 255
        ("class folder", "a.png", 50, "is not in a class folder, as 'cat/0.png' is"),
        ("class folder", "bird/a.png", 50, "'bird' is not a known class"),
        ("class folder", "train/cat/a.png", 50, "is not in a class folder, as 'cat/0.png' is"),
        ("same name", "cat/3.png", 50, "has other bytes"),
        ("one class", "cat/a.png", 104, "cat and dog"),
    ],
)
def test_a_bad_picture_is_quarantined_with_its_reason_and_the_others_are_kept(
    places, check, name, content, reason
):
    path = put(places[0], name, content)
    quality = examined(places)
    found = finding(quality, check)
    assert (
        (found.level, found.names) == ("quarantine", (name,))
        and found.sentence.startswith("1 of 9 new pictures")
        and reason in found.sentence
    )
    assert [one.check for one in quality.findings if one.level != "fine"] == [check]
    assert len(quality.kept) == 8 and name not in named(quality) and not quality.refused
    (digest,) = quality.quarantined
    assert (
        digest == f"{sha256(path)}/{name.split('/')[0] if name.count('/') == 1 else ''}"
        and quality.quarantined[digest].startswith(f"{name}: ")
        and reason in quality.quarantined[digest]
    )


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        (encoded(50, (40, 8)), {}),
        (plain(90, 6), {}),
        (plain(90), {"minimum_contrast": 0}),
        (encoded(50, (7, 7)), {"minimum_side_pixels": 7}),
    ],
)
def test_what_is_just_good_enough_is_kept(places, content, settings):
    put(places[0], "cat/a.png", content)
    assert len(examined(places, settings).kept) == 9


def test_a_damaged_member_of_a_zip_is_unreadable(places, tmp_path):
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
        for path in sorted(places[0].rglob("*.png")):
            archive.write(path, path.relative_to(places[0]))
    data = bytearray((tmp_path / "new.zip").read_bytes())
    data[data.index(encoded(21, (12, 12))) + 60] ^= 1
    (tmp_path / "new.zip").write_bytes(data)
    quality = examined((tmp_path / "new.zip", places[1]))
    assert finding(quality, "readable").names == ("cat/21.png",) and len(quality.kept) == 7


def test_of_duplicates_one_is_kept_and_none_is_quarantined(places):
    put(places[0], "cat/a.png", 20), put(places[0], "cat/b.png", 20)
    quality = examined(places, {"max_bad_fraction": 0})
    found = finding(quality, "duplicates")
    assert (
        found.sentence.startswith("2 of 10 new pictures")
        and found.names == ("cat/a.png", "cat/b.png")
        and found.level == "fine"
    )
    assert (
        len(quality.kept) == 8
        and "cat/20.png" in named(quality)
        and not quality.quarantined
        and not quality.refused
    )


def test_the_same_bytes_under_two_new_classes_are_both_quarantined(places):
    put(places[0], "dog/a.png", 20)
    quality = examined(places)
    assert finding(quality, "one class").names == ("cat/20.png", "dog/a.png") and len(quality.kept) == 7
    assert set(quality.quarantined) == {
        f"{sha256(places[0] / 'dog/a.png')}/{label}" for label in ("cat", "dog")
    }


def test_bytes_that_are_kept_are_not_also_quarantined_for_the_name_of_their_copy(places):
    put(places[0], "cat/3.png", 20)
    quality = examined(places)
    assert (
        finding(quality, "same name").names == ("cat/3.png",)
        and "cat/20.png" in named(quality)
        and not quality.quarantined
    )


@pytest.mark.parametrize(("limit", "refused"), [(0.19, True), (0.2, False)])
def test_too_many_bad_pictures_refuse_the_whole_delivery(places, limit, refused):
    put(places[0], "cat/a.png", b"a"), put(places[0], "cat/b.png", b"b")
    quality = examined(places, {"max_bad_fraction": limit})
    assert bool(quality.refused) == refused and len(quality.quarantined) == 2
    assert "2 of 10 new pictures (20.0 %) are quarantined" in finding(quality, "bad pictures").sentence


def test_at_most_twenty_pictures_are_named_and_all_are_counted(places):
    for number in range(30):
        put(places[0], f"cat/x{number:02}.png", bytes([number]))
    found = finding(examined(places), "readable")
    assert len(found.names) == 20 and found.sentence.startswith("30 of 38 new pictures")


@pytest.mark.parametrize(("minimum", "waits"), [(8, False), (9, True)])
def test_too_few_wait_and_are_neither_refused_nor_quarantined(places, minimum, waits):
    quality = examined(places, {"minimum_new": minimum})
    assert quality.waits == waits and not quality.refused and not quality.quarantined
    assert finding(quality, "number").level == ("wait" if waits else "fine")


@pytest.mark.parametrize(("limit", "refused"), [(0.14, True), (0.16, False), (None, False)])
def test_a_delivery_that_shifts_the_classes_too_far_is_refused(places, limit, refused):
    for number in range(12):
        put(places[0], f"cat/x{number}.png", 300 + number)
    quality = examined(
        places, {"max_class_imbalance": limit}
    )  # 10 and 10, then 16 and 4 more: 26 of 40 are cats
    assert "by 15.0 %" in finding(quality, "class balance").sentence and bool(quality.refused) == refused
    assert finding(quality, "class balance").level == ("refuse" if refused else "fine")


def test_a_new_class_waits_until_it_can_be_divided(places):
    for number in range(4):
        put(places[0], f"bird/{number}.png", 200 + number)
    quality = examined(places, {"new_classes": True})
    assert len(quality.kept) == 8 and not quality.quarantined and not quality.refused
    assert finding(quality, "layout").sentence.startswith("4 good new pictures wait")
    put(places[0], "bird/4.png", 204)
    assert len(examined(places, {"new_classes": True}).kept) == 13


def test_a_new_class_waits_until_each_split_has_it(tmp_path):
    for seed, name in enumerate(
        f"{split}/{label}/{n}.png" for split in ("train", "test") for label in CLASSES for n in range(6)
    ):
        put(tmp_path / "accepted", name, seed)
    for number in range(6):
        put(tmp_path / "new", f"train/bird/{number}.png", 100 + number)
    assert examined((tmp_path / "new", tmp_path / "accepted"), {"new_classes": True}).waits
    put(tmp_path / "new", "test/bird/0.png", 200)
    assert len(examined((tmp_path / "new", tmp_path / "accepted"), {"new_classes": True}).kept) == 7
    put(tmp_path / "new", "cat/0.png", 201)
    found = finding(
        examined((tmp_path / "new", tmp_path / "accepted"), {"new_classes": True}), "class folder"
    )
    assert (
        found.names == ("cat/0.png",) and "is not in a class folder, as 'test/cat/0.png' is" in found.sentence
    )


def test_the_first_delivery_may_bring_any_classes_but_more_than_one(tmp_path):
    places = tmp_path / "new", tmp_path / "accepted"
    for number in range(6):
        put(places[0], f"oak/{number}.png", number)
    assert examined(places, class_names=()).waits
    for number in range(6):
        put(places[0], f"elm/{number}.png", 10 + number)
    quality = examined(places, class_names=())
    assert len(quality.kept) == 12 and not quality.refused and not quality.waits
    assert finding(quality, "class balance").sentence.startswith("not measured")


def test_a_class_need_not_be_divided_where_all_splits_are_given(tmp_path):
    places = tmp_path / "new", tmp_path / "accepted"
    for seed, name in enumerate(
        f"{split}/{label}/0.png" for split in ("train", "val", "test") for label in CLASSES
    ):
        put(places[1], name, seed)
    put(places[0], "train/cat/1.png", 50)
    assert named(examined(places)) == ["train/cat/1.png"]


def test_a_delivery_that_would_spoil_the_accepted_folder_is_refused(places):
    for number in range(6):
        put(places[0], f"Cat/{number}.png", 200 + number)
    quality = examined(places, {"new_classes": True})
    assert "differ only in case" in quality.refused and finding(quality, "layout").level == "refuse"


def test_what_is_kept_can_be_copied_and_is_then_known(places):
    put(places[0], "cat/a.png", 20), put(places[0], "cat/b.png", b"bad")
    quality = examined(places)
    copy(places[0], quality.kept, places[1])
    after = look(*places, quality.quarantined)
    assert not after.fresh and after.quarantined == 1


def test_files_that_were_not_looked_at_are_counted(places):
    put(places[0], "cat/a.heic", 50)
    assert finding(examined(places), "not looked at").sentence.endswith("not read: 1")


@pytest.mark.parametrize(
    "settings", [{"max_bad_fraction": 1.1}, {"minimum_new": 0}, {"minimum_contrast": -1}, {"confidenec": 0.5}]
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(BadInput):
        validate(settings, QualitySettings, "retrain.quality")
