"""Names of classes are drawn with a font that has their letters, or by other names; never as boxes."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data import fonts
from pipeline.data.preprocess import contact_sheet
from pipeline.evaluation.figures import draw_confusion, save_grid

CHINESE = "犬"  # no font that comes with a dependency has it


@pytest.fixture
def without_chinese(monkeypatch):
    own = [path for path in fonts._installed() if "mpl-data" in path]
    monkeypatch.setattr(fonts, "_installed", lambda: own)


def test_plain_names_need_no_font_and_say_nothing(capsys):
    assert fonts.readable(["cat", "T-shirt/top"]) == (["cat", "T-shirt/top"], "")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["été", "Жук", "قط", "ẹja"])
def test_a_font_with_all_letters_is_found(name, without_chinese, capsys):
    drawn, path = fonts.readable([name, "cat"])
    assert drawn == [name, "cat"] and set(name) <= fonts._letters(path) and capsys.readouterr().err == ""
    font, box = fonts.font_of(path, 20), fonts.font_of(path, 20).getmask("\uffff")
    for letter in name:
        assert bytes(font.getmask(letter)) != bytes(box)


def test_letters_that_no_font_has_become_their_codes_with_a_word_on_standard_error(without_chinese, capsys):
    assert fonts.readable([CHINESE, "été"])[0] == ["U+72AC", "été"]
    text = capsys.readouterr().err
    assert f"{CHINESE} as U+72AC" in text and "fonts-noto-cjk" in text


def test_the_sheets_and_figures_draw_such_names(tmp_path, without_chinese):
    import torch

    names = ["Жук", CHINESE]
    images = {label: [np.full((3, 8, 8), 90, np.uint8)] for label in range(2)}
    sheets = {name: np.asarray(contact_sheet(images, [name, "cat"])) for name in ("Жук", "Ж", "cat")}
    assert len({sheet.tobytes() for sheet in sheets.values()}) == 3
    save_grid(torch.zeros(1, 2, 1, 8, 8), tmp_path / "grid.png", columns=names, rows=["a"])
    draw_confusion(np.eye(2, dtype=int), names, tmp_path / "confusion.png")
    assert all(Image.open(tmp_path / name).width > 30 for name in ("grid.png", "confusion.png"))
