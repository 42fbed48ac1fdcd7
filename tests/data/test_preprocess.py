"""The stage ``preprocess`` and the data that it writes."""

import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.core.dataset import Dataset
from pipeline.core.fields import DataSpec
from pipeline.data import decoding, shards
from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings
from pipeline.data.splits import divide
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import sha256

from .conftest import encoded, fill
from .test_download import SHARED


def made(environment, settings: DataSettings | None = None, name: str = "processed") -> Dataset:
    settings = settings or DataSettings()
    download(settings, environment, environment.root / "raw")
    preprocess(settings, environment, environment.root / "raw", environment.root / name)
    return Dataset.open(environment.root / name)


def pets(**changes: object) -> DataSettings:
    return DataSettings(**{"source": "folder", "folder": "pets", "image_size": 8, **changes})


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_digits_are_divided_once_into_three_stratified_splits(environment):
    data = made(environment)
    assert (data.source, data.class_names) == ("digits", tuple("0123456789"))
    assert data.spec == DataSpec.labelled_images(1, 8, 10)
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    whole = np.bincount(np.concatenate([data.train.labels, data.validation.labels, data.test.labels]))
    assert np.abs(np.bincount(data.test.labels) - 0.2 * whole).max() <= 0.5
    assert np.abs(np.bincount(data.validation.labels) - 0.1 * 0.8 * whole).max() <= 0.6
    table = pd.read_csv(data.folder / "classes.csv")
    assert table[["train", "validation", "test"]].sum(axis=1).tolist() == whole.tolist()
    assert Image.open(data.folder / "contact-sheet.png").width > 300


def test_the_same_raw_files_and_settings_give_the_same_bytes(environment):
    first, second = made(environment), made(environment, name="again")
    assert first.digest == second.digest and tree(first.folder) == tree(second.folder)


def test_another_seed_draws_another_test_split_of_the_same_size(environment):
    first, second = made(environment), made(environment, DataSettings(seed=1), "other")
    assert len(first.test) == len(second.test)
    assert not np.array_equal(
        first.test.rows(np.arange(300))["image"], second.test.rows(np.arange(300))["image"]
    )


def test_an_official_test_split_is_kept_and_validation_comes_from_training():
    labels = {"train": np.repeat([0, 1], 50), "test": np.repeat([0, 1], 7)}
    parts = divide(labels, ("a", "b"), DataSettings(validation_fraction=0.1))
    assert parts["test"][0] == "test" and parts["test"][1].tolist() == list(range(14))
    assert parts["validation"][0] == parts["train"][0] == "train"
    assert sorted([*parts["train"][1], *parts["validation"][1]]) == list(range(100))
    assert np.bincount(labels["train"][parts["validation"][1]]).tolist() == [5, 5]


def test_the_random_splits_do_not_change_between_versions():
    parts = divide({"train": np.repeat([0, 1], 10)}, ("a", "b"), DataSettings())
    assert {split: indices.tolist() for split, (_, indices) in parts.items() if split != "train"} == {
        "test": [3, 7, 12, 18],
        "validation": [6, 15],
    }


def test_an_image_keeps_its_split_when_others_are_added():
    def drawn(count: int) -> dict[str, set[str]]:
        names = [f"{label}/{number}.png" for label in "ab" for number in range(count)]
        parts = divide({"train": np.repeat([0, 1], count)}, ("a", "b"), DataSettings(), names)
        return {split: {names[index] for index in indices} for split, (_, indices) in parts.items()}

    before, after = drawn(300), drawn(500)
    assert all(before[split] <= after[split] for split in ("train", "validation", "test"))
    assert (
        160 < len(after["test"]) < 240 and 55 < len(after["validation"]) < 105 and len(drawn(5)["train"]) >= 4
    )


def test_all_classes_too_small_to_divide_are_named(environment):
    fill(environment.root / "pets", {"cat": 5, "dog": 4, "emu": 1})
    with pytest.raises(BadInput, match="5 are needed: 'dog' has 4, 'emu' has 1"):
        made(environment, pets())
    assert not (environment.root / "processed").exists()


def test_pixels_and_labels_belong_together(environment):
    for label, colour in enumerate(["black", "grey", "white"]):
        (environment.root / "pets" / f"{label}-{colour}").mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (9 + number, 9), colour).save(
                environment.root / "pets" / f"{label}-{colour}" / f"{number}.png"
            )
    data = made(environment, pets())
    for split in (data.train, data.validation, data.test):
        images, labels = split.rows(np.arange(len(split))).values()
        assert images[:, 0, 0, 0].tolist() == [[0, 128, 255][label] for label in labels]


@pytest.mark.parametrize(
    ("color", "source", "channels"), [("rgb", "digits", 3), ("grey", "folder", 1), ("source", "folder", 3)]
)
def test_colour_and_size_are_those_of_the_settings(environment, color, source, channels):
    fill(environment.root / "pets", {"cat": 6, "dog": 6})
    data = made(environment, pets(source=source, color=color, image_size=16))
    assert data.train.rows(np.arange(2))["image"].shape == (2, channels, 16, 16)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_pictures_are_made_square_as_the_settings_say(environment, fit):
    for label in "ab":
        (environment.root / "pets" / label).mkdir(parents=True)
        for number in range(5):
            pixels = np.full((10, 20), 100 + number, np.uint8)
            pixels[:, 5:15] = 200
            Image.fromarray(pixels).save(environment.root / f"pets/{label}/{number}.png")
    data = made(environment, pets(fit=fit))
    image = data.train.rows(np.arange(1))["image"][0, 0]
    assert (image[0].max() == 0) == (fit == "pad") and (image[4, 0] >= 190) == (fit == "crop")
    assert data.manifest["settings"]["fit"] == fit


def test_a_folder_and_its_zip_give_the_same_shards(environment):
    root = fill(environment.root / "pets", {"cat": 6, "dog": 7})
    with zipfile.ZipFile(environment.root / "pets.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(root))
    assert (
        made(environment, pets()).manifest["splits"]
        == made(environment, pets(folder="pets.zip"), "zipped").manifest["splits"]
    )


def test_chunks_and_shards_of_any_size_give_the_same_images(environment, monkeypatch):
    fill(environment.root / "pets", {"cat": 23, "dog": 20})
    whole = made(environment, pets())
    monkeypatch.setattr(shards, "SHARD_BYTES", 128 + 5 * 3 * 8 * 8)
    monkeypatch.setattr("pipeline.data.decoding.CHUNK", 3)
    parts = made(environment, pets(), "parts")
    assert [shard["count"] for shard in parts.manifest["splits"]["train"]["shards"]] == [5, 5, 5, 5, 5, 4]
    assert all(path.stat().st_size <= shards.SHARD_BYTES for path in parts.folder.rglob("image-*.npy"))
    order = np.random.default_rng(0).permutation(len(whole.train))
    for ours, theirs in zip(whole.train.rows(order).values(), parts.train.rows(order).values()):
        assert np.array_equal(ours, theirs)
    chunks = list(parts.train.chunks(7))
    assert [len(rows["label"]) for rows in chunks] == [7, 7, 7, 7, 1]
    assert np.array_equal(
        np.concatenate([rows["image"] for rows in chunks]),
        whole.train.rows(np.arange(len(whole.train)))["image"],
    )


def test_exact_duplicates_are_found_within_and_across_splits(environment):
    root = environment.root / "pets"
    for seed, split in enumerate(("train", "val", "test")):
        fill(root / split, {"cat": 3, "dog": 3}, seed=100 * seed)
    twin = (root / "train/cat/000.png").read_bytes()
    for name in (
        "train/cat/zz.png",
        "train/dog/zz.png",
        "val/cat/zz.png",
        "test/dog/zz.png",
        "test/dog/zzz.png",
    ):
        (root / name).write_bytes(twin)
    found = made(environment, pets()).manifest["duplicates"]
    assert found["within"] == {"train": 2, "test": 1}
    assert found["across"] == {"train-validation": 1, "train-test": 2, "validation-test": 2}
    assert found["contradictory"] == 3
    assert ["train: train/cat/000.png", "validation: val/cat/zz.png"] in found["examples"]


def test_a_folder_needs_an_image_size(environment):
    fill(environment.root / "pets", {"cat": 5, "dog": 5})
    with pytest.raises(BadInput, match=r"data\.image_size: is required"):
        made(environment, pets(image_size=0))


@pytest.mark.parametrize("fault", ["altered", "missing", "unrecorded", "broken record", "other source"])
def test_raw_data_that_is_not_what_was_downloaded_is_refused(environment, fault):
    raw, settings = environment.root / "raw", DataSettings()
    download(settings, environment, raw)
    match fault:
        case "altered":
            data = bytearray((raw / "digits.csv.gz").read_bytes())
            data[4] ^= 1  # the time in the gzip header: the content stays readable
            (raw / "digits.csv.gz").write_bytes(data)
        case "missing":
            (raw / "digits.csv.gz").unlink()
        case "unrecorded":
            (raw / "source.json").unlink()
        case "broken record":
            (raw / "source.json").write_text("[1]")
        case "other source":
            settings = DataSettings(source="mnist")
    with pytest.raises(BadInput, match="raw") as caught:
        preprocess(settings, environment, raw, environment.root / "processed")
    assert "download" in str(caught.value) and not (environment.root / "processed").exists()


@pytest.mark.parametrize(
    "name",
    [
        "train/image-00000.npy",
        "train/label-00000.npy",
        "validation/image-00000.npy",
        "test/label-00000.npy",
    ],
)
@pytest.mark.parametrize("where", [0, 200, -1])
def test_one_flipped_bit_of_a_shard_is_named_on_opening(environment, name, where):
    folder = made(environment).folder
    data = bytearray((folder / name).read_bytes())
    data[where] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BadInput, match=name) as caught:
        Dataset.open(folder)
    assert "dvc repro" in str(caught.value)


def test_a_manifest_that_is_missing_or_no_manifest_is_refused(environment, tmp_path):
    with pytest.raises(BadInput, match="is missing"):
        Dataset.open(tmp_path / "nowhere")
    folder = made(environment).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    larger = manifest["fields"]["image"] | {"shape": [1, 9, 9]}
    changes = ({"fields": {"image": larger}}, {"fields": {"image": {}}}, {"splits": {}})
    for broken in ("", "[]", "{}", *(json.dumps(manifest | change) for change in changes)):
        (folder / "manifest.json").write_text(broken)
        with pytest.raises(BadInput):
            Dataset.open(folder)


def test_rows_out_of_range_are_refused(environment):
    data = made(environment)
    for index in (-1, len(data.train)):
        with pytest.raises(IndexError):
            data.train.rows(np.array([index]))
    assert data.train.rows(np.array([], np.int64))["image"].shape == (0, 1, 8, 8)


def test_the_digest_changes_with_the_data(environment):
    fill(environment.root / "pets", {"cat": 6, "dog": 6})
    before = made(environment, pets()).digest
    (environment.root / "pets/cat/000.png").write_bytes(encoded(99))
    assert made(environment, pets(), "changed").digest != before


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_arrays_and_few_pictures_need_no_ray(environment, source):
    """No Ray answers at this address."""
    fill(environment.root / "pets", {"cat": 6, "dog": 6})
    elsewhere = replace(environment, workers=2, ray_address="127.0.0.1:9")
    assert len(made(elsewhere, pets(source=source)).test)


@pytest.mark.cluster
def test_a_cluster_that_cannot_be_reached_is_named(environment, monkeypatch):
    monkeypatch.setattr(decoding, "MIN_FILES_FOR_RAY", 1)
    fill(environment.root / "pets", {"cat": 6, "dog": 6})
    begun = time.monotonic()
    with pytest.raises(DarkroomError, match=r"127\.0\.0\.1:9: cannot connect to the Ray cluster") as caught:
        made(replace(environment, ray_address="127.0.0.1:9"), pets())
    assert "check the address" in caught.value.remedy and time.monotonic() - begun < 60


@pytest.mark.cluster
@pytest.mark.nightly
def test_pictures_that_a_ray_worker_does_not_see_are_named(environment, monkeypatch):
    monkeypatch.setattr(decoding, "MIN_FILES_FOR_RAY", 1)
    with (
        pytest.raises(DarkroomError, match="/nowhere: is not visible to a worker"),
        decoding.workers(replace(environment, workers=1), 2) as decode,
    ):
        list(decode(decoding.Decoder(Path("/nowhere"), 1, 8), ["a", "b"]))


@pytest.mark.cluster
def test_ray_workers_and_threads_give_the_same_manifest(environment, monkeypatch):
    monkeypatch.setattr(decoding, "MIN_FILES_FOR_RAY", 300)
    root = fill(environment.root / "pets", {"cat": 300, "dog": 40})
    (root / "dog" / "004.png").write_bytes(b"no picture")
    threads = made(environment, pets(max_bad_fraction=0.1))
    workers = made(replace(environment, workers=2), pets(max_bad_fraction=0.1), "workers")
    assert threads.digest == workers.digest and tree(threads.folder) == tree(workers.folder)


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="the mirror ../shared/data is not here")
def test_the_real_mnist_keeps_its_official_test_split(environment):
    data = made(replace(environment, mirror=str(SHARED)), DataSettings(source="mnist"))
    assert (len(data.train) + len(data.validation), len(data.test)) == (60_000, 10_000)
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.skipif(
    not (SHARED / "cifar10-images.zip").is_file(), reason="the mirror ../shared/data is not here"
)
def test_real_photographs_in_a_zip_are_prepared(environment):
    with (
        zipfile.ZipFile(SHARED / "cifar10-images.zip") as whole,
        zipfile.ZipFile(environment.root / "some.zip", "w") as some,
    ):
        for name in whole.namelist():
            if int(Path(name).stem) < 10:
                some.writestr(name, whole.read(name))
    data = made(environment, pets(folder="some.zip", image_size=32))
    assert (len(data.train), len(data.validation), len(data.test)) == (89, 11, 100) and data.class_names[
        3
    ] == "cat"
    assert 60 < data.train.rows(np.arange(89))["image"].mean() < 190
