"""`darkroom explain` on models with initial weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core import model_files
from pipeline.core.task import Batch
from pipeline.evaluation import explanation
from tests.cli.pictures import GREY, NAMES, broken, expected, mixed, picture, pixels
from tests.command import darkroom, done

SIDE, GAP = 64, 4  # of a picture in the sheet, and between two of them


def cells(path, columns):
    """The pictures in the sheet, (rows, columns, SIDE, SIDE, 3)."""
    sheet = np.asarray(Image.open(path).convert("RGB"))[24:]
    rows, step = len(sheet) // (SIDE + GAP), SIDE + GAP
    whole = sheet[: rows * step, -columns * step :].reshape(rows, step, columns, step, 3)
    return whole.transpose(0, 2, 1, 3, 4)[:, :, :SIDE, :SIDE]


def test_each_picture_gets_a_row_with_a_map_of_its_class_for_each_method():
    for number in range(2):
        picture(f"in/{number}.png", number)
    lines = done("explain", "in", "--out", "new/maps.png").splitlines()
    for number in range(2):
        path, answer = lines[number].split("\t")
        name, probability = answer.split()
        assert path == f"in/{number}.png" and (name, float(probability)) == expected(number)
    assert [line.split(",")[0] for line in lines[2:5]] == list(explanation.METHODS.values())
    assert "network.convolutions, 4 x 4 values" in lines[3]
    assert all("rank correlation" in line and "SSIM" in line for line in lines[2:5])
    assert lines[5] == "2 pictures and their maps -> new/maps.png"
    images = Batch.load({"image": np.stack([pixels(0), pixels(1)])[:, None]}, GREY).images
    task = model_files.load(Path("models/cnn"))
    drawn = explanation.sheet(
        explanation.Explainer(task), images, task.classify(images).argmax(1), list(explanation.METHODS)
    )
    found = cells("new/maps.png", 4)[:2, :, ::8, ::8] / 255
    assert np.abs(found - drawn.permute(0, 1, 3, 4, 2).numpy()).max() < 0.003


def test_methods_and_the_class_can_be_chosen():
    picture("a.png", 1)
    chosen = ("--method", "occlusion", "--method", "gradients")
    first = done("explain", "a.png", *chosen, "--label", NAMES[2], "--out", "one.png").splitlines()
    assert first[0].startswith(f"a.png\t{NAMES[2]} ") and len(first) == 4
    assert first[1].startswith("Occlusion") and first[2].startswith("Integrated Gradients")
    done("explain", "a.png", *chosen, "--label", NAMES[3], "--out", "two.png")
    one, two = cells("one.png", 3), cells("two.png", 3)
    assert (one[:, 0] == two[:, 0]).all() and (one[:, 1] != two[:, 1]).any()


def test_coloured_pictures_are_explained_by_a_model_in_another_folder(place):
    (place / "elsewhere").symlink_to(place / "models")
    picture("a.png", 1)
    output = done("explain", "a.png", "--model", "colour", "--models", "elsewhere", "--method", "grad-cam")
    assert "Grad-CAM" in output and Path("explained.png").is_file()


def test_the_same_command_gives_the_same_sheet_and_the_seed_changes_the_check_only():
    picture("a.png", 1)
    outputs = [done("explain", "a.png", "--seed", seed, "--out", f"{n}.png") for n, seed in enumerate("001")]
    outputs = [output.rpartition("->")[0] for output in outputs]
    assert outputs[0] == outputs[1] != outputs[2]
    assert len({Path(f"{n}.png").read_bytes() for n in range(3)}) == 1


def test_a_broken_picture_is_reported_and_the_others_are_explained():
    picture("in/a.png", 1)
    broken("in/b.png")
    code, output, error, _ = mixed("explain", "in")
    assert code == 2 and "1 pictures and their maps" in output and "b.png" in error
    broken("only/b.png")
    code, _, _, error = mixed("explain", "only", "--out", "none.png")
    assert code == 2 and "1 picture could not be read" in error and not Path("none.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "gan"), "does not classify"),
        (("--label", "ten"), "no such class"),
        (("--method", "grad-cam", "--model", "flat"), "flat has no gradients, or no layer"),
    ],
)
def test_what_cannot_be_explained_is_refused(arguments, message, monkeypatch):
    if "flat" in arguments:
        task = model_files.load(Path("models/cnn"))
        monkeypatch.setattr(task, "classify", lambda images: torch.zeros(len(images), 10))
        monkeypatch.setattr(model_files, "load", lambda folder: task)
        monkeypatch.setattr(model_files, "read_card", lambda folder: {"class_names": NAMES})
        Path("flat").mkdir()
        arguments = (*arguments, "--models", ".")
    picture("a.png")
    code, _, error = darkroom("explain", "a.png", *arguments)
    assert code == 2 and message in error and not Path("explained.png").exists()


def test_a_sheet_without_a_suffix_is_a_png():
    picture("a.png")
    code, _, error = darkroom("explain", "a.png", "--method", "occlusion", "--out", "maps")
    assert code == 0 and Path("maps").read_bytes().startswith(b"\x89PNG"), error


def test_more_pictures_than_a_sheet_holds_are_refused():
    for number in range(101):
        picture(f"in/{number}.png", number)
    code, _, error = darkroom("explain", "in")
    assert code == 2 and "more than 100 pictures" in error and not Path("explained.png").exists()
