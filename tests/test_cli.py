"""The `darkroom` command on models with initial weights: input, output and errors."""

import contextlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import pipeline.models
from pipeline import cli
from pipeline.cli.inference import BATCH
from pipeline.core import model_files
from pipeline.core.image_grid import to_bytes, write_png
from pipeline.core.noise import Noise
from pipeline.core.task import Batch, DataSpec
from pipeline.tracking.runs import Description, open_run
from tests.command import darkroom, done
from tests.project import MODELS, PARAMS, ROOT
from tests.test_readme import block

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "sieben", "acht", "neun"]
GREY, COLOUR = DataSpec.labelled_images(1, 8, 10), DataSpec.labelled_images(3, 12, 10)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder of models: the four for grey pictures of 8 x 8, and 'colour', a classifier of 3 x 12 x 12."""
    folder = tmp_path_factory.mktemp("shelf") / "models"
    for name in MODELS:
        task = model_files.build(name, PARAMS[name]["model"], GREY, seed=1).requires_grad_(False)
        images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        task.on_train_end([Batch.of_images(images, torch.arange(40) % 10)])
        model_files.write(task, folder / name, {"class_names": NAMES})
    model_files.write(
        model_files.build("cnn", PARAMS["cnn"]["model"], COLOUR, seed=1),
        folder / "colour",
        {"class_names": NAMES},
    )
    return folder


@pytest.fixture(autouse=True)
def place(shelf, tmp_path, monkeypatch):
    """A project with models only, as the current folder."""
    (tmp_path / "models").symlink_to(shelf)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(seed=0, size=8):
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


def picture(path, seed=0):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)
    return path


def broken(path):
    """The first half of a picture."""
    whole = picture(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])
    return path


def answers(output):
    """{path: (class, probability)} of the lines of classify."""
    rows = [line.split("\t") for line in output.splitlines()]
    return {path: (answer.split()[0], float(answer.split()[1])) for path, answer in rows}


def expected(seed):
    """The class and probability that the classifier itself gives to ``picture(seed=seed)``."""
    task = model_files.load(Path("models/cnn"))
    shares = task.classify(Batch.load({"image": pixels(seed)[None, None]}, GREY).images).softmax(1)[0]
    return NAMES[int(shares.argmax())], pytest.approx(float(shares.max()), abs=1e-4)


def hidden(folder):
    return [path for path in Path(folder).rglob(".*") if path.name != ".dvc"]


def mixed(*arguments):
    """(exit code, standard output, standard error, exception) of a command that continues after errors."""
    result = CliRunner().invoke(cli.commands, [str(argument) for argument in arguments])
    return (
        getattr(result.exception, "exit_code", result.exit_code),
        result.stdout,
        result.stderr,
        str(result.exception or ""),
    )


def everything(folder):
    """All files and folders below ``folder``, without those behind the link to the models."""
    return sorted(
        str(path.relative_to(folder)) for path in Path(folder).rglob("*") if "models/" not in str(path)
    )


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
        assert code == 2 and "cnn: this model does not generate" in error and "use gan, vae or ae" in error
        assert not Path("cnn.png").exists()

    @pytest.mark.parametrize(
        "arguments",
        [("--count", 0), ("--count", "x"), ("--seed", -1), ("--columns", 0), ("--out", "."), ("--nonsense",)],
    )
    def test_an_argument_that_makes_no_sense_is_refused_before_anything_is_drawn(self, arguments):
        code, _, error = darkroom("generate", "gan", *arguments)
        assert code == 2 and arguments[0] in error and not list(Path().glob("*.png"))


class TestClassify:
    def test_a_file_a_folder_a_list_and_all_of_them_together(self):
        picture("one.png", 1)
        for number in (2, 3):
            picture(f"folder/deep/{number}.png", number)
        Path("folder/notes.txt").write_text("not a picture")
        picture("listed.PNG", 4)
        whole = answers(done("classify", "one.png", "folder", "-", stdin="listed.PNG\n\nfolder/deep\r\n"))
        assert whole == {
            path: expected(seed)
            for path, seed in (
                ("one.png", 1),
                ("folder/deep/2.png", 2),
                ("folder/deep/3.png", 3),
                ("listed.PNG", 4),
            )
        }
        for given, stdin in (("one.png", None), ("folder", None), ("-", "listed.PNG\n")):
            part = answers(done("classify", given, stdin=stdin))
            assert part == {path: whole[path] for path in part} and part

    def test_a_blank_line_of_the_list_is_not_the_current_folder(self):
        picture("a.png")
        picture("b.png")
        assert list(answers(done("classify", "-", stdin="\n  \na.png\n"))) == ["a.png"]

    def test_more_pictures_than_a_batch_are_classified_once_each_in_order(self):
        for number in range(BATCH + 4):
            picture(f"many/{number:04d}.png", number)
        many = answers(done("classify", "many"))
        assert list(many) == [f"many/{number:04d}.png" for number in range(BATCH + 4)]
        for number in (0, BATCH - 1, BATCH, BATCH + 3):
            assert many[f"many/{number:04d}.png"] == expected(number)

    def test_a_picture_of_any_mode_and_format_is_the_same_picture(self):
        grey = Image.fromarray(pixels())
        grey.save("grey.png")
        grey.convert("RGB").save("rgb.png")
        grey.convert("RGBA").save("rgba.png")
        grey.convert("P").save("palette.png")
        Image.fromarray(pixels().astype(np.uint16) * 257).save("wide.png")
        grey.convert("RGB").save("bitmap.bmp")
        grey.save("exact.webp", lossless=True)
        found = answers(done("classify", "."))
        assert len(found) == 7 and set(found.values()) == {found["grey.png"]}
        assert Image.open("palette.png").mode == "P" and Image.open("wide.png").mode.startswith("I;16")

    def test_a_larger_picture_is_fitted_by_its_central_square(self):
        small = pixels()
        large = np.full((40, 60), 255, np.uint8)
        large[:, 10:50] = small.repeat(5, 0).repeat(5, 1)
        Image.fromarray(small).save("small.png")
        Image.fromarray(large).resize((60, 40)).save("large.png")
        found = answers(done("classify", "small.png", "large.png"))
        assert found["large.png"][0] == found["small.png"][0]
        assert found["large.png"][1] == pytest.approx(found["small.png"][1], abs=0.02)

    def test_a_picture_that_is_not_square_is_made_square_as_for_the_training(self, shelf):
        card = {"class_names": NAMES, "fit": "pad"}
        model_files.write(model_files.load(shelf / "cnn"), Path("own/padded"), card)
        square = pixels()
        square[:2] = square[6:] = 0
        Image.fromarray(square).save("square.png")
        Image.fromarray(square[2:6]).save("wide.png")
        found = answers(done("classify", "--models", "own", "--model", "padded", "wide.png", "square.png"))
        assert found["wide.png"] == found["square.png"]
        assert found["wide.png"] != answers(done("classify", "wide.png"))["wide.png"]

    def test_a_grey_picture_suits_a_model_of_colours(self):
        picture("grey.png")
        Image.fromarray(pixels()).convert("RGB").save("rgb.png")
        found = answers(done("classify", "--model", "colour", "grey.png", "rgb.png"))
        assert found["grey.png"] == found["rgb.png"]

    @pytest.mark.parametrize(("top", "count"), [(1, 1), (3, 3), (100, 10)])
    def test_lines_of_json_hold_the_best_classes_from_the_best_on(self, top, count):
        picture("a.png", 1)
        picture("b.png", 2)
        lines = [
            json.loads(line)
            for line in done("classify", "--json", "--top", top, "a.png", "b.png").splitlines()
        ]
        assert [line["path"] for line in lines] == ["a.png", "b.png"]
        for line, seed in zip(lines, (1, 2), strict=True):
            shares = [answer["probability"] for answer in line["classes"]]
            assert len(shares) == count and shares == sorted(shares, reverse=True)
            assert (line["classes"][0]["class"], shares[0]) == expected(seed)
            assert len({answer["class"] for answer in line["classes"]}) == count
            assert top < 100 or sum(shares) == pytest.approx(1, abs=1e-4)

    def test_names_of_any_script_come_back_as_they_are(self):
        names = ["猫/子猫.png", "größe ñ.png", " spaces .png", "🎞.png"]
        for name in names:
            picture(name)
        assert list(answers(done("classify", *names))) == names
        assert list(answers(done("classify", "-", stdin="\n".join(names)))) == names
        assert [json.loads(line)["path"] for line in done("classify", "--json", *names).splitlines()] == names

    def test_a_file_name_that_is_not_utf_8_is_classified(self):
        try:
            name = os.fsdecode(b"caf\xe9.png")
            picture("plain.png").rename(name)
        except OSError:
            pytest.skip("this file system takes text only")
        assert done("classify", name).startswith("caf�.png\t")
        assert done("classify", "-", stdin=b"caf\xe9.png\n").startswith("caf�.png\t")

    @pytest.mark.parametrize("name", ["gan", "vae", "ae"])
    def test_a_model_that_cannot_is_refused_and_another_named(self, name):
        picture("a.png")
        code, output, error = darkroom("classify", "--model", name, "a.png")
        assert (
            (code, output) == (2, "")
            and f"{name}: this model does not classify" in error
            and "use cnn" in error
        )

    def test_a_missing_model_is_refused_with_the_existing_ones_or_how_to_train_it(self, tmp_path):
        picture("a.png")
        code, output, error = darkroom("classify", "--model", "resnet", "a.png")
        assert (code, output) == (2, "") and "models/resnet: no such trained model" in error
        assert "there are: ae, cnn, colour, gan, vae; or name a registered one: NAME@ALIAS" in error
        (tmp_path / "empty").mkdir()
        for arguments in (("classify", "a.png"), ("generate", "vae"), ("restore", "a.png")):
            code, output, error = darkroom(*arguments, "--models", "empty")
            assert (code, output) == (2, "") and "dvc repro train-" in error

    @pytest.mark.parametrize(
        ("arguments", "stdin", "named", "reason"),
        [
            (("nowhere.png",), None, "nowhere.png", "no such file or folder"),
            (("x" * 5000,), None, "x" * 200, "too long"),
            (("empty",), None, "empty", "has no pictures"),
            (("-",), "", "PATHS", "no picture was named"),
            (("-",), "\n\n", "PATHS", "no picture was named"),
            (("-",), "nowhere.png\n", "nowhere.png", "no such file or folder"),
            (("",), None, "PATHS", "no picture was named"),
        ],
    )
    def test_a_path_that_does_not_exist_is_named_and_nothing_is_classified(
        self, arguments, stdin, named, reason
    ):
        Path("empty").mkdir()
        code, output, error = darkroom("classify", *arguments, stdin=stdin)
        assert (code, output) == (2, "") and f"{named}: " in error and reason in error and "->" in error

    @pytest.mark.parametrize("as_json", [False, True])
    def test_a_broken_picture_is_reported_and_all_others_are_classified(self, as_json):
        for number in range(BATCH + 2):
            picture(f"many/{number:04d}.png", number)
        broken("many/0001.png")
        Path("many/9999.png").write_text("no picture")
        code, output, error, raised = mixed("classify", "many", *["--json"] * as_json)
        paths = (
            [json.loads(line)["path"] for line in output.splitlines()] if as_json else list(answers(output))
        )
        assert paths == [f"many/{number:04d}.png" for number in range(BATCH + 2) if number != 1]
        first, second = error.splitlines()
        assert first.startswith("error: many/0001.png: ")
        assert second.startswith("error: many/9999.png: ") and "is not a PNG, JPEG, BMP or WebP" in second
        assert (
            code == 2
            and "many/0001.png: 2 pictures could not be read" in raised
            and "leave them out" in raised
        )

    def test_if_no_picture_can_be_read_nothing_is_printed(self):
        code, output, error, raised = mixed("classify", broken("half.png"))
        assert (
            (code, output) == (2, "")
            and "error: half.png: " in error
            and "1 picture could not be read" in raised
        )

    def test_a_picture_sent_in_place_of_a_list_is_refused(self):
        code, output, error = darkroom("classify", "-", stdin=picture("a.png").read_bytes())
        assert (code, output) == (2, "") and "->" in error

    def test_no_path_at_all_is_refused(self):
        assert darkroom("classify")[0] == 2


class TestRestore:
    def restored(self, name, seed):
        return to_bytes(
            model_files.load(Path("models", name))
            .reconstruct(Batch.load({"image": pixels(seed)[None, None]}, GREY).images)
            .numpy()
        )[0, 0]

    @pytest.mark.parametrize("name", ["ae", "vae"])
    def test_each_picture_comes_out_of_the_code_as_a_png_of_its_own(self, name):
        for number in range(3):
            picture(f"in/{number}.png", number)
        assert (
            done("restore", "--model", name, "--out", "new/out", "in")
            == "3 pictures and pairs.png -> new/out\n"
        )
        assert sorted(os.listdir("new/out")) == ["0.png", "1.png", "2.png", "pairs.png"]
        for number in range(3):
            assert (
                np.abs(
                    np.array(Image.open(f"new/out/{number}.png")).astype(int) - self.restored(name, number)
                ).max()
                <= 1
            )
        given = np.array(Image.open("new/out/pairs.png"))[:48:6, :48:6]
        assert (given == pixels(0)).all()

    def test_more_pictures_than_a_batch_all_come_out(self):
        for number in range(BATCH + 4):
            picture(f"many/{number:04d}.png", number)
        assert done("restore", "many").startswith(f"{BATCH + 4} pictures")
        assert len(os.listdir("restored")) == BATCH + 5

    def test_existing_files_and_pictures_of_the_same_name_are_not_overwritten(self):
        Path("restored").mkdir()
        Path("restored/x.png").write_text("mine")
        picture("a/x.png", 1)
        picture("b/x.jpg", 2)
        picture("b/ü 字.png", 3)
        assert done("restore", "a", "b") == "3 pictures and pairs.png -> restored\n"
        assert sorted(os.listdir("restored")) == ["pairs.png", "x-1.png", "x-2.png", "x.png", "ü 字.png"]
        assert Path("restored/x.png").read_text() == "mine"

    def test_a_picture_called_pairs_is_not_lost(self):
        picture("pairs.png", 1)
        picture("other.png", 2)
        done("restore", "pairs.png", "other.png")
        assert sorted(os.listdir("restored")) == ["other.png", "pairs-1.png", "pairs.png"]

    def test_a_broken_picture_is_reported_and_all_others_are_restored(self):
        for number in range(4):
            picture(f"in/{number}.png", number)
        broken("in/1.png")
        code, output, error, raised = mixed("restore", "in")
        assert (code, output) == (
            2,
            "3 pictures and pairs.png -> restored\n",
        ) and "error: in/1.png: " in error
        assert "1 picture could not be read" in raised
        assert sorted(os.listdir("restored")) == ["0.png", "2.png", "3.png", "pairs.png"] and not hidden(
            "restored"
        )
        for path in Path("restored").iterdir():
            Image.open(path).load()

    def test_where_no_picture_can_be_read_nothing_is_written(self):
        code, output, _, _ = mixed("restore", broken("half.png"))
        assert (code, output) == (2, "") and not Path("restored").exists()

    def test_a_model_that_cannot_is_refused_and_another_named(self):
        picture("a.png")
        code, _, error = darkroom("restore", "--model", "cnn", "a.png")
        assert code == 2 and "cnn: this model does not reconstruct" in error and "use ae or vae" in error
        assert not Path("restored").exists()

    def test_a_file_is_no_folder_to_write_to(self):
        code, _, error = darkroom("restore", "--out", picture("a.png"), "a.png")
        assert code == 2 and "a.png" in error


class TestDamage:
    @pytest.mark.parametrize(
        ("command", "name"),
        [(("generate", "gan"), "gan"), (("classify", "a.png"), "cnn"), (("restore", "a.png"), "ae")],
        ids=str,
    )
    def test_weights_with_one_flipped_bit_are_refused_by_name(self, shelf, command, name):
        picture("a.png")
        shutil.copytree(shelf / name, Path("copy", name))
        weights = Path("copy", name, model_files.WEIGHTS)
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        code, output, error = darkroom(*command, "--models", "copy")
        assert (code, output) == (1, "") and f"{weights}: " in error and f"dvc checkout copy/{name}" in error
        assert sorted(os.listdir()) == [".dvc", "a.png", "copy", "dvc.yaml", "models"]


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

    @pytest.mark.parametrize("name", ["gan", "vae", "ae"])
    def test_a_conditional_model_takes_one(self, name):
        done("generate", name, "--count", 2, "--label", "three")


class TestRegistry:
    """Models of MLflow's registry, by name."""

    @pytest.fixture
    def registered(self, shelf, place, monkeypatch):
        for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DARKROOM_STORAGE"):
            monkeypatch.delenv(name, raising=False)
        where = cli.environment.read()
        with open_run(where, Description("train-gan", "f" * 64)) as run:
            for name in ("cnn", "gan", "ae"):
                run.register(shelf / name, name)
        (place / "models").unlink()  # so that only the registry has the models

    def test_models_of_the_registry_are_used_by_alias_and_by_version(self, registered, shelf):
        picture("a.png", 1)
        for name in ("gan@champion", "gan/1"):
            assert done("generate", name, "--count", 2) == f"2 pictures -> {name.replace('/', '-')}.png\n"
        done("generate", "gan", "--count", 2, "--models", shelf)
        files = [Path(name).read_bytes() for name in ("gan.png", "gan@champion.png", "gan-1.png")]
        assert files[0] == files[1] == files[2]
        assert done("classify", "a.png", "--model", "cnn@champion") == done(
            "classify", "a.png", "--models", shelf
        )
        assert done("restore", "a.png", "--model", "ae/1").startswith("1 pictures")

    @pytest.mark.parametrize(
        ("name", "reason", "there"),
        [
            ("gan@production", "no version of gan has the alias 'production'", "gan/1 (the champion)"),
            ("gan/7", "no such version", "gan/1 (the champion)"),
            ("nothing@champion", "no such registered model", "gan (versions 1 to 1"),
        ],
    )
    def test_an_unknown_version_is_refused_with_the_known_ones(self, registered, name, reason, there):
        code, output, error = darkroom("generate", name)
        assert (code, output) == (2, "") and f"{name}: {reason}" in error and there in error


class TestSubfolder:
    """Commands in a folder below the project's root."""

    @pytest.fixture
    def deep(self, place, monkeypatch):
        for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DARKROOM_STORAGE"):
            monkeypatch.delenv(name, raising=False)
        (place / "params.yaml").write_text(json.dumps(PARAMS))
        folder = place / "notes/deep"
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        return folder

    def test_the_models_are_the_projects_and_the_pictures_are_where_the_user_is(self, deep):
        picture("a.png", 1)
        assert list(answers(done("classify", "a.png"))) == ["a.png"]
        done("generate", "gan", "--count", 1)
        done("generate", "gan", "--count", 1, "--out", "mine.png")
        done("restore", "a.png")
        assert everything(deep) == [
            "a.png",
            "gan.png",
            "mine.png",
            "restored",
            "restored/a.png",
            "restored/pairs.png",
        ]
        assert everything(deep.parents[1])[:3] == [".dvc", "dvc.yaml", "models"]

    @pytest.mark.parametrize("command", ["sync", "history", "doctor", "verify", "trace", "promote"])
    def test_the_database_and_the_settings_are_the_projects(self, deep, command):
        root = deep.parents[1]
        done("sync")
        assert (root / "mlflow.db").is_file() and (root / ".darkroom").is_dir()
        arguments = {"trace": ["../../dvc.yaml"], "promote": ["nothing"]}.get(command, [])
        here = darkroom(command, *arguments)
        with contextlib.chdir(root):
            assert darkroom(command, *(["dvc.yaml"] if command == "trace" else arguments)) == here
        assert Path.cwd() == deep and everything(deep) == []

    def test_outside_a_project_commands_are_refused_and_make_nothing(
        self, tmp_path_factory, shelf, monkeypatch
    ):
        outside = tmp_path_factory.mktemp("outside")
        monkeypatch.chdir(outside)
        commands = [
            "sync",
            "history",
            "verify",
            "retrain",
            "repro",
            "trace x",
            "compare x",
            "seeds vae",
            "promote vae",
            "rollback vae",
        ]
        for command in [
            *commands,
            "reproduce vae/1",
            "generate gan",
            "generate gan@champion",
            "classify .",
            "restore .",
        ]:
            code, output, error = darkroom(*command.split())
            assert (code, output) == (2, "") and "not inside a project" in error and "dvc.yaml" in error, (
                command
            )
        darkroom("doctor")
        assert everything(outside) == []
        picture("a.png", 1)
        assert len(done("classify", "a.png", "--models", shelf).splitlines()) == 1
        assert done("generate", "gan", "--count", 1, "--models", shelf) == "1 pictures -> gan.png\n"
        assert done("restore", "a.png", "--models", shelf).startswith("1 pictures")


class TestHelp:
    def every(self):
        """(name, command) of each command and sub-command."""
        for name, command in cli.commands.commands.items():
            yield name, command
            if isinstance(command, click.Group):
                yield from ((f"{name} {child}", command.commands[child]) for child in command.commands)

    def test_no_summary_is_cut_off(self):
        for arguments in ([], ["schedule"]):
            shown = CliRunner().invoke(cli.commands, [*arguments, "--help"]).output.split("Commands:")[1]
            assert not [line for line in shown.splitlines() if line.rstrip().endswith("...")]

    def test_every_command_has_a_summary_and_every_option_a_help_text(self):
        for name, command in self.every():
            assert command.help, name
            assert not [
                one.name for one in command.params if isinstance(one, click.Option) and not one.help
            ], name

    def test_promote_says_that_a_reason_overrules_the_gates(self):
        shown = " ".join(CliRunner().invoke(cli.commands, ["promote", "--help"]).output.split())
        assert "A reason overrules the gates" in shown


class TestMakeUi:
    def test_a_port_that_is_taken_is_named_before_anything_starts(self, tmp_path):
        shutil.copy(ROOT / "Makefile", tmp_path)
        (tmp_path / ".venv").mkdir()
        for name in ("requirements.lock", "pyproject.toml", ".venv/.ready"):
            (tmp_path / name).write_text(str(tmp_path) if name == ".venv/.ready" else "")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            command = ["make", "-C", str(tmp_path), "ui", f"PORT={port}"]
            done = subprocess.run(
                command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60
            )
        assert done.returncode != 0 and f"port {port}" in done.stderr and "make ui PORT=" in done.stderr
        assert "MLflow on" not in done.stdout and not (tmp_path / "mlflow.db").exists()


class TestProcess:
    """The console script itself."""

    def start(self, *arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        code = "from pipeline.cli import main; main()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True, **pipes)

    def test_a_list_on_standard_input_is_classified(self):
        picture("größe.png", 1)
        process = self.start("classify", "-")
        output, error = process.communicate("größe.png\n", timeout=60)
        assert (process.returncode, error) == (0, "") and answers(output) == {"größe.png": expected(1)}

    def test_a_refusal_is_two_lines_on_standard_error_and_exit_code_2(self):
        process = self.start("classify", "nowhere.png")
        output, error = process.communicate(timeout=60)
        assert (process.returncode, output) == (
            2,
            "",
        ) and error == "error: nowhere.png: no such file or folder\n  -> check the path\n"

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [((), 2), (("--version",), 0), (("nonsense",), 2)],
        ids=["none", "version", "unknown"],
    )
    def test_click_keeps_its_exit_codes(self, arguments, code):
        process = self.start(*arguments)
        output, error = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in error and (output or error)

    def test_an_interrupt_gives_130(self, monkeypatch):
        def interrupted(folder):
            raise KeyboardInterrupt

        monkeypatch.setattr(model_files, "load", interrupted)
        monkeypatch.setattr(sys, "argv", ["darkroom", "classify", "a.png"])
        with pytest.raises(SystemExit) as ended:
            cli._run()
        assert ended.value.code == 130
