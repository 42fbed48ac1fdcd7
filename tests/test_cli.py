"""The `darkroom` command, on models that were never trained: what goes in, what comes out, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import cli
from pipeline.cli.pictures import BATCH
from pipeline.core import model_files
from pipeline.core.image_grid import to_bytes, write_png
from pipeline.core.noise import Noise
from pipeline.core.task import Batch, DataSpec
from tests.command import darkroom, done
from tests.project import MODELS, PARAMS, ROOT

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "sieben", "acht", "neun"]
GREY, COLOUR = DataSpec(1, 8, 10), DataSpec(3, 12, 10)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A models folder: each of the four for grey pictures of 8 x 8, and 'colour', a classifier of 3 x 12 x 12."""
    folder = tmp_path_factory.mktemp("shelf") / "models"
    for name in MODELS:
        task = model_files.build(name, PARAMS[name]["model"], GREY, seed=1).requires_grad_(False)
        images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        task.on_train_end([Batch(images, torch.arange(40) % 10)])
        model_files.write(task, folder / name, {"class_names": NAMES})
    model_files.write(model_files.build("cnn", PARAMS["cnn"]["model"], COLOUR, seed=1), folder / "colour", {"class_names": NAMES})
    return folder


@pytest.fixture(autouse=True)
def place(shelf, tmp_path, monkeypatch):
    """An empty folder to work in, with the models beside it."""
    (tmp_path / "models").symlink_to(shelf)
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
    shares = task.classify(Batch.of(pixels(seed)[None, None], np.zeros(1, np.int64)).images).softmax(1)[0]
    return NAMES[int(shares.argmax())], pytest.approx(float(shares.max()), abs=1e-4)


def hidden(folder):
    return [path for path in Path(folder).rglob(".*")]


class TestGenerate:
    @pytest.mark.parametrize("name", ["gan", "vae", "ae"])
    def test_pictures_go_into_one_png_a_row_for_each_turn_through_the_classes(self, name):
        assert done("generate", name, "--count", 12) == f"12 pictures -> {name}.png\n"
        with Image.open(f"{name}.png") as drawn:
            assert (drawn.format, drawn.size) == ("PNG", (10 * 50 - 2, 2 * 50 - 2))  # 8 pixels, six times as large, and gaps
        assert not hidden(".")

    def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(self):
        for file, seed in (("a.png", 5), ("b.png", 5), ("c.png", 6)):
            done("generate", "gan", "--count", 3, "--seed", seed, "--out", file)
        a, b, c = (Path(file).read_bytes() for file in ("a.png", "b.png", "c.png"))
        assert a == b != c

    def test_classes_are_drawn_by_name_each_in_turn(self):
        done(
            "generate", "gan", "--count", 4, "--label", "sieben", "--label", "two", "--seed", 3, "--columns", 2, "--out", "new/folder/x.png"
        )
        drawn = model_files.load(Path("models/gan")).generate(torch.tensor([7, 2, 7, 2]), 4, Noise.whole(3, 4, "generate"))
        write_png(Path("expected.png"), to_bytes(drawn.numpy()), 2)
        assert Path("new/folder/x.png").read_bytes() == Path("expected.png").read_bytes()

    def test_an_unknown_class_is_answered_with_the_known_ones(self):
        code, _, error = darkroom("generate", "gan", "--label", "seven")
        assert code == 2 and "--label seven" in error and ", ".join(NAMES) in error and not Path("gan.png").exists()

    def test_a_model_that_cannot_is_refused_and_another_named(self):
        code, _, error = darkroom("generate", "cnn")
        assert code == 2 and "cnn: this model does not generate" in error and "use gan, vae or ae" in error
        assert not Path("cnn.png").exists()

    @pytest.mark.parametrize(
        "arguments", [("--count", 0), ("--count", "x"), ("--seed", -1), ("--columns", 0), ("--out", "."), ("--nonsense",)]
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
            path: expected(seed) for path, seed in (("one.png", 1), ("folder/deep/2.png", 2), ("folder/deep/3.png", 3), ("listed.PNG", 4))
        }
        for given, stdin in (("one.png", None), ("folder", None), ("-", "listed.PNG\n")):
            part = answers(done("classify", given, stdin=stdin))
            assert part == {path: whole[path] for path in part} and part

    def test_a_blank_line_of_the_list_is_not_the_current_folder(self):
        picture("a.png")
        picture("b.png")
        assert list(answers(done("classify", "-", stdin="\n  \na.png\n"))) == ["a.png"]

    def test_more_pictures_than_a_batch_are_answered_once_each_in_order(self):
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

    def test_a_grey_picture_suits_a_model_of_colours(self):
        picture("grey.png")
        Image.fromarray(pixels()).convert("RGB").save("rgb.png")
        found = answers(done("classify", "--model", "colour", "grey.png", "rgb.png"))
        assert found["grey.png"] == found["rgb.png"]

    @pytest.mark.parametrize(("top", "count"), [(1, 1), (3, 3), (100, 10)])
    def test_lines_of_json_hold_the_best_classes_from_the_best_on(self, top, count):
        picture("a.png", 1)
        picture("b.png", 2)
        lines = [json.loads(line) for line in done("classify", "--json", "--top", top, "a.png", "b.png").splitlines()]
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

    def test_a_name_that_is_no_text_does_not_stop_the_answer(self):
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
        assert (code, output) == (2, "") and f"{name}: this model does not classify" in error and "use cnn" in error

    def test_a_model_that_is_not_there_is_answered_with_how_to_train_it(self):
        picture("a.png")
        for more, where in (((), "models/resnet"), (("--models", "elsewhere"), "elsewhere/resnet")):
            code, output, error = darkroom("classify", "--model", "resnet", *more, "a.png")
            assert (code, output) == (2, "") and where in error and "dvc repro train-resnet" in error

    @pytest.mark.parametrize(
        ("arguments", "stdin", "named", "reason"),
        [
            (("nowhere.png",), None, "nowhere.png", "no such file or folder"),
            (("x" * 5000,), None, "x" * 200, "too long"),
            (("empty",), None, "empty", "holds no picture"),
            (("-",), "", "PATHS", "no picture was named"),
            (("-",), "\n\n", "PATHS", "no picture was named"),
            (("-",), "nowhere.png\n", "nowhere.png", "no such file or folder"),
            (("",), None, "PATHS", "no picture was named"),
            (("half.png",), None, "half.png", "whole PNG or JPEG"),
            (("text.png",), None, "text.png", "is not a PNG, JPEG, BMP or WebP"),
            (("good.png", "half.png"), None, "half.png", "leave it out"),
        ],
    )
    def test_what_cannot_be_read_is_named_and_nothing_is_answered(self, arguments, stdin, named, reason):
        Path("empty").mkdir()
        Path("text.png").write_text("no picture")
        picture("good.png")
        broken("half.png")
        code, output, error = darkroom("classify", *arguments, stdin=stdin)
        assert (code, output) == (2, "") and f"{named}: " in error and reason in error and "->" in error

    def test_a_picture_sent_in_place_of_a_list_is_refused(self):
        code, output, error = darkroom("classify", "-", stdin=picture("a.png").read_bytes())
        assert (code, output) == (2, "") and "->" in error

    def test_no_path_at_all_is_refused(self):
        assert darkroom("classify")[0] == 2


class TestRestore:
    def restored(self, name, seed):
        return to_bytes(model_files.load(Path("models", name)).reconstruct(Batch.of(pixels(seed)[None, None], np.zeros(1)).images).numpy())[
            0, 0
        ]

    @pytest.mark.parametrize("name", ["ae", "vae"])
    def test_each_picture_comes_out_of_the_code_as_a_png_of_its_own(self, name):
        for number in range(3):
            picture(f"in/{number}.png", number)
        assert done("restore", "--model", name, "--out", "new/out", "in") == "3 pictures and pairs.png -> new/out\n"
        assert sorted(os.listdir("new/out")) == ["0.png", "1.png", "2.png", "pairs.png"]
        for number in range(3):
            assert np.abs(np.array(Image.open(f"new/out/{number}.png")).astype(int) - self.restored(name, number)).max() <= 1
        given = np.array(Image.open("new/out/pairs.png"))[:48:6, :48:6]
        assert (given == pixels(0)).all()

    def test_more_pictures_than_a_batch_all_come_out(self):
        for number in range(BATCH + 4):
            picture(f"many/{number:04d}.png", number)
        assert done("restore", "many").startswith(f"{BATCH + 4} pictures")
        assert len(os.listdir("restored")) == BATCH + 5

    def test_nothing_that_lies_there_is_overwritten_and_pictures_of_one_name_do_not_meet(self):
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

    def test_a_broken_picture_is_named_and_what_was_written_before_it_is_whole(self):
        for number in range(BATCH):
            picture(f"many/{number:04d}.png", number)
        broken("many/9999.png")
        code, output, error = darkroom("restore", "many")
        assert (code, output) == (2, "") and "many/9999.png: " in error and "leave it out" in error
        assert len(os.listdir("restored")) == BATCH and not hidden("restored")
        for path in Path("restored").iterdir():
            Image.open(path).load()

    def test_a_broken_picture_among_few_leaves_nothing(self):
        picture("a.png")
        assert darkroom("restore", "a.png", broken("half.png"))[0] == 2
        assert not Path("restored").exists()

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
        assert sorted(os.listdir()) == ["a.png", "copy", "models"]


class TestProcess:
    """The console script itself."""

    def start(self, *arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        code = "from pipeline.cli import main; main()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True, **pipes)

    def test_a_list_on_standard_input_is_answered(self):
        picture("größe.png", 1)
        process = self.start("classify", "-")
        output, error = process.communicate("größe.png\n", timeout=60)
        assert (process.returncode, error) == (0, "") and answers(output) == {"größe.png": expected(1)}

    def test_a_refusal_is_two_lines_on_standard_error_and_exit_code_2(self):
        process = self.start("classify", "nowhere.png")
        output, error = process.communicate(timeout=60)
        assert (process.returncode, output) == (2, "") and error == "error: nowhere.png: no such file or folder\n  -> check the path\n"

    @pytest.mark.parametrize(("arguments", "code"), [((), 2), (("--version",), 0), (("nonsense",), 2)], ids=["none", "version", "unknown"])
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
