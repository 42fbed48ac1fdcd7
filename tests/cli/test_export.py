"""`darkroom export`: ONNX files, run by ONNX Runtime."""

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cli import onnx_export
from pipeline.core import model_files
from pipeline.core.fields import DataSpec
from pipeline.core.noise import Noise
from tests.arrays import batch_of
from tests.cli.pictures import GREY, NAMES
from tests.command import darkroom, done

REASON = "needs the extra onnx: pip install 'darkroom[onnx]'"
pytest.importorskip("onnxscript", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def run(file, **inputs):
    """The output of the model in ``file``, the names and types of its inputs, and its metadata."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: values.numpy() for name, values in inputs.items()})
    described = {given.name: (given.type, given.shape[1:]) for given in session.get_inputs()}
    return output, described, session.get_modelmeta().custom_metadata_map


def same(output, expected):
    return output.shape == expected.shape and np.abs(output - expected.numpy()).max() < 1e-5


def test_a_classifier_gives_the_probabilities_of_any_number_of_images():
    printed = done("export", "cnn", "--onnx", "new/cnn.onnx")
    assert printed.startswith(
        "cnn, classify -> new/cnn.onnx\nONNX Runtime gives the same answers for 16 random"
    )
    task = model_files.load(Path("models/cnn"))
    output, inputs, metadata = run("new/cnn.onnx", images=IMAGES)
    assert inputs == {"images": ("tensor(float)", [1, 8, 8])}
    assert same(output, task.classify(IMAGES).softmax(1))
    assert json.loads(metadata["class_names"]) == NAMES and metadata["name"] == "cnn"
    assert metadata["sha256"] == model_files.read_card(Path("models/cnn"))["sha256"]


@pytest.mark.parametrize(
    ("name", "drawn", "size"), [("gan", "latent", 8), ("vae", "latent", 4), ("ae", "code", 4)]
)
def test_a_generator_is_a_function_of_labels_and_random_numbers(name, drawn, size):
    printed = done("export", name, "--onnx", "g.onnx")
    assert f"{name}, generate -> g.onnx" in printed and ("--what reconstruct" in printed) == (name != "gan")
    noise, labels = Noise.whole(5, 7, "generate"), torch.tensor([3, 1, 4, 1, 5, 9, 2])
    task = model_files.load(Path("models", name))
    output, inputs, _ = run("g.onnx", labels=labels, **{drawn: noise.normal(drawn, size)})
    assert inputs == {"labels": ("tensor(int64)", []), drawn: ("tensor(float)", [size])}
    assert same(output, task.generate(labels, 7, noise))


@pytest.mark.parametrize(
    ("conditional", "num_classes"), [(False, 10), pytest.param(True, 1, marks=pytest.mark.nightly)]
)
def test_a_transformer_that_does_not_use_labels_is_a_function_of_random_numbers(
    place, conditional, num_classes
):
    settings = {
        "tokens": "pixels",
        "levels": 3,
        "width": 8,
        "depth": 1,
        "heads": 1,
        "conditional": conditional,
    }
    task = model_files.build(
        "transformer", settings, DataSpec.labelled_images(1, 2, num_classes), seed=1
    ).eval()
    model_files.write(task, place / "own/transformer", {"class_names": NAMES[:num_classes]})
    done("export", "transformer", "--models", "own", "--onnx", "t.onnx")
    chances = Noise.whole(5, 7, "generate")
    output, inputs, _ = run("t.onnx", token=chances.uniform("token", 4))
    with torch.no_grad():
        expected = task.generate(torch.zeros(7, dtype=torch.int64), 7, chances)
    assert list(inputs) == ["token"] and same(output, expected)


@pytest.mark.parametrize("name", ["ae", "vae"])
def test_a_mixture_also_needs_the_choice_of_its_component(name, place):
    config = {"prior": "mixture", "width": 8, ("code_size" if name == "ae" else "latent_size"): 4}
    task = model_files.build(name, config, GREY, seed=1).requires_grad_(False)
    images = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    task.on_train_end([batch_of(images, torch.arange(400) % 10)])
    model_files.write(task.eval(), place / "own" / name, {"class_names": NAMES})
    done("export", name, "--models", "own", "--onnx", "m.onnx", "--what", "generate")
    noise, labels = Noise.whole(5, 7, "generate"), torch.tensor([3, 1, 4, 1, 5, 9, 2])
    drawn = {"component": noise.uniform("component")}
    drawn |= {kind: noise.normal(kind, 4) for kind in ["code" if name == "ae" else "latent"]}
    assert same(run("m.onnx", labels=labels, **drawn)[0], task.generate(labels, 7, noise))


@pytest.mark.parametrize("name", ["ae", "vae"])
def test_an_autoencoder_reconstructs(name):
    done("export", name, "--onnx", "r.onnx", "--what", "reconstruct")
    output, inputs, _ = run("r.onnx", images=IMAGES)
    assert inputs == {"images": ("tensor(float)", [1, 8, 8])}
    assert same(output, model_files.load(Path("models", name)).reconstruct(IMAGES))


def test_the_check_uses_the_test_pictures_of_the_project(processed_digits, place):
    (place / "data/processed").mkdir(parents=True)
    (place / "data/processed/images").symlink_to(processed_digits)
    assert "for 16 test pictures, within" in done("export", "cnn", "--onnx", "cnn.onnx")


def test_a_file_whose_answers_differ_is_refused_and_the_old_one_kept(monkeypatch):
    Path("cnn.onnx").write_text("old")

    class Wrong(onnxruntime.InferenceSession):
        def run(self, names, inputs):
            return [super().run(names, inputs)[0] + 0.01]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    code, output, error = darkroom("export", "cnn", "--onnx", "cnn.onnx")
    assert (code, output) == (1, "") and "answers differ by up to 0.01" in error
    assert Path("cnn.onnx").read_text() == "old" and not list(Path().glob(".cnn*"))


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_without_the_packages_the_extra_is_named(monkeypatch, package):
    whole = builtins.__import__

    def without(name, *more):
        if name == package:
            raise ImportError(name=name)
        return whole(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, error = darkroom("export", "cnn", "--onnx", "cnn.onnx")
    assert code == 2 and package in error and "pip install 'darkroom[onnx]'" in error
    assert not Path("cnn.onnx").exists()


@pytest.mark.parametrize(("name", "what"), [("gan", "reconstruct"), ("gan", "classify"), ("cnn", "generate")])
def test_what_a_model_cannot_is_refused(name, what):
    code, _, error = darkroom("export", name, "--onnx", "x.onnx", "--what", what)
    assert code == 2 and f"this model does not {what}" in error and not Path("x.onnx").exists()


def test_given_random_numbers_take_the_place_of_drawn_ones():
    noise = onnx_export.GivenNoise.whole(1, 4, "generate")
    drawn = noise.normal("latent", 3)
    assert torch.equal(drawn, Noise.whole(1, 4, "generate").normal("latent", 3))
    assert noise.drawn.keys() == {"latent"} and noise.at("other").normal("latent", 3) is drawn
