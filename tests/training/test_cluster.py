"""A training on a Ray cluster that was started by hand, as infra/README.md says."""

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.files import sha256
from tests.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture
def cluster(tmp_path_factory):
    """The environment that reaches a head node with two CPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("ray")
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "start", "--head", "--port", str(port), "--num-cpus", "2", "--temp-dir", str(folder), "--include-dashboard", "false"]
    command += ["--node-ip-address", "127.0.0.1", "--disable-usage-stats"]
    started = subprocess.run(command, env=kept | own, capture_output=True, text=True, timeout=120, check=False)
    assert started.returncode == 0, started.stdout + started.stderr
    yield own | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    for one in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(one.info["cmdline"] or []):
            one.kill()


def test_a_cluster_trains_the_same_model_and_stays_up(tmp_path, processed_digits, cluster):
    here, there = Project(tmp_path / "here", processed_digits), Project(tmp_path / "there", processed_digits)
    code, output = here.run("stages.train", "cnn")
    assert code == 0, output
    code, output = there.run("stages.train", "cnn", **cluster)
    assert code == 0, output
    assert f"cluster {cluster['RAY_ADDRESS']}" in output
    weights = [sha256(project.folder / "models/cnn/model.safetensors") for project in (here, there)]
    assert weights[0] == weights[1]  # one worker for the one machine, with all of its cores

    code, output = there.run("stages.train", "ae", DARKROOM_WORKERS="3", **cluster)
    assert code == 2 and "3 workers were asked for, the cluster has 2 CPUs" in output and len(output.splitlines()) <= 5


def test_a_cluster_without_the_token_is_refused_with_a_remedy(tmp_path, processed_digits, cluster):
    project = Project(tmp_path / "project", processed_digits)
    code, output = project.run("stages.train", "cnn", **{**cluster, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert code == 1 and "RAY_AUTH_TOKEN" in output and "Traceback" not in output
