"""`mlflow models serve` serves each model over HTTP: images or predictions."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from pipeline.core import model_files
from pipeline.core.noise import Noise
from pipeline.data.images import decode
from pipeline.tracking.runs import open_run
from tests.tracking.conftest import write_model

pytestmark = pytest.mark.slow
NAMES = ("cnn", "gan", "vae", "ae")
SERVED = [("cnn",), pytest.param(NAMES, marks=pytest.mark.nightly)]
LIMIT_SECONDS = 180


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(params=SERVED, ids="-".join)
def servers(request, environment, description, tmp_path):
    """The address of each registered model's server and its task, by name."""
    folders = {name: write_model(tmp_path / "models" / name, name) for name in request.param}
    with open_run(environment, description) as run:
        for name, folder in folders.items():
            run.register(folder, name)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    clean |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": environment.tracking_uri,
    }
    clean["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    ports = {name: free_port() for name in request.param}
    running = []
    try:
        for name, port in ports.items():
            command = [
                "mlflow",
                "models",
                "serve",
                "-m",
                f"models:/{name}@champion",
                "--env-manager",
                "local",
                "-h",
                "127.0.0.1",
            ]
            with open(tmp_path / f"{name}.log", "wb") as log:
                options = {
                    "cwd": tmp_path,
                    "env": clean,
                    "stdout": log,
                    "stderr": log,
                    "start_new_session": True,
                }
                running.append(subprocess.Popen([*command, "-p", str(port), "-w", "1"], **options))
        deadline = time.monotonic() + LIMIT_SECONDS
        for name, port in ports.items():
            while not answers(port):
                assert time.monotonic() < deadline, (tmp_path / f"{name}.log").read_text()[-2000:]
                time.sleep(0.2)
        yield (
            {name: f"http://127.0.0.1:{port}/invocations" for name, port in ports.items()},
            {n: model_files.load(f) for n, f in folders.items()},
        )
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            process.wait(timeout=60)


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok
    except requests.RequestException:
        return False


def post(url: str, rows: list[dict], status: int = 200, **more):
    answer = requests.post(url, json={"dataframe_records": rows, **more}, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()["predictions"] if status == 200 else answer.text


def png(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_each_model_answers_requests(servers):
    urls, tasks = servers
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16), dtype=np.uint8)
    pixels = torch.from_numpy(image).float()[None] / 255
    sent = [{"image": png(image)}, {"image": (image / 255).tolist()}]

    shares = tasks["cnn"].classify(pixels).softmax(1)[0]
    for answer in post(urls["cnn"], sent):
        assert answer["class"] == str(int(shares.argmax())) and answer["classes"] == ["0", "1", "2", "3"]
        np.testing.assert_allclose(answer["probabilities"], shares, atol=1e-5)

    for name in urls.keys() & {"gan", "vae"}:
        drawn = tasks[name].generate(torch.full((2,), 3), 2, Noise.whole(7, 2))
        request = [{"count": 2, "seed": 7, "label": "3"}]
        assert post(urls[name], request) == post(urls[name], [{"count": 2, "seed": 7, "label": 3}])
        for answer, expected in zip(post(urls[name], request), drawn, strict=True):
            made = decode(base64.b64decode(answer["image"]), 1, 16).astype(int)
            assert np.abs(made - (expected * 255).round().numpy()).max() <= 1 and answer["label"] == 3
        arrays = post(urls[name], request, params={"form": "array"})
        np.testing.assert_allclose([answer["image"] for answer in arrays], drawn.clamp(0, 1), atol=1e-5)

    for name in urls.keys() & {"vae", "ae"}:
        restored = tasks[name].reconstruct(pixels)
        for answer in post(urls[name], sent):
            made = decode(base64.b64decode(answer["image"]), 1, 16).astype(int)
            assert np.abs(made - (restored[0].clamp(0, 1) * 255).round().numpy()).max() <= 1
            np.testing.assert_allclose(answer["code"], tasks[name].encode(pixels)[0], atol=1e-4)
            assert answer["anomaly"] == pytest.approx(float((restored - pixels).square().mean()), abs=1e-6)

    if "gan" in urls:
        assert "count" in post(urls["gan"], [{"image": png(image)}], 400)
        assert "label is 0 to 3" in post(urls["gan"], [{"count": 1, "label": 9}], 400)
        assert "class name (0, 1, 2, 3)" in post(urls["gan"], [{"count": 1, "label": "dog"}], 400)
    assert "not base64 of a complete image" in post(urls["cnn"], [{"image": png(image)[:40]}], 400)
