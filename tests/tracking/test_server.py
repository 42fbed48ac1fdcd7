"""The team's server: passwords, PostgreSQL, S3. Trainings are tracked as in a local database."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from pipeline.core import model_files
from pipeline.tracking import lineage, runs
from pipeline.tracking.runs import Description, open_run
from tests.tracking.conftest import ROOT, child, write_lines, write_model, write_picture

ADMIN, USERS, BUCKET = (
    ("admin", "correct-horse-battery"),
    {"alice": "alice-and-her-secret", "bob": "bob-and-his-secret-too"},
    "darkroom",
)
CLOSED = [
    "",
    "version",
    "graphql",
    "metrics",
    "signup",
    "docs",
    "api/2.0/mlflow/experiments/search",
    "ajax-api/2.0/mlflow/users/current",
]
CLOSED += [
    "api/2.0/mlflow/users/list",
    "api/2.0/mlflow-artifacts/artifacts",
    "get-artifact?path=a",
    "v1/traces",
    "ajax-api/3.0/jobs/1",
]
ENDS = [pytest.param(signal.SIGTERM, id="terminated"), pytest.param(signal.SIGKILL, id="killed")]
READER = "import mlflow, pandas as pd; model = mlflow.pyfunc.load_model('models:/gan@champion')\n"
READER += "print(len(model.predict(pd.DataFrame({'count': [3], 'seed': [1], 'label': [-1]}))))"
INSTALLED = shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def start(folder: Path, password: str = ADMIN[1], **more: str) -> tuple[subprocess.Popen, str]:
    """Run infra/mlflow/local.py: the process and its address, empty if it refuses to start."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_TRACKING", "MLFLOW_ARTIFACTS", "AWS_"))
    }
    command = [sys.executable, str(ROOT / "infra/mlflow/local.py"), "--port", "0", "--folder", str(folder)]
    kept["MLFLOW_AUTH_ADMIN_PASSWORD"] = password
    process = subprocess.Popen(
        command, env={**kept, **more}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output = ""
    while "# ready" not in output and (line := process.stdout.readline()):  # it has its own time limit
        output += line
    return process, match[1] if (match := re.search(r"URI=(\S+)", output)) else ""


@pytest.fixture(scope="module")
def base():
    """A folder that PostgreSQL's user can read; those of pytest are private."""
    with tempfile.TemporaryDirectory(prefix="darkroom-") as folder:
        os.chmod(folder, 0o711)
        yield Path(folder)


def listening(process: subprocess.Popen) -> tuple[list[psutil.Process], set[str]]:
    """A server's processes, and the addresses on which they listen."""
    owned = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    sockets = [at for one in owned for at in one.net_connections("inet")]
    return owned, {at.laddr.ip for at in sockets if at.status == psutil.CONN_LISTEN}


@pytest.fixture(scope="module")
def running(base, bucket):
    """A server with its artifacts in the bucket, an admin and two users; its address."""
    settings = {
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        "MLFLOW_S3_ENDPOINT_URL": bucket[1]["AWS_ENDPOINT_URL"],
        **bucket[1],
    }
    process, uri = start(base / "shared", **settings)
    try:
        for name, password in USERS.items():
            asked = {"username": name, "password": password}
            requests.post(
                f"{uri}/api/2.0/mlflow/users/create", json=asked, auth=ADMIN, timeout=30
            ).raise_for_status()
        yield process, uri
    finally:
        process.terminate()
        process.communicate(timeout=90)


@pytest.fixture
def server(running):
    """Its address."""
    return running[1]


@pytest.fixture
def team(server, environment, monkeypatch):
    """A project of alice that is tracked on the server, with long timeouts for a busy machine."""
    log_in(monkeypatch, "alice")
    monkeypatch.setattr(runs, "BUDGET_SECONDS", 1000)
    return replace(environment, tracking_uri=server, artifacts="")


def log_in(monkeypatch, name: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", USERS[name])


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="PostgreSQL's initdb is not installed")
class TestWithARealServer:
    @pytest.mark.parametrize("path", CLOSED)
    def test_every_page_and_call_needs_the_password(self, server, path):
        assert requests.get(f"{server}/{path}", timeout=30).status_code == 401
        assert requests.get(f"{server}/{path}", auth=("admin", "password1234"), timeout=30).status_code == 401

    def test_a_request_under_another_host_name_is_refused(self, server):
        url = f"{server}/api/2.0/mlflow/users/current"
        answers = [
            requests.get(url, auth=ADMIN, headers=host, timeout=30) for host in ({}, {"Host": "evil.example"})
        ]
        assert [answer.status_code for answer in answers] == [200, 403]

    def test_only_an_admin_makes_users(self, server):
        asked = {"username": "mallory", "password": "mallory-was-here"}
        answer = requests.post(
            f"{server}/api/2.0/mlflow/users/create", json=asked, auth=("bob", USERS["bob"]), timeout=30
        )
        assert answer.status_code == 403

    def test_a_training_that_is_killed_and_continued_by_a_colleague_is_one_run(
        self, team, tmp_path, monkeypatch
    ):
        from mlflow import MlflowClient

        folder, client = tmp_path / "training", MlflowClient(team.tracking_uri)
        write_lines(folder, range(10))
        write_picture(folder, 0)
        killed = child(team)
        assert (killed.communicate(timeout=60)[0], killed.returncode) == ("", -signal.SIGKILL)
        log_in(monkeypatch, "bob")
        write_lines(folder, range(10, 20))
        write_picture(folder, 10)
        with open_run(team, Description("train-gan", "f" * 64, {"seed": 1})) as run:
            run.follow(folder)
        found = client.search_runs(
            [client.get_run(run.id).info.experiment_id], f"tags.`darkroom.fingerprint` = '{'f' * 64}'"
        )
        assert [(each.info.run_id, each.info.status) for each in found] == [(run.id, "FINISHED")]
        assert [point.step for point in client.get_metric_history(run.id, "validation/accuracy")] == list(
            range(20)
        )
        pictures = [
            entry.path for entry in client.list_artifacts(run.id, "images") if entry.path.endswith(".png")
        ]
        assert sorted(path.split("+")[2] for path in pictures) == ["0", "10"]

    def test_a_model_is_stored_in_the_bucket_and_can_be_loaded(self, team, bucket, tmp_path):
        from mlflow import MlflowClient

        folder, client = write_model(tmp_path / "gan", "gan"), MlflowClient(team.tracking_uri)
        with open_run(team, Description("train-gan", "a" * 64)) as run:
            assert run.register(folder, "gan") == "1"
        card = model_files.read_card(folder)
        with open_run(team, Description("evaluate", "b" * 64)) as evaluation:
            evaluation.log_results({"gan": {"fid": {"value": 3.5}}}, {"gan": card})
        assert client.get_run(run.id).data.metrics["test_fid"] == 3.5
        stored = {
            entry["Key"]: entry["Size"]
            for entry in bucket[0].list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")["Contents"]
        }
        (weights,) = [size for key, size in stored.items() if key.endswith("/model.safetensors")]
        assert weights == (folder / "model.safetensors").stat().st_size
        there = {**os.environ, "MLFLOW_TRACKING_URI": team.tracking_uri}
        read = subprocess.run(
            [sys.executable, "-P", "-c", READER],
            env=there,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (read.returncode, read.stdout) == (0, "3\n"), read.stderr

    def test_it_only_listens_on_loopback(self, running):
        owned, addresses = listening(running[0])
        assert len(owned) > 5 and addresses == {"127.0.0.1"}

    @pytest.mark.nightly
    @pytest.mark.parametrize("end", ENDS)
    def test_it_leaves_no_process(self, base, end):
        folder = base / "own"
        process, _ = start(folder)
        owned, _ = listening(process)
        known = [lineage.Process(lineage.Process.current().host, one.pid, one.create_time()) for one in owned]
        process.send_signal(end)
        process.communicate(timeout=90)
        limit = time.monotonic() + 60
        while not all(one.is_dead() for one in known) and time.monotonic() < limit:
            time.sleep(0.1)
        assert len(known) > 5 and all(one.is_dead() for one in known)
        if end == signal.SIGKILL:  # it starts again, and still knows its users
            process, address = start(folder, "another-password")
            assert "not the password of the first start" in process.communicate(timeout=90)[1]
            assert (process.returncode, address) == (2, "")


@pytest.mark.parametrize("password", ["", "short"])
def test_without_a_password_there_is_no_server(tmp_path, password):
    process, _ = start(tmp_path / "server", password)
    assert process.communicate(timeout=60)[1].startswith(
        "error: MLFLOW_AUTH_ADMIN_PASSWORD: missing or too short\n  -> export"
    )
    assert process.returncode == 2 and not (tmp_path / "server").exists()


def test_the_containers_have_no_privilege_no_default_password_and_a_limit():
    services = yaml.safe_load((ROOT / "infra/mlflow/compose.yaml").read_text())["services"]
    for service in services.values():
        assert (
            int(service["user"].split(":")[0]) > 0
            and service["read_only"] is True
            and service["cap_drop"] == ["ALL"]
        )
        assert service["security_opt"] == ["no-new-privileges:true"] and {
            "mem_limit",
            "cpus",
            "pids_limit",
            "healthcheck",
        } <= set(service)
        secrets = [
            value for key, value in service["environment"].items() if "PASSWORD" in key or "FLASK" in key
        ]
        assert secrets and all(re.fullmatch(r"\$\{\w+:\?[^}]+\}", value) for value in secrets)
    assert "ports" not in services["postgres"] and services["mlflow"]["ports"] == [
        "${MLFLOW_BIND:-127.0.0.1}:${MLFLOW_PORT:-5000}:5000"
    ]
    hosts = services["mlflow"]["command"][services["mlflow"]["command"].index("--allowed-hosts") + 1]
    assert hosts and "*" not in hosts


def test_the_pod_is_restricted_and_its_secrets_are_references():
    kinds = {
        each["kind"]: each for each in yaml.safe_load_all((ROOT / "infra/mlflow/kubernetes.yaml").read_text())
    }
    assert set(kinds) == {"Deployment", "Service", "NetworkPolicy"}
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    limited = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["securityContext"] == limited and set(container["resources"]) == {"requests", "limits"}
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container) and "*" not in container[
        "args"
    ][1]
    assert container["envFrom"] == [{"secretRef": {"name": "mlflow"}}] and not [
        each for each in container["env"] if "value" in each
    ]
    assert kinds["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
