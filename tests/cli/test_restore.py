"""`darkroom restore` on models with initial weights, and models that are damaged."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cli.inference import BATCH
from pipeline.core import model_files
from pipeline.core.image_grid import to_bytes
from pipeline.core.noise import Noise
from pipeline.core.task import Batch
from pipeline.layers.damage import upper_half
from tests.cli.pictures import GREY, NAMES, broken, hidden, mixed, picture, pixels
from tests.command import darkroom, done


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

    def test_a_transformer_completes_pictures_in_different_ways(self, place):
        settings = {"tokens": "pixels", "levels": 8, "width": 8, "depth": 1, "heads": 1}
        task = model_files.build("transformer", settings, GREY, seed=1)
        model_files.write(task, place / "own/transformer", {"class_names": NAMES})
        for number in range(2):
            picture(f"in/{number}.png", number)
        given = ("restore", "--models", "own", "--task", "complete", "--count", "3", "--seed", "5")
        assert done(*given, "in") == "2 pictures and pairs.png -> restored\n"
        names = [f"{number}{answer}.png" for number in range(2) for answer in ("", "-1", "-2")]
        assert set(os.listdir("restored")) == {*names, "pairs.png"}
        answers = [np.array(Image.open(f"restored/{name}")) for name in names]
        for number, answer in enumerate(answers):
            assert (answer[:4] == pixels(number // 3)[:4]).all()  # the upper half is kept
        assert len({answer.tobytes() for answer in answers}) == 6
        done(*given, "--out", "again", "in")
        assert Path("again/1-2.png").read_bytes() == Path("restored/1-2.png").read_bytes()

    def test_a_completion_depends_on_no_other_picture(self, place):
        settings = {"tokens": "pixels", "levels": 8, "width": 8, "depth": 1, "heads": 1}
        task = model_files.build("transformer", settings, GREY, seed=1).eval()
        model_files.write(task, place / "own/transformer", {"class_names": NAMES})
        for number in range(2):
            picture(f"in/{number}.png", number)
        given = ("restore", "--models", "own", "--task", "complete", "--seed", "5")
        done(*given, "in")
        done(*given, "--out", "alone", "in/1.png")
        assert Path("alone/1.png").read_bytes() == Path("restored/1.png").read_bytes()
        image = torch.from_numpy(pixels(1)[None, None] / np.float32(255))
        with torch.inference_mode():
            served = task.complete(image, upper_half(image), Noise.whole(5, 1))
        assert (np.array(Image.open("restored/1.png")) == to_bytes(served.numpy())[0, 0]).all()

    def test_only_a_completion_has_several_answers(self):
        code, _, error = darkroom("restore", "--count", "2", picture("a.png"))
        assert code == 2 and "use --task complete" in error
        code, _, error = darkroom("restore", "--task", "complete", "--model", "ae", "a.png")
        assert code == 2 and "ae: this model does not complete" in error and "use transformer" in error

    def test_a_file_is_no_folder_to_write_to(self):
        code, _, error = darkroom("restore", "--out", picture("a.png"), "a.png")
        assert code == 2 and "a.png" in error


class TestTask:
    """Restorations for which a model was trained: a U-Net with its initial weights."""

    @pytest.fixture(autouse=True)
    def trained(self, place):
        config = {"architecture": "unet", "width": 8, "objectives": ["inpaint", "upscale"]}
        task = model_files.build("ae", config, GREY, seed=1).requires_grad_(False)
        model_files.write(task, place / "own/ae", {"class_names": NAMES})
        return task

    def test_in_painting_changes_the_pixels_under_the_mask_alone(self):
        for number in range(2):
            picture(f"in/{number}.png", number)
        missing = np.zeros((8, 8), np.uint8)
        missing[2:5, 3:7] = 255
        Image.fromarray(missing).save("mask.png")
        done("restore", "--models", "own", "--task", "inpaint", "--mask", "mask.png", "in")
        for number in range(2):
            after = np.array(Image.open(f"restored/{number}.png")).astype(int)
            changed = after != pixels(number)
            assert not changed[missing == 0].any() and changed[missing > 0].any()

    def test_the_noise_of_a_compressed_mask_paints_nothing(self):
        picture("in/a.png", 0)
        missing = np.zeros((8, 8), np.uint8)
        missing[2:5, 3:7] = 255
        Image.fromarray(missing).save("mask.jpg", quality=50)
        assert np.array(Image.open("mask.jpg"))[missing == 0].any()
        done("restore", "--models", "own", "--task", "inpaint", "--mask", "mask.jpg", "in")
        changed = np.array(Image.open("restored/a.png")).astype(int) != pixels(0)
        assert not changed[missing == 0].any() and changed[missing > 0].any()

    def test_a_mask_of_other_proportions_is_refused(self):
        picture("a.png", 0)
        for size, code in (((16, 8), 2), ((8, 12), 2), ((16, 16), 0)):
            Image.new("L", size, 255).save("mask.png")
            given = ("restore", "--models", "own", "--task", "inpaint", "--mask", "mask.png", "a.png")
            found, _, error = darkroom(*given)
            assert found == code and ("other proportions" in error) == bool(code)
            assert Path("restored").exists() == (code == 0)

    def test_upscaling_doubles_the_resolution_of_a_small_picture(self, trained):
        Image.fromarray(pixels(0, size=4)).save("small.png")
        done("restore", "--models", "own", "--task", "upscale", "small.png")
        given = torch.from_numpy(pixels(0, size=4).repeat(2, 0).repeat(2, 1)[None, None] / np.float32(255))
        expected = to_bytes(trained.reconstruct(given).numpy())[0, 0].astype(int)
        assert np.abs(np.array(Image.open("restored/small.png")).astype(int) - expected).max() <= 1

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (["--models", "own", "--task", "denoise"], "was not trained to denoise"),
            (["--task", "upscale"], "was not trained to upscale"),
            (["--models", "own", "--task", "inpaint"], "--mask belong together"),
            (["--models", "own", "--task", "upscale", "--mask", "a.png"], "--mask belong together"),
            (["--models", "own", "--task", "inpaint", "--mask", "none.png"], "none.png"),
        ],
    )
    def test_what_cannot_be_done_is_refused(self, options, text):
        picture("a.png")
        code, output, error = darkroom("restore", *options, "a.png")
        assert (code, output) == (2, "") and text in error and not Path("restored").exists()


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
