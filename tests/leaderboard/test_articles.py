"""The leaderboards of docs/articles.md can be trained, and each has its place there."""

import re
import shutil

import pytest

from pipeline import recipes
from pipeline.core import model_files
from pipeline.core.settings import TrainingSettings
from pipeline.leaderboard import board as boards
from tests.project import SHIPPED_MODELS
from tests.test_walls import ROOT

pytestmark = pytest.mark.skipif(
    set(model_files.names()) != SHIPPED_MODELS, reason="params.yaml is not the shipped one"
)
FILES = sorted((ROOT / "docs/articles").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_leaderboard_of_the_articles_is_valid(path, tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    board = boards.read(path)
    assert board.model == path.stem and board.base == "digits" and board.seeds
    first = next(iter(board.variants))
    assert board.variants[first] == {} and "the recipe digits" in first


def test_each_leaderboard_has_its_place_in_the_document():
    document = (ROOT / "docs/articles.md").read_text()
    marks = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", document, re.S)
    assert sorted(name for name, _ in marks) == [path.stem for path in FILES]
    for name, table in marks:  # a table that was made from another file is made again
        for variant in re.findall(r"^\| (?!variant \||---)(.+?) \| ", table, re.M):
            assert f"{variant.split('<br>')[0]}: " in (
                ROOT / f"docs/articles/{name}.yaml"
            ).read_text().replace("'", "")


def test_every_choice_of_a_model_is_in_its_leaderboard():
    """Each architecture, loss and prior that a model knows but the recipe does not have, and each switch."""
    for path in FILES:
        recipe = recipes.read("digits").settings[path.stem]["model"]
        config, text = model_files.find(path.stem).Config, path.read_text()
        for name, field in config.model_fields.items():
            for choice in getattr(field.annotation, "__args__", ()):
                known = choice == recipe.get(name, field.default) or (name, choice) == ("prior", "none")
                if isinstance(choice, str) and not known:  # prior: none generates nothing
                    assert f"{path.stem}.model.{name}: {choice}" in text, f"{path.stem}: {name}: {choice}"
            if field.annotation is bool:
                assert f"{path.stem}.model.{name}: " in text, f"{path.stem}: {name}"


def test_every_setting_that_the_document_names_exists():
    names = re.findall(r"`(\w+)\.(model|training)\.(\w+)", (ROOT / "docs/articles.md").read_text())
    assert len(names) > 100
    for model, part, name in names:
        config = model_files.find(model).Config if part == "model" else TrainingSettings
        assert name in config.model_fields, f"{model}.{part}.{name}"
