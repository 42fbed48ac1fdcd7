"""Servers, mirrors and clusters that `darkroom doctor` does not reach."""

import socket
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipeline import doctor, environment
from tests import test_doctor
from tests.test_doctor import failures

project = test_doctor.project


@contextmanager
def listening():
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed_port():
    """A port without a server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_tracking_server_that_is_not_there_is_named_without_its_password(project, monkeypatch):
    address = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{address}")
    (found,) = failures().items()
    assert (
        address in found[0]
        and "does not answer (Connection refused)" in found[0]
        and "secret" not in found[0]
    )
    assert "MLFLOW_TRACKING_URI" in found[1] and "darkroom sync" in found[1]
    assert failures("--brief") == {}  # a training runs without it


@pytest.mark.parametrize(
    ("status", "well"), [(200, True), (401, True), (403, False), (404, False), (503, False)]
)
def test_a_server_that_is_no_tracking_server_is_named(project, monkeypatch, status, well):
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        found = failures()
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        monkeypatch.setenv("DARKROOM_MIRROR", address)
        assert failures() == {}  # a mirror need not have a page at its root
        server.shutdown()
    assert list(found) == ([] if well else [f"runs go to {address}, which answers with status {status}"])


def test_a_tracking_server_that_never_answers_takes_five_seconds_at_most(project, monkeypatch):
    with listening() as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        began = time.monotonic()
        found = doctor._tracking(environment.read())
        assert "does not answer (nothing within 4 s)" in next(iter(found)).what
        assert time.monotonic() - began < 5


def test_a_tracking_database_that_is_none_is_named(project, monkeypatch, tmp_path):
    (tmp_path / "mlflow.db").write_text("this is text")
    assert list(failures()) == [f"{tmp_path}/mlflow.db is not an SQLite database"]


def test_a_mirror_that_is_not_there_is_named(project, monkeypatch, tmp_path):
    for mirror in ("nowhere", str(tmp_path / "nowhere"), f"file://{tmp_path}/nowhere"):
        monkeypatch.setenv("DARKROOM_MIRROR", mirror)
        (found,) = failures().items()
        assert found[0] == f"DARKROOM_MIRROR: {tmp_path}/nowhere: no such folder" and "unset it" in found[1]
    Path("nowhere").mkdir()
    assert failures() == {}
    monkeypatch.setenv("DARKROOM_MIRROR", f"http://127.0.0.1:{closed_port()}/data")
    (found,) = failures()
    assert "does not answer (Connection refused)" in found


def test_a_ray_cluster_that_is_not_there_is_named(project, monkeypatch):
    address = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    (found,) = failures("--brief").items()
    assert (
        found[0] == f"RAY_ADDRESS: {address} does not answer (Connection refused)" and "unset it" in found[1]
    )
    with listening() as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert failures() == {}
