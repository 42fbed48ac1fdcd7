"""A registered forecaster: a clip in, frames out."""

import base64

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from pipeline.core import model_files
from pipeline.core.fields import DataSpec, Field
from pipeline.data.images import decode
from pipeline.models.rcnn.settings import RcnnConfig
from pipeline.tracking.runs import open_run

CLIPS = DataSpec({"clip": Field("clip", (6, 1, 8, 8))})


@pytest.fixture
def served(environment, client, description, tmp_path, monkeypatch):
    """The registered model as MLflow loads it, and its task."""
    import mlflow

    task = model_files.build("rcnn", RcnnConfig(width=4), CLIPS, seed=1)
    model_files.write(task, tmp_path / "models/rcnn", {"fingerprint": "f" * 64, "class_names": []})
    with open_run(environment, description) as run:
        run.register(tmp_path / "models/rcnn", "rcnn")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    location = client().get_model_version_by_alias("rcnn", "champion").source
    return mlflow.pyfunc.load_model(location), task.eval()


def test_the_next_frames_of_a_clip_come_as_numbers_or_as_png_files(served):
    model, task = served
    clip = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    rows = pd.DataFrame({"clip": [clip.tolist(), clip[::-1].tolist()]})
    with torch.no_grad():
        last = [torch.from_numpy(each[-3:].copy())[None] for each in (clip, clip[::-1])]  # of 4 frames
        expected = [task.forecast(frames, 3)[0] for frames in last]
    found = model.predict(rows, params={"form": "array"})["image"]
    np.testing.assert_allclose(np.stack([np.array(image) for image in found]), torch.cat(expected), atol=1e-5)
    files = model.predict(rows)["image"]
    pixels = np.stack([decode(base64.b64decode(file), 1, 8) for file in files])
    assert np.abs(pixels / 255 - torch.cat(expected).numpy()).max() <= 0.6 / 255


@pytest.mark.parametrize(
    "clip",
    [
        [],
        "text",
        np.zeros((1, 8, 8)).tolist(),
        np.zeros((2, 1, 8, 4)).tolist(),
        np.full((2, 1, 8, 8), 1.5).tolist(),
    ],
)
def test_what_is_no_clip_is_refused(served, clip):
    with pytest.raises(MlflowException, match="numbers in"):
        served[0].predict(pd.DataFrame({"clip": [clip]}))


def test_a_forecaster_takes_neither_images_nor_counts(served):
    for row in ({"image": np.zeros((1, 8, 8)).tolist()}, {"count": 2}):
        with pytest.raises(MlflowException):
            served[0].predict(pd.DataFrame({name: [value] for name, value in row.items()}))
