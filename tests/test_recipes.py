"""`darkroom recipe`: settings are written into params.yaml, and nothing else in it changes.

``python -m tests.test_recipes`` writes digits.yaml after a change of the shipped params.yaml.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import recipes
from pipeline.core import model_files
from pipeline.errors import BadInput
from pipeline.files import write_text
from pipeline.params import read_file
from pipeline.settings_check import find_faults
from pipeline.tracking.rerun import leaves
from tests.command import darkroom, done
from tests.project import SHIPPED_MODELS
from tests.repository import commit, shell

pytestmark = pytest.mark.skipif(
    set(model_files.names()) != SHIPPED_MODELS, reason="params.yaml is not the shipped one"
)
ROOT = Path(__file__).parents[1]
SHIPPED = (ROOT / "params.yaml").read_text()
OTHERS = [name for name in recipes.names() if name != "digits"]
KEPT = ("gates", "retrain", "search")  # what no recipe sets
HEAD = """\
description: the handwritten digits of scikit-learn, embedded; the settings of the shipped params.yaml
command: darkroom recipe digits && dvc repro
hardware: 2 shared cores of an AMD EPYC, no GPU
time: 3 to 4 minutes
reaches: >-
  classifier 100 % of 359 test images; FID in the classifier's features: GAN 0.30, VAE 0.43, autoencoder
  0.34, Transformer 0.46 (real against real 0.15); forecasts of clips: squared error 25.6 a frame (black
  55.4); segmentation: mean IoU 75.0 %
settings:
"""


def digits() -> str:
    """What digits.yaml has to be: the shipped sections, as they are written, without comments."""
    sections = re.split(r"^(?=\w+:)", re.sub(r"\s*#.*", "", SHIPPED), flags=re.M)
    kept = [text for text in sections if re.match(r"\w+:", text) and text.partition(":")[0] not in KEPT]
    lines = [line for text in kept for line in text.splitlines() if line]
    return HEAD + "".join(f"  {line}\n" for line in lines)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the shipped params.yaml, committed, as the current folder."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    (tmp_path / "params.yaml").write_text(SHIPPED)
    shell(tmp_path, "git", "init", "-q", "-b", "main")
    commit(tmp_path, "the shipped params")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def text(project: Path) -> str:
    return (project / "params.yaml").read_text()


def test_digits_are_the_shipped_params():
    assert (recipes.FOLDER / "digits.yaml").read_text() == digits(), "run: python -m tests.test_recipes"
    shipped = {name: values for name, values in read_file(ROOT / "params.yaml").items() if name not in KEPT}
    assert recipes.sections("digits", {}) == shipped


@pytest.mark.parametrize("name", OTHERS)
def test_a_recipe_is_valid_and_has_only_settings_that_differ_from_digits(name, project):
    recipes.apply(name)
    assert find_faults(Path("params.yaml"))[1] == []
    written, shipped = leaves(read_file()), leaves(read_file(ROOT / "params.yaml"))
    own = leaves(recipes.read(name).settings)
    assert own == {key: value for key, value in written.items() if shipped.get(key, ...) != value}


@pytest.mark.parametrize("name", OTHERS)
def test_digits_after_another_recipe_is_the_shipped_file_byte_for_byte(name, project):
    recipes.apply(name)
    assert text(project) != SHIPPED
    recipes.apply("digits")
    assert text(project) == SHIPPED


def test_only_lines_with_a_change_change_and_comments_stay(project):
    mine = SHIPPED.replace("    batch_size: 128 # global", "    # mine\n    batch_size: 128 # global", 1)
    (project / "params.yaml").write_text(mine)
    changed = recipes.apply("moving-mnist")
    before, after = mine.splitlines(), text(project).splitlines()
    assert len(before) == len(after) and "    # mine" in after
    assert sum(old != new for old, new in zip(before, after)) == len(changed) == 20
    assert re.search(r"^  source: mnist # digits, mnist", text(project), re.M)


def test_settings_of_earlier_recipes_and_edits_go_and_other_sections_stay(project):
    mine = read_file()
    mine["cnn"]["model"] |= {"flip": 0.5, "stride": 3}
    mine["cnn"]["training"].pop("l1")
    mine["retrain"]["watch"] = "incoming"
    (project / "params.yaml").write_text(json.dumps(mine))
    recipes.apply("digits", force=True)
    assert read_file() == {**read_file(ROOT / "params.yaml"), "retrain": mine["retrain"]}


def test_a_setting_at_the_end_of_a_section_goes_with_its_comment_only(project):
    added = "      learning_rate: 4.0e-3\n"
    (project / "params.yaml").write_text(SHIPPED.replace(added, f"{added}      beta1: 0.5 # of mine\n"))
    recipes.apply("digits", force=True)
    assert text(project) == SHIPPED


def test_comments_stay_with_their_settings_when_others_come_and_go(project):
    mine = """\
# of the whole
vae: # mine
  training:
    # how long
    num_steps: 900 # steps

    # of a gradient
    clip_norm:
    # seldom
    batch_size: 4

  # its networks
  model: {width: 16} # small
# the end
"""
    (project / "params.yaml").write_text(mine)
    before = read_file()
    after = {"vae": {"training": {"num_steps": 5, "batch_size": 4, "l1": 0.5}, "model": {"beta": 2}}}
    changed = recipes._changed(mine, before, after | {"ae": {"model": {"code_size": 2}}})
    assert changed == mine.replace("900", "5").replace("    clip_norm:\n", "").replace(
        "batch_size: 4\n", "batch_size: 4\n    l1: 0.5\n"
    ).replace("{width: 16}", "\n    beta: 2").replace("model: \n", "model:\n").replace(
        "# the end", "ae:\n  model:\n    code_size: 2\n# the end"
    )
    (project / "params.yaml").write_text(changed)
    back = recipes._changed(changed, read_file(), before)
    assert [line.strip() for line in back.splitlines() if "#" in line and "model" not in line] == [
        line.strip() for line in mine.splitlines() if "#" in line and "model" not in line
    ]


def test_a_write_keeps_the_mode_and_a_symbolic_link(project):
    path = project / "params.yaml"
    path.chmod(0o600)
    recipes.apply("mnist")
    assert path.stat().st_mode & 0o777 == 0o600
    path.rename(project / "mine.yaml")
    path.symlink_to("mine.yaml")
    recipes.apply("digits")
    assert path.is_symlink() and (project / "mine.yaml").read_text() == SHIPPED


def test_the_users_own_folder_stays(project):
    mine = SHIPPED.replace("folder: ''", "folder: data/own/cats", 1).replace(
        "source: digits", "source: folder"
    )
    (project / "params.yaml").write_text(mine)
    recipes.apply("own-photos-64")
    assert read_file()["data"]["folder"] == "data/own/cats" and read_file()["data"]["image_size"] == 64


def test_the_command_lists_shows_and_applies(project):
    listed = done("recipe")
    assert all(name in listed for name in recipes.names()) and "99.66 %" in listed
    before = (project / "params.yaml").stat().st_ino
    shown = done("recipe", "mnist", "--dry-run")
    assert "data.source: digits -> mnist\n" in shown and "nothing was written" in shown
    assert (project / "params.yaml").stat().st_ino == before
    assert "cnn.training.num_steps: 500 -> 1100\n" in done("recipe", "mnist")
    assert read_file()["cnn"]["training"]["num_steps"] == 1100
    assert "params.yaml has these settings already" in done("recipe", "mnist")
    assert "gan.training.num_steps: 8000 -> 1300\n" in done("recipe", "digits")  # no commit between recipes
    assert text(project) == SHIPPED


def test_a_recipe_does_not_replace_what_is_in_no_commit(project):
    mine = SHIPPED.replace("num_steps: 900", "num_steps: 901").replace("width: 16", "width: 24", 1)
    (project / "params.yaml").write_text(mine)
    code, _, error = darkroom("recipe", "mnist")
    assert code == 2 and "uncommitted settings" in error and "--force" in error
    assert "gan.model.width, vae.training.num_steps" in error and text(project) == mine
    assert "vae.training.num_steps: 901 -> 6000" in done("recipe", "mnist", "--dry-run")
    shell(project, "git", "rm", "-q", "--cached", "params.yaml")
    shell(project, "git", "commit", "-q", "-m", "without params.yaml")
    assert darkroom("recipe", "mnist")[0] == 2 and text(project) == mine
    commit(project, "mine")
    done("recipe", "mnist")
    assert read_file()["vae"]["training"]["num_steps"] == 6000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source: digits", "sorce: digits", "params.yaml"),
        ("data:", "data: [", "params.yaml, line"),
        ("minimum_test_images", "minimum_images", r"params.yaml: gates\.minimum_images: no such setting"),
        ("gates:", "gate:", r"params.yaml: gate: no such section"),
    ],
)
def test_params_that_cannot_be_used_are_refused_and_stay_as_they_are(project, old, new, message):
    (project / "params.yaml").write_text(SHIPPED.replace(old, new, 1))
    commit(project, "wrong")
    if "sorce" in new:  # in a section that the recipe sets: it is mended
        recipes.apply("mnist")
        return
    code, _, error = darkroom("recipe", "mnist")
    assert code == 2 and re.search(message, error) and ".yaml." not in error
    assert text(project) == SHIPPED.replace(old, new, 1)
    assert sorted(path.name for path in project.iterdir()) == [".dvc", ".git", "dvc.yaml", "params.yaml"]


def test_an_unknown_recipe_names_the_nearest(project):
    code, _, error = darkroom("recipe", "minst")
    assert code == 2 and "minst: no such recipe" in error and "did you mean 'mnist'?" in error
    assert darkroom("recipe", "../mnist")[0] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{cnn: {model: {flipp: 0.5}}}", r"cnn\.model\.flipp: no such setting\n.*'flip'"),
        ("{cnn: {training: {num_steps: many}}}", r"cnn\.training\.num_steps"),
        ("{resnet: {model: {}}}", "resnet: no such section"),
    ],
)
def test_a_recipe_with_wrong_keys_is_refused_before_anything_is_written(
    project, tmp_path_factory, monkeypatch, settings, message
):
    folder = Path(shutil.copytree(recipes.FOLDER, tmp_path_factory.mktemp("recipes"), dirs_exist_ok=True))
    head = "{description: a, command: b, hardware: c, time: d, reaches: e, settings: %s}"
    (folder / "wrong.yaml").write_text(head % settings)
    monkeypatch.setattr(recipes, "FOLDER", folder)
    with pytest.raises(BadInput, match=message):
        recipes.apply("wrong")
    assert text(project) == SHIPPED
    (folder / "wrong.yaml").write_text((head % settings).replace("reaches", "reached"))
    with pytest.raises(BadInput, match=r"recipe wrong\.\w+"):
        recipes.read("wrong")


@pytest.mark.parametrize("name", recipes.names())
def test_each_recipe_says_its_command_and_what_was_measured(name):
    recipe = recipes.read(name)
    assert recipe.command == f"darkroom recipe {name} && dvc repro"
    for said in (recipe.time, recipe.reaches):
        assert re.search(r"\d", said) or said.startswith("not measured")
    assert len(list(YAML(typ="safe").load((recipes.FOLDER / f"{name}.yaml").read_text()))) >= 6


if __name__ == "__main__":
    write_text(recipes.FOLDER / "digits.yaml", digits())
