"""A model folder whose card is damaged."""

import pytest

from pipeline.core import model_files
from pipeline.errors import BadInput
from tests import toys


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"name": "cnn"}'])
@pytest.mark.parametrize("name", model_files.names())
def test_a_damaged_card_is_refused_by_name(name, tmp_path, text):
    spec = toys.array_dataset(name).spec
    model_files.write(model_files.build(name, {}, spec, 0), tmp_path / name, {})
    (tmp_path / name / "model.json").write_text(text)
    with pytest.raises(BadInput, match=r"model\.json"):
        model_files.load(tmp_path / name)
