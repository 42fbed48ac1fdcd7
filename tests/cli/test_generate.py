"""`darkroom generate` on models with initial weights."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline.models
from pipeline.cli.inference import _folder_names
from pipeline.core import model_files
from pipeline.core.image_grid import to_bytes, write_png
from pipeline.core.noise import Noise
from pipeline.data.reading import read_layout
from pipeline.data.settings import DataSettings
from tests.cli.pictures import GREY, NAMES, hidden
from tests.command import darkroom, done
from tests.test_readme import block


class TestGenerate:
    @pytest.mark.parametrize("name", ["gan", "vae", "ae"])
    def test_pictures_go_into_one_png_a_row_for_each_turn_through_the_classes(self, name):
        assert done("generate", name, "--count", 12) == f"12 pictures -> {name}.png\n"
        with Image.open(f"{name}.png") as drawn:
            assert (drawn.format, drawn.size) == (
                "PNG",
                (10 * 50 - 2, 2 * 50 - 2),
            )  # 8 pixels, six times as large, and gaps
        assert not hidden(".")

    def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(self):
        for file, seed in (("a.png", 5), ("b.png", 5), ("c.png", 6)):
            done("generate", "gan", "--count", 3, "--seed", seed, "--out", file)
        a, b, c = (Path(file).read_bytes() for file in ("a.png", "b.png", "c.png"))
        assert a == b != c

    def test_classes_are_drawn_by_name_each_in_turn(self):
        done(
            "generate",
            "gan",
            "--count",
            4,
            "--label",
            "sieben",
            "--label",
            "two",
            "--seed",
            3,
            "--columns",
            2,
            "--out",
            "new/folder/x.png",
        )
        drawn = model_files.load(Path("models/gan")).generate(
            torch.tensor([7, 2, 7, 2]), 4, Noise.whole(3, 4, "generate")
        )
        write_png(Path("expected.png"), to_bytes(drawn.numpy()), 2)
        assert Path("new/folder/x.png").read_bytes() == Path("expected.png").read_bytes()

    def test_an_unknown_class_is_refused_with_the_known_ones(self):
        code, _, error = darkroom("generate", "gan", "--label", "seven")
        assert (
            code == 2
            and "--label seven" in error
            and ", ".join(NAMES) in error
            and not Path("gan.png").exists()
        )

    def test_a_model_that_cannot_is_refused_and_another_named(self):
        code, _, error = darkroom("generate", "cnn")
        assert (
            code == 2
            and "cnn: this model does not generate" in error
            and "use gan, vae, ae or transformer" in error
        )
        assert not Path("cnn.png").exists()

    @pytest.mark.parametrize(
        "arguments",
        [("--count", 0), ("--count", "x"), ("--seed", -1), ("--columns", 0), ("--out", "."), ("--nonsense",)],
    )
    def test_an_argument_that_makes_no_sense_is_refused_before_anything_is_drawn(self, arguments):
        code, _, error = darkroom("generate", "gan", *arguments)
        assert code == 2 and arguments[0] in error and not list(Path().glob("*.png"))


class TestLabels:
    @pytest.fixture
    def lsgan(self, tmp_path, monkeypatch):
        """The README's model, which has no classes, with its initial weights."""
        (tmp_path / "code").mkdir()
        (tmp_path / "code/lsgan.py").write_text(block("python", "# pipeline/models/lsgan.py"))
        monkeypatch.setattr(pipeline.models, "__path__", [*pipeline.models.__path__, str(tmp_path / "code")])
        importlib.invalidate_caches()
        model_files.write(
            model_files.build("lsgan", {"width": 8}, GREY, seed=1),
            tmp_path / "own/lsgan",
            {"class_names": NAMES},
        )

    def test_a_label_is_refused_by_a_model_that_does_not_use_labels(self, lsgan):
        code, output, error = darkroom("generate", "lsgan", "--models", "own", "--label", "three")
        assert (code, output) == (2, "") and "--label three" in error and "does not use labels" in error
        assert not Path("lsgan.png").exists()

    def test_without_a_label_it_draws(self, lsgan):
        assert done("generate", "lsgan", "--models", "own", "--count", 10) == "10 pictures -> lsgan.png\n"
        with Image.open("lsgan.png") as drawn:
            assert drawn.size == (8 * 50 - 2, 2 * 50 - 2)  # without classes, there is no row for each class

    def test_a_folder_of_its_pictures_has_no_class_folders(self, lsgan):
        done("generate", "lsgan", "--models", "own", "--count", 3, "--folder", "drawn")
        assert sorted(path.name for path in Path("drawn").iterdir()) == [
            "00000.png",
            "00001.png",
            "00002.png",
        ]

    @pytest.mark.parametrize("name", ["gan", "vae", "ae"])
    def test_a_conditional_model_takes_one(self, name):
        done("generate", name, "--count", 2, "--label", "three")


class TestFolder:
    def test_a_folder_of_class_folders_holds_the_pictures_that_the_model_draws(self):
        done("generate", "gan", "--count", 23, "--seed", 3, "--folder", "new/drawn")
        drawn = model_files.load(Path("models/gan")).generate(
            torch.arange(23) % 10, 23, Noise.whole(3, 23, "generate")
        )
        pixels = to_bytes(drawn.numpy())
        assert sorted(path.name for path in Path("new/drawn").iterdir()) == sorted(NAMES)
        files = sorted(Path("new/drawn").rglob("*.png"), key=lambda path: path.name)
        assert len(files) == 23
        for number, path in enumerate(files):
            assert path.parent.name == NAMES[number % 10]
            assert (np.asarray(Image.open(path)) == pixels[number, 0]).all()

    def test_it_can_be_trained_on(self):
        done("generate", "vae", "--count", 20, "--label", "two", "--label", "sieben", "--folder", "drawn")
        layout = read_layout(Path("drawn"), DataSettings(source="folder", folder="drawn"))
        assert layout.class_names == ("sieben", "two") and not layout.faults
        assert [entry.label for entry in layout.entries] == ["sieben"] * 10 + ["two"] * 10

    def test_a_folder_that_is_not_empty_is_refused_and_kept(self):
        Path("full").mkdir()
        Path("full/mine.txt").write_text("mine")
        Path("empty").mkdir()
        code, _, error = darkroom("generate", "gan", "--folder", "full")
        assert code == 2 and "full" in error and "is not empty" in error
        assert [path.name for path in Path("full").iterdir()] == ["mine.txt"]
        done("generate", "gan", "--count", 1, "--folder", "empty")
        assert [path.name for path in Path("empty").rglob("*.png")] == ["00000.png"]

    @pytest.mark.parametrize("other", [("--out", "x.png"), ("--columns", 3)])
    def test_options_of_one_png_are_refused(self, other):
        code, _, error = darkroom("generate", "gan", "--folder", "drawn", *other)
        assert code == 2 and other[0] in error and not Path("drawn").exists()

    def test_names_of_classes_become_names_of_folders(self):
        names = ["T-shirt/top", "..", "猫", "a:b", "plain"]
        assert _folder_names(names) == ["T-shirt-top", "-", "猫", "a-b", "plain"]
        assert _folder_names(["a/b", "a:b"]) == ["0-a-b", "1-a-b"]
        assert _folder_names(["Cat", "cat"]) == ["0-Cat", "1-cat"]  # one folder on some systems
