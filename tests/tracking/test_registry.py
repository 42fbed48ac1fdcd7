"""A registered model loads anywhere without pickle and gives the results of the trained one."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.core import model_files
from pipeline.core.abilities import Ability
from pipeline.core.fields import DataSpec, Field
from pipeline.core.noise import Noise
from pipeline.data.images import decode
from pipeline.files import write_json
from pipeline.tracking import registry
from pipeline.tracking.pyfunc_model import PyfuncModel
from pipeline.tracking.runs import open_run
from tests.tracking.conftest import SMALL, SPEC, write_model

READER = """
import json, sys
import mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
images = list(np.load("images.npy"))
rows = pd.DataFrame({"count": [2, 3], "seed": [1, 2], "label": [3, -1]})
answers = {}
for name in ("cnn", "gan", "vae", "ae"):
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    if name in ("gan", "vae"):
        for key, params in (("drawn", {"form": "array"}), ("again", {"form": "array"}), ("png", None)):
            drawn = model.predict(rows, params=params)["image"]
            answers[f"{name}-{key}"] = np.stack([np.array(image) for image in drawn])
    if name != "gan":
        seen = model.predict(pd.DataFrame({"image": images}), params={"form": "array"})
        for key in seen.columns:
            answers[f"{name}-{key}"] = np.stack([np.array(value) for value in seen[key]])
np.savez("answers.npz", **answers)
import pipeline
print(json.dumps([pipeline.__file__]))
"""


def test_images_of_requests_are_made_square_as_for_the_training(tmp_path):
    folder = write_model(tmp_path / "cnn", "cnn")
    write_json(folder / "model.json", model_files.read_card(folder) | {"fit": "pad"})
    model = PyfuncModel()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    stream = io.BytesIO()
    Image.new("L", (8, 4), 255).save(stream, "PNG")
    pixels = model.decode(base64.b64encode(stream.getvalue()).decode())[0]
    assert pixels[:4].max() == pixels[12:].max() == 0 and pixels[4:12].min() == 1


def test_registered_models_give_the_results_of_their_tasks_in_a_new_process(
    environment, client, description, tmp_path
):
    folders = {name: write_model(tmp_path / "models" / name, name) for name in ("cnn", "gan", "vae", "ae")}
    with open_run(environment, description) as run:
        for name, folder in folders.items():
            assert run.register(folder, name) == "1"
    stored = list(Path(environment.artifacts).rglob("*"))  # a process that loads a model may add __pycache__
    assert not [
        path for path in stored if path.suffix in (".pkl", ".pt", ".pth") or path.name == "__pycache__"
    ]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    images = np.random.default_rng(0).random((3, 1, 16, 16), np.float32)
    np.save(elsewhere / "images.npy", images)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"
    }
    arguments = [
        sys.executable,
        "-P",
        "-W",
        "error::UserWarning:mlflow",
        "-c",
        READER,
        environment.tracking_uri,
    ]
    done = subprocess.run(arguments, cwd=elsewhere, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(environment.artifacts) in json.loads(done.stdout.split("\n")[0])[0]
    answers = np.load(elsewhere / "answers.npz")
    tasks = {name: model_files.load(folder) for name, folder in folders.items()}
    pixels = torch.from_numpy(images)
    shares = tasks["cnn"].classify(pixels).softmax(1)
    np.testing.assert_allclose(answers["cnn-probabilities"], shares, atol=1e-6)
    np.testing.assert_allclose(answers["cnn-probability"], shares.amax(1), atol=1e-6)
    assert answers["cnn-class"].tolist() == [str(best) for best in shares.argmax(1).tolist()]
    for name in ("vae", "ae"):
        restored = tasks[name].reconstruct(pixels)
        np.testing.assert_allclose(answers[f"{name}-image"], restored.clamp(0, 1), atol=1e-6)
        np.testing.assert_allclose(answers[f"{name}-code"], tasks[name].encode(pixels), atol=1e-5)
        np.testing.assert_allclose(
            answers[f"{name}-anomaly"], ((restored - pixels) ** 2).mean((1, 2, 3)), atol=1e-6
        )
    for name in ("gan", "vae"):
        drawn = [
            tasks[name].generate(torch.full((2,), 3), 2, Noise.whole(1, 2)),
            tasks[name].generate(None, 3, Noise.whole(2, 3)),
        ]
        np.testing.assert_allclose(answers[f"{name}-drawn"], torch.cat(drawn).clamp(0, 1), atol=1e-6)
        np.testing.assert_array_equal(answers[f"{name}-drawn"], answers[f"{name}-again"])
        for png, array in zip(answers[f"{name}-png"], answers[f"{name}-drawn"], strict=True):
            np.testing.assert_array_equal(
                decode(base64.b64decode(png), 1, 16), (array * 255).round().astype(np.uint8)
            )
    found = client().get_model_version_by_alias("gan", "champion")
    assert (
        found.run_id == run.id
        and found.tags["darkroom.fingerprint"] == "f" * 64
        and found.tags["darkroom.run"] == run.id
    )
    assert "adversarial" in found.description and "Limits" in found.description
    model = Path(environment.artifacts)
    assert str(Path(registry.__file__).parent) not in "".join(
        path.read_text() for path in model.rglob("MLmodel")
    )
    assert all("+" not in path.read_text() for path in model.rglob("requirements.txt"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that saves and loads the pyfunc model of a name."""
    import mlflow.pyfunc

    loaded = {}

    def load(name):
        if name not in loaded:
            folder = tmp_path_factory.mktemp(name)
            model = write_model(folder / "weights", name)
            registry._save(folder / "model", model, model_files.read_card(model), "", "")
            loaded[name] = mlflow.pyfunc.load_model(str(folder / "model"))
        return loaded[name]

    return load


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gan", {"count": 2, "label": 4}),
        ("gan", {"count": 2, "label": -2}),
        ("gan", {"count": 2, "label": "4"}),
        ("gan", {"count": 2, "label": "dog"}),
        ("gan", {"count": 2, "label": 1.5}),
        ("gan", {"count": 2, "label": True}),
        ("gan", {"count": 2, "label": [1]}),
        ("gan", {"count": 0}),
        ("gan", {"count": 1, "seed": -1}),
        ("gan", {"count": 10_001}),
        ("gan", {"seed": 1}),
        ("gan", {"count": "many"}),
        ("vae", {"count": 1, "image": "AAAA"}),
        ("vae", {"seed": 3}),
        ("cnn", {"image": "no base64!"}),
        ("cnn", {"image": "AAAA"}),
        ("cnn", {"image": [[[0.5]]]}),
        ("cnn", {"image": [[[2.0] * 16] * 16]}),
        ("cnn", {"image": [[[float("nan")] * 16] * 16]}),
        ("cnn", {"image": 3}),
        ("cnn", {"count": 1}),
    ],
)
def test_an_invalid_request_is_refused(saved, name, row):
    import mlflow

    with pytest.raises(mlflow.MlflowException) as refused:
        saved(name).predict(pd.DataFrame([row]))
    assert refused.value.get_http_status_code() == 400


def test_a_transformer_generates_or_completes_the_images_of_a_request(tmp_path):
    import mlflow.pyfunc

    settings = {"tokens": "pixels", "levels": 8, "width": 8, "depth": 1, "heads": 1}
    task = model_files.build("transformer", settings, SPEC, seed=0)
    model_files.write(task, tmp_path / "weights", {"class_names": ["0", "1", "2", "3"]})
    card = model_files.read_card(tmp_path / "weights")
    registry._save(tmp_path / "model", tmp_path / "weights", card, "", "")
    model, form = mlflow.pyfunc.load_model(str(tmp_path / "model")), {"form": "array"}
    image = np.random.default_rng(0).random((1, 16, 16), np.float32)
    rows = [
        {"image": image.tolist(), "seed": seed, "label": label} for seed, label in ((5, 2), (5, 2), (6, 2))
    ]
    answers = [np.array(each) for each in model.predict(pd.DataFrame(rows), params=form)["image"]]
    known = torch.zeros(1, 1, 16, 16)
    known[:, :, :8] = 1
    with torch.no_grad():
        given = torch.from_numpy(image)[None]
        expected = task.eval().complete(given, known, Noise.whole(5, 1), torch.tensor([2]))[0]
    np.testing.assert_allclose(answers[0], expected, atol=1e-6)
    np.testing.assert_allclose(answers[0][:, :8], image[:, :8], atol=1e-6)
    assert (answers[0] == answers[1]).all() and (answers[0] != answers[2]).any()
    assert len(model.predict(pd.DataFrame([{"count": 2, "seed": 0, "label": 1}]), params=form)) == 2


ANIMALS = ["cat", "dog", "3", "0"]


def animals(folder, name):
    """A saved and loaded model with the classes ``ANIMALS``."""
    import mlflow.pyfunc

    model_files.write(
        model_files.build(name, SMALL[name], SPEC, seed=0), folder / "weights", {"class_names": ANIMALS}
    )
    registry._save(folder / "model", folder / "weights", model_files.read_card(folder / "weights"), "", "")
    return mlflow.pyfunc.load_model(str(folder / "model"))


def test_a_label_is_a_class_name_or_number_and_the_result_has_both(tmp_path):
    model = animals(tmp_path, "gan")
    rows = [{"count": 1, "label": label} for label in ("dog", 1, "3", 3, -1)] + [{"count": 1}]
    answers = model.predict(pd.DataFrame(rows)).to_dict("records")
    assert [answer["label"] for answer in answers] == [1, 1, 2, 3, -1, -1]
    assert [answer["class"] for answer in answers] == ["dog", "dog", "3", "0", "", ""]
    assert answers[0]["image"] == answers[1]["image"] != answers[2]["image"]


def test_a_classifier_names_the_classes_in_the_order_of_their_probabilities(tmp_path):
    model = animals(tmp_path, "cnn")
    for answer in model.predict(pd.DataFrame({"image": [np.full((1, 16, 16), 0.5).tolist()] * 2})).to_dict(
        "records"
    ):
        assert list(answer["classes"]) == ANIMALS
        assert answer["class"] == ANIMALS[int(np.argmax(answer["probabilities"]))]
        assert answer["probability"] == pytest.approx(max(answer["probabilities"]))


def test_a_label_is_refused_by_a_model_that_generates_without_regard_to_classes(saved, monkeypatch):
    import mlflow

    model = saved("gan")
    inner = model.unwrap_python_model()
    assert "USES_LABELS" in inner.abilities
    monkeypatch.setattr(inner, "abilities", {"GENERATE"})
    with pytest.raises(mlflow.MlflowException, match="without regard to classes") as refused:
        model.predict(pd.DataFrame([{"count": 1, "label": 2}]))
    assert refused.value.get_http_status_code() == 400
    assert len(model.predict(pd.DataFrame([{"count": 2, "label": -1}]))) == 2


def test_an_image_of_another_size_and_format_is_converted(saved):
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (40, 60), (200, 10, 10)).save(file, format="JPEG")
    address = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    (answer,) = saved("cnn").predict(pd.DataFrame({"image": [address]})).to_dict("records")
    assert abs(sum(answer["probabilities"]) - 1) < 1e-5 and answer["class"] in "0123"


def test_the_same_weights_are_one_version_and_the_aliases_are_set(environment, client, description, tmp_path):
    first, second = write_model(tmp_path / "a", "cnn"), write_model(tmp_path / "b", "cnn", seed=1)
    versions = []
    for folder in (first, first, second):
        with open_run(environment, description) as run:
            versions.append(run.register(folder, "cnn"))
    assert versions == ["1", "1", "2"]
    assert len(client().search_model_versions("name = 'cnn'")) == 2
    assert client().get_registered_model("cnn").aliases == {"champion": 1, "challenger": 2}
    assert (
        client().get_model_version("cnn", "2").tags["darkroom.sha256"]
        == model_files.read_card(second)["sha256"]
    )


def test_a_planted_pickle_is_refused(tmp_path):
    import mlflow.pyfunc

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/canary",)

    class Innocent(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str]):
            return model_input

    mlflow.pyfunc.save_model(tmp_path / "model", python_model=Innocent(), pip_requirements=["mlflow"])
    (pickled,) = (tmp_path / "model").glob("*.pkl")
    pickled.write_bytes(__import__("pickle").dumps(Evil()))
    with pytest.raises(mlflow.MlflowException, match=r"(?i)pickle"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert not (tmp_path / "canary").exists()


def test_the_signature_follows_the_abilities_of_the_model():
    spec = DataSpec.labelled_images(1, 16, 4)
    names = lambda known: [column.name for column in registry._signature(frozenset(known), spec)[0].outputs]
    assert names({Ability.CLASSIFY}) == ["class", "probability", "classes", "probabilities"]
    assert names({Ability.RECONSTRUCT}) == ["image", "anomaly"]
    assert names({Ability.RECONSTRUCT, Ability.ENCODE}) == ["image", "code", "anomaly"]
    assert registry._signature(frozenset(), spec) == (None, None)


def test_a_segmentation_network_is_served_with_masks_as_png_or_numbers(tmp_path):
    import mlflow.pyfunc

    mask = Field("label_map", (16, 16), 3)
    spec = DataSpec({"image": Field("image", (1, 16, 16)), "mask": mask})
    task = model_files.build("unet", model_files.find("unet").Config(width=8, depth=1), spec, seed=0)
    names = ["background", "one", "two"]
    card = model_files.write(task, tmp_path / "models/unet", {"class_names": names})
    registry._save(tmp_path / "saved", tmp_path / "models/unet", card, "0" * 32, "m-0")
    model = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    image = np.random.default_rng(0).random((1, 16, 16), np.float32)
    rows = pd.DataFrame({"image": [image.tolist()]})
    expected = task.segment(torch.from_numpy(image)[None]).argmax(1)[0].numpy()
    answer = model.predict(rows, params={"form": "array"})
    np.testing.assert_array_equal(answer["mask"][0], expected)
    assert list(answer["classes"][0]) == names
    png = base64.b64decode(model.predict(rows)["mask"][0])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), expected)
    with pytest.raises(MlflowException, match="missing inputs"):
        model.predict(pd.DataFrame({"count": [1]}))
