"""Pictures of one group, such as a patient, stay in one split."""

import zipfile

import numpy as np
import pytest

from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings
from pipeline.data.splits import divide
from pipeline.errors import BadInput

from .layouts import members, table

CLASSES = ("a", "b")


def divided(num_groups: int, **settings: object) -> dict[str, set[str]]:
    """The groups of each split, of ``num_groups`` groups with four pictures of each class."""
    groups = [f"p{number}" for _ in CLASSES for number in range(num_groups) for _ in range(4)]
    labels = {"train": np.repeat([0, 1], 4 * num_groups)}
    parts = divide(labels, CLASSES, DataSettings(**settings), groups, groups)
    return {split: {groups[index] for index in indices} for split, (_, indices) in parts.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_groups", [3, 5, 20, 200])
def test_no_group_is_in_two_splits_and_every_split_has_every_class(num_groups, seed):
    found = divided(num_groups, seed=seed)
    assert sum(map(len, found.values())) == num_groups and len(set.union(*found.values())) == num_groups
    assert all(found.values())
    if num_groups == 200:
        assert 20 < len(found["test"]) < 60 and 5 < len(found["validation"]) < 35


def test_a_group_keeps_its_split_when_others_are_added():
    before, after = divided(100), divided(150)
    assert all(before[split] <= after[split] for split in before)


def test_a_class_with_too_few_groups_is_named():
    with pytest.raises(BadInput, match="too few groups to divide them: 'a', 'b'"):
        divided(2)


@pytest.mark.parametrize("next_to", [False, True])
def test_groups_and_labels_of_a_table_in_or_next_to_a_zip(environment, next_to):
    pictures = members({".": 60})
    rows = [(name, "ab"[number % 2], f"p{number // 4}") for number, name in enumerate(pictures)]
    text = table(",", ("image", "species", "patient"), *rows)
    with zipfile.ZipFile(environment.root / "own.zip", "w") as archive:
        for name, data in pictures.items():
            archive.writestr(name, data)
        if not next_to:
            archive.writestr("labels.csv", text)
    if next_to:
        (environment.root / "labels.csv").write_text(text)
    settings = DataSettings(
        source="folder", folder="own.zip", image_size=8, labels="labels.csv", group="column:patient"
    )
    download(settings, environment, environment.root / "raw")
    (environment.root / "labels.csv").unlink(missing_ok=True)  # the stages use the copy
    manifest = preprocess(settings, environment, environment.root / "raw", environment.root / "processed")
    counts = [entry["count"] for entry in manifest["splits"].values()]
    assert sum(counts) == 60 and all(count and count % 4 == 0 for count in counts)
    assert manifest["class_names"] == ["a", "b"]


@pytest.mark.parametrize(
    ("group", "reason"), [("(", "not a regular expression"), ("p.", "0 groups"), ("(a)(b)", "2")]
)
def test_a_pattern_without_exactly_one_group_is_refused(group, reason):
    with pytest.raises(ValueError, match=reason):
        DataSettings(group=group)
