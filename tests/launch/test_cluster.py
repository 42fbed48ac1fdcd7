"""Trainings, and a whole `darkroom repro`, on a Ray cluster that is started as in infra/ray/README.md."""

import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import requests

from pipeline.files import sha256
from tests.project import ROOT, TRAINING, Project
from tests.repository import CLEAN, create, shell

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

# The command in infra/ray/README.md, with its continuation lines.
SUBMIT = re.compile(r"^ray job submit (?:.*\\\n)*.*$", re.MULTILINE)
OTHER_WORK = """import ray, sys
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
actor = ray.remote(num_cpus=2)(type("Other", (), {"ready": lambda self: "it has the CPUs"})).remote()
print(ray.get(actor.ready.remote(), timeout=60), flush=True)
sys.stdin.read()
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextmanager
def head(folder: Path, *options: str) -> Iterator[dict[str, str]]:
    """Start a head node with two CPUs on loopback; yield the environment for it; kill it and its jobs."""
    port, token = free_port(), secrets.token_hex(32)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # or Ray takes the machine's outer address for 127.0.0.1
    kept = {key: value for key, value in os.environ.items() if not key.startswith(CLEAN)}
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--port",
        port,
        "--num-cpus",
        "2",
        "--temp-dir",
        str(folder),
    ]
    command += ["--node-ip-address", "127.0.0.1", "--disable-usage-stats", *options]
    try:
        started = subprocess.run(
            command, env=kept | own, capture_output=True, text=True, timeout=120, check=False
        )
        assert started.returncode == 0, started.stdout + started.stderr
        yield own | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        left = set()
        # Ray's processes have the folder on their command line, a job's have the token in their environment.
        for one in psutil.process_iter(["cmdline", "environ"]):
            if (
                str(folder) in " ".join(one.info["cmdline"] or [])
                or (one.info["environ"] or {}).get("RAY_AUTH_TOKEN") == token
            ):
                with suppress(psutil.NoSuchProcess):
                    left |= {one, *one.children(recursive=True)}
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        assert not psutil.wait_procs(left, timeout=30)[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with head(tmp_path_factory.mktemp("ray"), "--include-dashboard", "false") as environment:
        yield environment


def test_a_cluster_trains_the_same_model_and_stays_up(tmp_path, processed_digits, cluster):
    here, there = Project(tmp_path / "here", processed_digits), Project(tmp_path / "there", processed_digits)
    for project in (here, there):
        project.params["cnn"] = {**project.params["cnn"], "training": {**TRAINING, "num_steps": 20}}
        project.write()
    code, output = here.run("stages.train", "cnn", DARKROOM_THREADS="0")
    assert code == 0, output
    code, output = there.run("stages.train", "cnn", DARKROOM_THREADS="0", **cluster)
    assert code == 0, output
    assert f"cluster {cluster['RAY_ADDRESS']}" in output
    weights = [sha256(project.folder / "models/cnn/model.safetensors") for project in (here, there)]
    assert weights[0] == weights[1]  # one worker for the one machine, with all of its cores

    code, output = there.run("stages.train", "ae", DARKROOM_WORKERS="3", **cluster)
    assert (
        code == 2
        and "3 workers were requested, but the cluster has 2 CPUs" in output
        and len(output.splitlines()) <= 5
    )


def test_a_cluster_without_the_token_is_refused_with_a_remedy(tmp_path, processed_digits, cluster):
    project = Project(tmp_path / "project", processed_digits)
    code, output = project.run("stages.train", "cnn", **{**cluster, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert code == 1 and "RAY_AUTH_TOKEN" in output and "Traceback" not in output


@pytest.mark.nightly
def test_a_training_waits_while_another_one_has_the_cluster(tmp_path, processed_digits, cluster):
    first, second = (
        Project(tmp_path / "first", processed_digits),
        Project(tmp_path / "second", processed_digits),
    )
    first.params["cnn"] = {**first.params["cnn"], "training": {**TRAINING, "num_steps": 1500}}
    first.write()
    both = {**cluster, "DARKROOM_THREADS": "2"}
    has_it = first.start("stages.train", "cnn", **both)
    deadline = time.monotonic() + 90
    while not first.steps("cnn"):
        assert has_it.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    # Without waiting, the start of the workers would fail after four attempts of two seconds.
    waits = second.start("stages.train", "ae", **both, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="2")
    output, _ = has_it.communicate(timeout=120)
    assert has_it.returncode == 0, output
    assert waits.poll() is None and not second.steps("ae")
    output, _ = waits.communicate(timeout=120)
    assert waits.returncode == 0 and "0 of 2 CPUs are free" in output, output


@pytest.mark.nightly
def test_a_training_fails_with_a_remedy_when_other_jobs_keep_the_resources(
    tmp_path, processed_digits, cluster
):
    project = Project(tmp_path / "project", processed_digits)
    takes = [sys.executable, "-c", OTHER_WORK, cluster["RAY_ADDRESS"]]
    with subprocess.Popen(
        takes, env=project.environment(**cluster), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "it has the CPUs\n"
        code, output = project.run(
            "stages.train", "cnn", **cluster, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="1"
        )
        other.stdin.close()
    assert (
        code == 1
        and "error: train-cnn: other jobs use the resources of the cluster" in output
        and "Traceback" not in output
    ), output


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_the_whole_pipeline_runs_as_the_documented_job_and_only_with_the_token(tmp_path, tmp_path_factory):
    project, storage, port = create(tmp_path / "project"), tmp_path / "storage", free_port()
    (project / ".venv").symlink_to(sys.prefix)
    command = SUBMIT.search((ROOT / "infra/ray/README.md").read_text())[0].replace("\\\n", " ")
    paths = {"/shared/darkroom": str(project), "/shared/storage": str(storage)}
    for documented, actual in {"8265": port, **paths}.items():
        assert documented in command
        command = command.replace(documented, actual)
    dashboard = [
        "--include-dashboard",
        "true",
        "--dashboard-port",
        port,
        "--dashboard-agent-listen-port",
        free_port(),
    ]
    with head(tmp_path_factory.mktemp("ray"), *dashboard) as environment:
        token = environment["RAY_AUTH_TOKEN"]
        wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        for error, variables in (
            ("Missing authentication token", {}),
            ("Invalid authentication token", wrong),
        ):
            variables = {"HOME": str(tmp_path), **variables}  # a home folder without a token
            assert error in shell(tmp_path, *shlex.split(command), code=1, **variables)
        shell(tmp_path, *shlex.split(command), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
        rights = {"Authorization": f"Bearer {token}"}
        jobs = requests.get(f"http://127.0.0.1:{port}/api/jobs/", headers=rights, timeout=30).json()
        assert [job["status"] for job in jobs if job["type"] == "SUBMISSION"] == ["SUCCEEDED"]
    times = json.loads((project / "history/cnn/times.json").read_text())
    assert times["mode"] == f"cluster {environment['RAY_ADDRESS']}" and any((storage / "trainings").iterdir())
    for made in ("models/cnn/model.safetensors", "metrics/evaluation.json", "dvc.lock"):
        assert (project / made).is_file()
    assert "up to date" in shell(project, "python", "dvc", "status")
