"""A model folder whose card is damaged."""

import pytest

from pipeline.core import model_files
from pipeline.core.fields import DataSpec
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import write_json
from tests.arrays import needs_for, spec_for


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"name": "cnn"}'])
@pytest.mark.parametrize("name", model_files.names())
def test_a_damaged_card_is_refused_by_name(name, tmp_path, text):
    spec = spec_for(name)
    model_files.write(model_files.build(name, {}, spec, 0, needs_for(name)), tmp_path / name, {})
    (tmp_path / name / "model.json").write_text(text)
    with pytest.raises(BadInput, match=r"model\.json"):
        model_files.load(tmp_path / name)


@pytest.fixture
def folder(tmp_path):
    spec = DataSpec.labelled_images(1, 8, 2)
    model_files.write(model_files.build("cnn", {}, spec, 0), tmp_path / "cnn", {"class_names": ["3", "7"]})
    return tmp_path / "cnn"


def test_no_flipped_bit_of_a_card_changes_what_is_read(folder):
    path, card = folder / "model.json", model_files.read_card(folder)
    data, num_refused = path.read_bytes(), 0
    for place in range(0, 8 * len(data), 7):
        harmed = bytearray(data)
        harmed[place // 8] ^= 1 << place % 8
        path.write_bytes(harmed)
        try:
            found = model_files.read_card(folder)
            found.pop(next(iter(found.keys() - card.keys()), ""), "")  # the key of the digest was changed
            assert found == card
        except BadInput:
            num_refused += 1
    assert num_refused > len(data) / 2  # a changed blank does no harm


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"config": []},
        {"config": {"channels": "many"}},
        {"spec": {}},
        {"spec": {"fields": {"image": {"kind": "clip"}}}},
        {"needs": [1]},
    ],
    ids=str,
)
def test_a_card_without_digest_whose_values_cannot_be_used_is_refused(folder, change):
    write_json(folder / "model.json", model_files.read_card(folder) | change)
    with pytest.raises(DarkroomError, match=r"cnn.*\n  -> restore it"):
        model_files.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_though_their_hash_matches(folder, value):
    task = model_files.load(folder)
    next(task.parameters()).data.view(-1)[0] = value
    model_files.write(task, folder, {})
    with pytest.raises(DarkroomError, match="cnn: its weights are not finite\n  -> its training diverged"):
        model_files.load(folder)
