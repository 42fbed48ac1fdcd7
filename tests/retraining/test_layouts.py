"""New pictures are read as the stages read the accepted ones: their splits, classes and values."""

import shutil
import unicodedata

import numpy as np
import pytest

from pipeline.core.task import DataSpec
from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.reading import read_layout
from pipeline.data.settings import DataSettings
from pipeline.errors import BadInput
from pipeline.params import validate
from pipeline.retraining.incoming import copy, look
from pipeline.retraining.quality import examine
from pipeline.retraining.settings import QualitySettings
from tests.data import conftest
from tests.data.conftest import encoded
from tests.data.layouts import Image, arrays, labels, pixels, saved, table

environment = conftest.environment
SPEC = DataSpec.labelled_images(3, 8, 2)
DECOMPOSED = unicodedata.normalize("NFD", "café")


def fill(root, names, seed):
    """A picture in each folder ``name``; a number after a blank gives several."""
    for text in names:
        name, _, count = text.partition(" x")
        for number in range(int(count or 1)):
            path = root / name / f"{seed}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(1000 * seed + len(list(root.rglob("*.png"))), (9, 9)))


def kept_by_retrain(root, accepted, **data):
    """What is kept of the folder ``new``, after it was copied to the folder ``accepted``; what is not."""
    settings = DataSettings(**{"source": "folder", "folder": accepted.name, "image_size": 8, **data})
    arrival = look(root / "new", accepted, {}, settings=settings)
    limits = validate({"max_bad_fraction": 1, "max_class_imbalance": None}, QualitySettings, "q")
    quality = examine(arrival, limits, SPEC, (), None, settings)
    assert not quality.refused
    copy(root / "new", quality.usable, accepted)
    return [(picture.split, picture.label) for picture in quality.kept], list(quality.quarantined.values())


@pytest.mark.parametrize(
    ("accepted", "new", "found"),
    [
        (["cat x5", "dog x5"], ["cat", "dog/deep/er"], [(None, "cat"), (None, "dog")]),
        (["x/y/cat x5", "x/y/dog x5"], ["x/y/dog"], [(None, "dog")]),
        (
            ["seg_train/cat x5", "seg_train/dog x5", "seg_test/cat", "seg_test/dog"],
            ["seg_train/cat", "seg_test/dog"],
            [("test", "dog"), ("train", "cat")],
        ),
        (
            ["Training/cat x5", "Training/dog x5", "Testing/cat", "Testing/dog"],
            ["Testing/cat"],
            [("test", "cat")],
        ),
        (
            [f"{part}2017/{label} x5" for part in ("train", "val") for label in ("cat", "dog")],
            ["val2017/dog"],
            [("validation", "dog")],
        ),
        (
            [f"seg_{part}/seg_{part}/{label} x5" for part in ("train", "test") for label in ("cat", "dog")],
            ["seg_train/seg_train/cat"],
            [("train", "cat")],
        ),
        (["train x5", "bus x5"], ["train"], [(None, "train")]),
        ([". x5"], ["."], [(None, "all")]),
        (["train x5", "test x5"], ["test"], [("test", "all")]),
        (["cat x5"], ["cat"], [(None, "cat")]),
        ([f"{DECOMPOSED} x5", "dog x5"], [DECOMPOSED], [(None, "café")]),
        ([], ["Train/cat x5", "Train/dog x5", "Test/cat", "Test/dog"], None),
        ([], [". x5"], None),
    ],
)
def test_what_download_reads_after_a_delivery_is_what_was_kept(environment, accepted, new, found):
    root = environment.root
    own = root / "own"
    fill(own, accepted, 1)
    fill(root / "new", new, 2)
    everything = list((root / "new").rglob("*.png"))
    kept, quarantined = kept_by_retrain(root, own)
    assert not quarantined and len(kept) == len(everything) and found in (None, kept)
    settings = DataSettings(source="folder", folder="own", image_size=8)
    layout = read_layout(own, settings)
    delivered = [entry for entry in layout.entries if entry.path.rsplit("/")[-1].startswith("2-")]
    assert sorted((entry.split, entry.label) for entry in delivered) == sorted(kept)
    download(settings, environment, root / "raw")
    preprocess(settings, environment, root / "raw", root / "processed")


@pytest.mark.parametrize(
    ("accepted", "new", "example"),
    [
        (["x/y/cat x5", "x/y/dog x5"], "cat", "x/y/cat/1-0.png"),
        (["seg_train/cat x5", "seg_train/dog x5", "seg_test/cat", "seg_test/dog"], "train/cat", "seg_test"),
        (["seg_train/cat x5", "seg_train/dog x5", "seg_test/cat", "seg_test/dog"], "cat", "seg_test"),
        (["cat x5", "dog x5"], "train/cat", "cat/1-0.png"),
        (["cat x5", "dog x5"], ".", "cat/1-0.png"),
    ],
)
def test_a_picture_in_another_place_is_quarantined_with_an_example(tmp_path, accepted, new, example):
    fill(tmp_path / "own", accepted, 1)
    fill(tmp_path / "new", [new], 2)
    kept, (reason,) = kept_by_retrain(tmp_path, tmp_path / "own")
    assert not kept and f"is not in a class folder, as '{example}" in reason


def test_classes_that_the_stages_leave_out_are_known_and_their_pictures_are_not_new_again(tmp_path):
    fill(tmp_path / "own", ["cat x9", "dog x9", "owl x6"], 1)
    fill(tmp_path / "new", ["cat", "owl"], 2)
    small = {"min_images_per_class": 8}
    kept, quarantined = kept_by_retrain(tmp_path, tmp_path / "own", **small)
    assert kept == [(None, "cat"), (None, "owl")] and not quarantined
    settings = DataSettings(source="folder", folder="own", image_size=8, **small)
    again = look(tmp_path / "new", tmp_path / "own", {}, settings=settings)
    assert not again.fresh and len(again.accepted) == 26


def test_pictures_of_other_groups_than_the_pattern_knows_are_refused_as_by_download(tmp_path):
    fill(tmp_path / "own", ["cat/p1 x5", "dog/p2 x5"], 1)
    fill(tmp_path / "new", ["cat"], 2)
    settings = DataSettings(source="folder", folder="own", image_size=8, group=r"/(p\d)/")
    arrival = look(tmp_path / "new", tmp_path / "own", {}, settings=settings)
    limits = validate({"max_class_imbalance": None}, QualitySettings, "q")
    assert (
        "pictures without a group: 'cat/2-0.png'"
        in examine(arrival, limits, SPEC, (), None, settings).refused
    )


@pytest.mark.parametrize("kind", ["table", "setting", "arrays"])
def test_what_a_retraining_cannot_add_to_is_refused_with_the_remedy(tmp_path, kind):
    own = tmp_path / "own"
    settings = DataSettings(source="folder", folder="own", image_size=8)
    fill(tmp_path / "new", ["cat"], 2)
    if kind == "arrays":
        arrays(".npy", images=pixels(9, 8, 8), labels=labels(9))(tmp_path)
    elif kind == "table":
        fill(own, [". x5"], 1)
        rows = [(f"1-{number}.png", "cat") for number in range(5)]
        (own / "labels.csv").write_text(table(",", ("file", "label"), *rows))
    else:
        settings = settings.model_copy(update={"labels": "labels.csv"})
    with pytest.raises(BadInput, match=r"data\.folder.*to which a retraining cannot add") as caught:
        look(tmp_path / "new", own, {}, settings=settings)
    assert "class folders" in caught.value.remedy


def test_delivered_arrays_are_refused(tmp_path):
    path = arrays(train_images=pixels(9, 8, 8))(tmp_path)
    with pytest.raises(BadInput, match=r"retrain\.watch.*holds arrays"):
        look(path, tmp_path / "nowhere", {})


def test_an_accepted_folder_that_download_refuses_is_refused_with_its_reason(tmp_path):
    fill(tmp_path / "own", ["cat x5", "Cat x5"], 1)
    fill(tmp_path / "new", ["cat"], 2)
    with pytest.raises(BadInput, match="differ only in case: 'Cat', 'cat'"):
        look(tmp_path / "new", tmp_path / "own", {})


def wide(root, name, top):
    """A PNG with 16 bits for each pixel and values up to ``top``; distinct names have distinct values."""
    values = np.linspace(0, top, 81).reshape(9, 9).astype(np.uint16)
    values[0, 0] = sum(name.encode()) % 200
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(saved(Image.fromarray(values), "PNG"))


@pytest.mark.parametrize(
    ("setting", "accepted_top", "new_top", "is_kept"),
    [
        ("auto", 4095, 4095, True),
        ("auto", None, 4095, True),  # the accepted ones have 8 bits for each pixel
        ("auto", 4095, 65535, False),  # with them, the accepted ones would become nearly black
        ("auto", 65535, 4095, False),  # nearly black
        (12, 65535, 4095, True),
        (16, 65535, 65535, True),
        (12, 4095, 65535, False),
    ],
)
def test_values_of_16_bits_are_scaled_as_for_training(tmp_path, setting, accepted_top, new_top, is_kept):
    for label in ("cat", "dog"):
        fill(tmp_path / "own", [f"{label} x5"], 1)
        if accepted_top:
            shutil.rmtree(tmp_path / "own" / label)
            for number in range(5):
                wide(tmp_path / "own", f"{label}/{number}.png", accepted_top)
    wide(tmp_path / "new", "cat/wide.png", new_top)
    settings = DataSettings(source="folder", folder="own", image_size=8, bit_depth=setting)
    arrival = look(tmp_path / "new", tmp_path / "own", {}, settings=settings)
    limits = validate({"minimum_contrast": 0.1, "max_bad_fraction": 1}, QualitySettings, "q")
    quality = examine(arrival, limits, SPEC, (), None, settings)
    assert [picture.name for picture in quality.kept] == ["cat/wide.png"] * is_kept
    assert len(quality.quarantined) == (not is_kept)
