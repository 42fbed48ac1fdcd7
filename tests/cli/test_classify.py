"""`darkroom classify` on a model with initial weights."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli.inference import BATCH
from pipeline.core import model_files
from tests.cli.pictures import NAMES, answers, broken, expected, mixed, picture, pixels
from tests.command import darkroom, done


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
        assert (
            second.startswith("error: many/9999.png: ") and "is not an image of a supported format" in second
        )
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
