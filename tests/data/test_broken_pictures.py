"""Broken pictures: refused by name, or left out and listed."""

import pandas as pd
import pytest

from pipeline.errors import BadInput

from .conftest import encoded, fill
from .test_preprocess import made, pets


def test_a_broken_image_is_refused_by_name_and_no_output_is_left(environment):
    root = fill(environment.root / "pets", {"cat": 9, "dog": 9})
    (root / "dog" / "004.png").write_bytes(encoded(4)[:-40])
    with pytest.raises(BadInput, match=r"cannot be decoded: dog/004\.png \(") as caught:
        made(environment, pets())
    assert caught.value.exit_code == 2 and "max_bad_fraction" in str(caught.value)
    assert not [path for path in environment.root.iterdir() if "processed" in path.name]


def test_an_allowed_fraction_of_broken_images_is_left_out_and_listed_and_one_more_is_refused(environment):
    root = fill(environment.root / "pets", {"cat": 10, "dog": 10})
    (root / "dog" / "004.png").write_bytes(b"no picture")
    (root / "cat" / "007.png").write_bytes(b"")
    data = made(environment, pets(max_bad_fraction=0.1))
    assert sorted(entry["name"] for entry in data.manifest["quarantined"]) == ["cat/007.png", "dog/004.png"]
    assert len(data.train) + len(data.validation) + len(data.test) == 18
    assert sum(sum(entry["classes"]) for entry in data.manifest["splits"].values()) == 18
    (root / "cat" / "001.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"3 images are broken; 2 may be:"):
        made(environment, pets(max_bad_fraction=0.1))


def test_all_broken_images_are_named_by_reason_up_to_a_limit(environment):
    root = fill(environment.root / "pets", {"cat": 9, "dog": 9})
    for name in ("cat/001", "dog/002", "dog/008"):
        (root / f"{name}.png").write_bytes(encoded(4)[:-40])
    (root / "cat/004.png").write_bytes(b"no picture")
    with pytest.raises(BadInput) as caught:
        made(environment, pets())
    lines = str(caught.value).splitlines()
    assert "4 images are broken; 0 may be" in lines[0] and len(lines) == 4
    (decoding,) = (line for line in lines if "cannot be decoded: " in line)
    assert all(f"{name}.png" in decoding for name in ("cat/001", "dog/002", "dog/008"))
    assert "  is not an image of a supported format: cat/004.png" in lines
    fill(environment.root / "pets", {"cat": 90})
    for path in (root / "cat").iterdir():
        path.write_bytes(b"no picture")
    path = environment.root / ".darkroom/refused.csv"
    assert not path.exists()
    with pytest.raises(BadInput, match=r"92 images are broken; 0 may be:(?s:.)*and [0-9]+ more") as caught:
        made(environment, pets())
    assert f"  all names are in {path}" in str(caught.value).splitlines()
    table = pd.read_csv(path)
    assert len(table) == 92 and table["name"].nunique() == 92 and table["reason"].is_monotonic_increasing
    assert [each.name for each in path.parent.iterdir()] == ["refused.csv"]


def test_all_files_that_download_refuses_are_listed_by_reason(environment):
    root = fill(environment.root / "pets", {"cat": 5, "dog": 5})
    names = [f"cat/{number:02d}.heic" for number in range(30)] + ["a.png", "b.png"]
    for name in names:
        (root / name).write_bytes(encoded(1))
    with pytest.raises(BadInput, match=r"and 10 more.*'a\.png', 'b\.png'; all names are in ") as caught:
        made(environment, pets())
    path = environment.root / ".darkroom/refused.csv"
    assert str(path) in str(caught.value) and not (environment.root / "raw").exists()
    table = pd.read_csv(path)
    assert table["name"].tolist() == names and table["reason"].value_counts().tolist() == [30, 2]


def test_a_class_with_only_broken_images_is_refused_even_when_broken_ones_are_allowed(environment):
    root = fill(environment.root / "pets", {"cat": 20, "dog": 5})
    for path in (root / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        BadInput, match="no valid image: 'dog' in 'train', 'dog' in 'validation', 'dog' in 'test'"
    ):
        made(environment, pets(max_bad_fraction=0.5))
