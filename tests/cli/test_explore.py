"""`darkroom explore` on models with initial weights."""

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.pictures import NAMES
from tests.command import darkroom, done


@pytest.mark.parametrize("name", ["gan", "vae", "ae"])
def test_latents_are_drawn_into_a_folder(name):
    output = done("explore", name)
    assert output == f"interpolation.png, traversal-0.png -> explored/{name}\n"
    for kind in ("interpolation", "traversal-0"):
        with Image.open(f"explored/{name}/{kind}.png") as picture:
            assert picture.format == "PNG" and picture.width > 400


def test_classes_are_named_and_the_seed_decides_the_pictures():
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        done("explore", "gan", "--label", NAMES[3], "--seed", seed, "--out", folder)
    a, b, c = (Path(folder, "interpolation.png").read_bytes() for folder in "abc")
    assert a == b != c and Path("a/traversal-3.png").is_file()


def test_a_model_without_latents_and_an_unknown_class_are_refused():
    code, _, error = darkroom("explore", "cnn")
    assert code == 2 and "does not decode" in error
    code, _, error = darkroom("explore", "gan", "--label", "none")
    assert code == 2 and "no such class" in error and not Path("explored").exists()
