"""A model folder whose card is damaged."""

import pytest

from pipeline.core import model_files
from pipeline.core.fields import DataSpec
from pipeline.errors import BadInput


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"name": "cnn"}'])
@pytest.mark.parametrize("name", model_files.names())
def test_a_damaged_card_is_refused_by_name(name, tmp_path, text):
    spec = DataSpec.labelled_images(1, 8, 2)
    needs = {need: model_files.build(need, {}, spec, 0) for need in model_files.find(name).needs}
    model_files.write(model_files.build(name, {}, spec, 0, needs), tmp_path / name, {})
    (tmp_path / name / "model.json").write_text(text)
    with pytest.raises(BadInput, match=r"model\.json"):
        model_files.load(tmp_path / name)
