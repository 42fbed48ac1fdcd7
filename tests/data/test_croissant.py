"""Data sets described in Croissant, validated by mlcroissant."""

import json
import shutil

import pytest

from pipeline.data import croissant
from pipeline.errors import BadInput
from pipeline.files import read_json, sha256, write_json

mlc = pytest.importorskip("mlcroissant", reason="needs the extra outward")


@pytest.fixture
def root(processed_digits):
    return processed_digits.parents[2]


def validated(description, path):
    """The description as mlcroissant reads it. It raises for what Croissant does not allow."""
    write_json(path / "croissant.json", description)
    found = mlc.Dataset(path / "croissant.json")
    assert not found.metadata.ctx.issues.errors
    return found


def text(value):
    """mlcroissant gives texts as bytes or str."""
    return value.decode() if isinstance(value, bytes) else value


def test_the_description_is_valid_and_has_what_the_manifest_has(root, tmp_path):
    found = validated(croissant.describe(root, "images"), tmp_path)
    manifest = read_json(root / "data/processed/images/manifest.json")
    files = {file.content_url: file.sha256 for file in found.metadata.file_objects}
    for split in manifest["splits"].values():
        for entry in (each for shard in split["shards"] for each in shard.values() if isinstance(each, dict)):
            path = f"data/processed/images/{entry['file']}"
            assert files.pop(path) == entry["sha256"] == sha256(root / path)
    assert files == {"package:sklearn/datasets/data/digits.csv.gz": sha256(root / "data/raw/digits.csv.gz")}
    assert found.metadata.license == ["CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)"]
    splits = [text(record["splits/name"]) for record in found.records("splits")]
    assert splits == list(manifest["splits"])
    classes = [(record["classes/index"], text(record["classes/name"])) for record in found.records("classes")]
    assert classes == [(number, str(number)) for number in range(10)]
    (image,) = next(each for each in found.metadata.record_sets if each.id == "test-image").fields
    assert image.array_shape == "1,8,8" and [str(type) for type in image.data_types] == [
        str(mlc.DataType.UINT8)
    ]
    (place,) = [each for each in found.metadata.file_sets if each.id == "test-image-files"]
    assert list(root.glob(place.includes[0])) == [root / "data/processed/images/test/image-00000.npy"]


def test_own_pictures_have_the_licence_that_is_given_and_their_hashes_in_one_file(root, tmp_path):
    for part in ("data/raw/source.json", "data/processed/images/manifest.json"):
        (tmp_path / part).parent.mkdir(parents=True)
        shutil.copy(root / part, tmp_path / part)
    source = read_json(tmp_path / "data/raw/source.json")
    entry = {"sha256": "0" * 64, "bytes": 1, "url": "data/own/cats"}
    source |= {"files": {f"pictures/{number}.png": entry for number in range(101)}}
    source["licence"] = "whatever holds for your pictures"
    write_json(tmp_path / "data/raw/source.json", source)
    assert "license" not in croissant.describe(tmp_path, "images")
    found = validated(croissant.describe(tmp_path, "images", "CC0 1.0"), tmp_path)
    assert found.metadata.license == ["CC0 1.0"]
    (listed,) = [file for file in found.metadata.file_objects if file.id.startswith("raw/")]
    assert (listed.content_url, listed.sha256) == (
        "data/raw/source.json",
        sha256(tmp_path / "data/raw/source.json"),
    )


def test_clips_and_label_maps_are_described(root, tmp_path):
    manifest = {
        "source": "scenes of digits",
        "class_names": [],
        "fields": {
            "clip": {"kind": "clip", "shape": [4, 1, 8, 8], "num_values": 256},
            "mask": {"kind": "label_map", "shape": [8, 8], "num_values": 300},
        },
        "splits": {"train": {"count": 3, "shards": []}},
    }
    write_json(tmp_path / "data/processed/scenes/manifest.json", manifest)
    (tmp_path / "data/raw").mkdir()
    shutil.copy(root / "data/raw/source.json", tmp_path / "data/raw/source.json")
    own = croissant.describe(tmp_path, "scenes")  # the manifest names no pictures of which they are composed
    assert "license" not in own and "distribution" in own and "UCI" not in json.dumps(own)
    assert "Made from: scenes of digits. " in own["description"]
    manifest["pictures"] = "0" * 64
    write_json(tmp_path / "data/processed/scenes/manifest.json", manifest)
    assert "UCI" in croissant.describe(tmp_path, "scenes")["license"]
    found = validated(croissant.describe(tmp_path, "scenes"), tmp_path)
    fields = {each.id: each.fields[0] for each in found.metadata.record_sets if each.id != "splits"}
    assert {name: field.array_shape for name, field in fields.items()} == {
        "train-clip": "4,1,8,8",
        "train-mask": "8,8",
    }
    assert [str(type) for type in fields["train-mask"].data_types] == [str(mlc.DataType.INT32)]


def test_a_data_set_that_is_not_there_is_refused(root):
    with pytest.raises(BadInput, match="no such data set"):
        croissant.describe(root, "nothing")


def test_the_same_data_gives_the_same_description(root):
    first, second = (json.dumps(croissant.describe(root, "images")) for _ in range(2))
    assert first == second
