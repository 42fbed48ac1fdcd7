"""A registered model is the trained one: loaded anywhere without pickle, the same numbers, one version for one set of weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import BadInput
from pipeline.models import store
from pipeline.noise import Noise
from pipeline.tracking import registry
from pipeline.tracking.runs import open_run
from tests.tracking.conftest import write_model

READER = """
import json, sys
import mlflow, numpy as np, pandas as pd, torch
mlflow.set_tracking_uri(sys.argv[1])
images = np.load("images.npy")
model = lambda name: mlflow.pyfunc.load_model(f"models:/{name}@champion")
rows = pd.DataFrame({"count": [2, 3], "seed": [1, 2], "label": [3, -1]})
gan = model("gan")
vae = model("vae")
np.savez("answers.npz", cnn=model("cnn").predict(images), ae=model("ae").predict(images), gan=gan.predict(rows), again=gan.predict(rows),
         vae=vae.predict(rows), vae_images=vae.unwrap_python_model().task.reconstruct(torch.from_numpy(images)))
import pipeline
print(json.dumps([pipeline.__file__]))
try:
    gan.predict(pd.DataFrame({"count": [2], "seed": [1], "label": [4]}))
except mlflow.MlflowException as error:
    print(error.error_code)
"""


def test_registered_models_answer_like_their_tasks_in_a_fresh_process(environment, client, description, tmp_path):
    folders = {name: write_model(tmp_path / "models" / name, name) for name in ("cnn", "gan", "vae", "ae")}
    with open_run(environment, description) as run:
        for name, folder in folders.items():
            assert run.register(folder, name, "reconstruct" if name == "ae" else "") == "1"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    images = np.random.default_rng(0).random((3, 1, 16, 16), np.float32)
    np.save(elsewhere / "images.npy", images)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    arguments = [sys.executable, "-P", "-W", "error::UserWarning:mlflow", "-c", READER, environment.tracking_uri]
    done = subprocess.run(arguments, cwd=elsewhere, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, refusal = done.stdout.split("\n")[:2]
    assert str(environment.artifacts) in json.loads(where)[0]
    assert refusal == "INVALID_PARAMETER_VALUE"
    answers = np.load(elsewhere / "answers.npz")
    tasks = {name: store.load(folder) for name, folder in folders.items()}
    pixels = torch.from_numpy(images)
    assert answers["cnn"].dtype == np.float32
    np.testing.assert_allclose(answers["cnn"], tasks["cnn"].classify(pixels).softmax(1), atol=1e-6)
    np.testing.assert_allclose(answers["ae"], tasks["ae"].reconstruct(pixels), atol=1e-6)
    np.testing.assert_allclose(answers["vae_images"], tasks["vae"].reconstruct(pixels), atol=1e-6)
    assert answers["gan"].shape == (5, 1, 16, 16) and answers["gan"].dtype == np.uint8
    np.testing.assert_array_equal(answers["gan"], answers["again"])
    for name in ("gan", "vae"):
        drawn = [tasks[name].generate(torch.full((2,), 3), 2, Noise.whole(1, 2)), tasks[name].generate(None, 3, Noise.whole(2, 3))]
        expected = (torch.cat(drawn) * 255).round().byte().numpy()
        assert np.abs(answers[name].astype(int) - expected).max() <= 1
    found = client().get_model_version_by_alias("gan", "challenger")
    assert found.run_id == run.id and found.tags["darkroom.fingerprint"] == "f" * 64 and found.tags["darkroom.run"] == run.id
    model = Path(environment.artifacts)
    assert not [path for path in model.rglob("*") if path.suffix in (".pkl", ".pt", ".pth") or path.name == "__pycache__"]
    assert str(Path(registry.__file__).parent) not in "".join(path.read_text() for path in model.rglob("MLmodel"))
    assert all("+" not in path.read_text() for path in model.rglob("requirements.txt"))


def test_the_same_weights_are_one_version_and_the_aliases_follow(environment, client, description, tmp_path):
    first, second = write_model(tmp_path / "a", "cnn"), write_model(tmp_path / "b", "cnn", seed=1)
    versions = []
    for folder in (first, first, second):
        with open_run(environment, description) as run:
            versions.append(run.register(folder, "cnn"))
    assert versions == ["1", "1", "2"]
    assert len(client().search_model_versions("name = 'cnn'")) == 2
    assert client().get_registered_model("cnn").aliases == {"champion": 1, "challenger": 2}
    assert client().get_model_version("cnn", "2").tags["darkroom.sha256"] == store.read_card(second)["sha256"]


def test_an_ability_that_the_model_lacks_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot generate"):
        registry.check(write_model(tmp_path / "cnn", "cnn"), "generate")


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
