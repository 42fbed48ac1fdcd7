"""Lineage for other tools: OpenLineage events, and signatures of registered versions."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.data.croissant import describe
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import sha256
from pipeline.tracking import mlflow_index, openlineage, promotion, signatures
from pipeline.tracking.trace import trace, verify
from tests.tracking.traced_project import URL, environment_of, flip

REASON = "needs the extra outward"


def client_of(root: Path):
    from mlflow import MlflowClient

    return MlflowClient(environment_of(root).tracking_uri)


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("mlcroissant", lambda folder: describe(folder, "images")),
        ("openlineage.client", lambda folder: openlineage.send(None, "toy", str(folder / "events"))),
        ("model_signing.signing", lambda folder: signatures.sign(None, None, folder / "key")),
    ],
)
def test_without_the_extra_the_error_names_it(package, use, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=re.escape("pip install 'darkroom[outward]'")):
        use(tmp_path)


class TestOpenLineage:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("openlineage.client", reason=REASON)

    @pytest.fixture
    def found(self, origin):
        return trace(environment_of(origin), "cnn@champion")

    @pytest.fixture
    def server(self):
        """(URL, paths and events that it got, codes that it answers with)."""
        received, codes = [], []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append((self.path, self.headers["authorization"], json.loads(body)))
                self.send_response(codes.pop(0) if codes else 201)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received, codes
        server.shutdown()
        server.server_close()

    def test_a_file_has_each_stage_with_what_it_read_and_wrote(self, origin, found, tmp_path):
        path = tmp_path / "events.jsonl"
        number = openlineage.send(found, "toy", str(path))
        events = [json.loads(line) for line in path.read_text().splitlines()]
        assert number == len(events) and openlineage.send(found, "toy", str(path)) == number
        assert len(path.read_text().splitlines()) == number  # the file is replaced
        (run,) = [run for run in client_of(origin).search_runs(["1"]) if "models" in str(run.data.tags)]
        trained = [event for event in events if event["job"]["name"] == "train-cnn"]
        assert [event["eventType"] for event in trained] == ["START", "COMPLETE"]
        assert {uuid.UUID(event["run"]["runId"]).hex for event in trained} == {run.info.run_id}
        assert trained[0]["eventTime"] <= trained[1]["eventTime"]
        names = lambda event, side: {data["name"]: version(data) for data in event[side]}
        version = lambda data: data["facets"]["version"]["datasetVersion"]
        md5s = {key[8:]: md5 for key, md5 in run.data.tags.items() if key.startswith("dvc.md5.")}
        inputs, outputs = names(trained[1], "inputs"), names(trained[1], "outputs")
        assert inputs == {"data/processed/images": md5s["data/processed/images"]}
        assert outputs.pop("cnn/1") == sha256(origin / "models/cnn/model.safetensors")
        assert outputs == {path: md5s[path] for path in ("models/cnn", "history/cnn")}
        tags = {tag["key"]: tag["value"] for tag in trained[1]["run"]["facets"]["tags"]["tags"]}
        assert tags["cnn.steps"] == "3" and len(tags["git.commit"]) in (7, 40)
        (download,) = [event for event in events if event["job"]["name"] == "download"]
        assert names(download, "inputs") == {URL: sha256(origin / "data/raw/digits.gz")}
        reads = {data["name"] for event in events for data in event["inputs"]}
        assert "make.py" not in reads and {"models/cnn", "data/raw"} <= reads

    def test_events_of_a_stage_have_the_same_run_each_time(self, found, tmp_path):
        sent = []
        for name in ("one", "two"):
            openlineage.send(found, "toy", str(tmp_path / name))
            sent.append([json.loads(line) for line in (tmp_path / name).read_text().splitlines()])
        ids = [[event["run"]["runId"] for event in events] for events in sent]
        assert ids[0] == ids[1]

    def test_a_server_gets_each_event_with_the_key(self, found, server, monkeypatch):
        url, received, _ = server
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "secret")
        assert openlineage.send(found, "toy", url) == len(received) > 4
        assert {(path, key) for path, key, _ in received} == {("/api/v1/lineage", "Bearer secret")}

    def test_a_server_that_refuses_an_event_ends_it(self, found, server):
        url, received, codes = server
        codes += [201, 500]
        with pytest.raises(DarkroomError, match=r"1 of \d+ events sent, then: 500"):
            openlineage.send(found, "toy", url)
        assert len(received) == 2

    def test_a_server_that_does_not_answer_is_given_up(self, found, monkeypatch):
        monkeypatch.setattr(openlineage, "SECONDS", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://user:hunter2@127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(DarkroomError, match=r"0 of \d+ events sent") as error:
                openlineage.send(found, "toy", url)
        assert "hunter2" not in str(error.value)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """(private, public) paths of two pairs of keys."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    pairs = []
    for name in ("ours", "theirs"):
        key, folder = ec.generate_private_key(ec.SECP256R1()), tmp_path_factory.mktemp(name)
        plain = (form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        (folder / "key.pem").write_bytes(key.private_bytes(*plain))
        public = form.PublicFormat.SubjectPublicKeyInfo
        (folder / "key.pub").write_bytes(key.public_key().public_bytes(form.Encoding.PEM, public))
        pairs.append((folder / "key.pem", folder / "key.pub"))
    return pairs


@pytest.fixture(scope="module")
def signed(origin, keys):
    """(client, version, its folder); signed with the first key."""
    pytest.importorskip("model_signing.signing", reason=REASON)
    client = client_of(origin)
    version = promotion.find(client, "cnn@champion")
    assert signatures.check(client, version, keys[0][1]) is None  # not signed yet
    signatures.sign(environment_of(origin), version, keys[0][0])
    (folder,) = (path.parent for path in (origin / "mlartifacts").rglob("MLmodel"))
    return client, version, folder


class TestSignatures:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("model_signing.signing", reason=REASON)

    def test_a_signed_version_is_verified_by_its_key_alone(self, origin, keys, signed):
        client, version, _ = signed
        assert signatures.check(client, version, keys[0][1]) == ""
        assert "Key mismatch" in signatures.check(client, version, keys[1][1])
        assert verify(environment_of(origin))[0] == []  # of the version and of its run

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "MLmodel", "gates.py", "sha256.json", ".gitignore"]
    )
    def test_a_changed_or_added_file_is_named(self, keys, signed, name):
        client, version, folder = signed
        file = next(folder.rglob(name), folder / name)
        before = file.read_bytes() if file.is_file() else None
        file.write_bytes((before or b"") + b"\n")
        try:
            assert name in signatures.check(client, version, keys[0][1])
        finally:
            file.write_bytes(before) if before is not None else file.unlink()
        assert signatures.check(client, version, keys[0][1]) == ""

    def test_what_loading_a_version_adds_is_no_change_and_compiled_code_is_removed(
        self, keys, signed, monkeypatch
    ):
        client, version, folder = signed
        cache = folder / "code/pipeline/__pycache__"
        cache.mkdir(exist_ok=True)
        for file in (folder / "registered_model_meta", cache / "files.cpython-311.pyc"):
            file.write_text("x")
        with monkeypatch.context() as patch:
            patch.setattr(mlflow_index, "remove", lambda path: None)  # as if the folder were read-only
            assert "files.cpython-311.pyc" in signatures.check(client, version, keys[0][1])
        assert signatures.check(client, version, keys[0][1]) == "" and not cache.exists()
        (folder / "registered_model_meta").unlink()

    def test_compiled_code_in_a_downloaded_version_is_a_change(self, keys, signed, monkeypatch):
        client, version, folder = signed
        monkeypatch.setattr(signatures, "is_local", lambda version: False)
        (folder / "code/__pycache__").mkdir()
        (folder / "code/__pycache__/x.pyc").write_text("x")
        assert "x.pyc" in signatures.check(client, version, keys[0][1])
        shutil.rmtree(folder / "code/__pycache__")
        assert signatures.check(client, version, keys[0][1]) == ""

    @pytest.mark.parametrize("name", ["make.py", "gates.py"])
    def test_a_version_is_not_signed_if_it_or_its_run_is_damaged(self, origin, keys, signed, name):
        """Only a lost or damaged signature of its own is replaced."""
        (own,) = (origin / "mlartifacts").rglob("signatures/cnn-1.json")
        file, environment = next((origin / "mlartifacts").rglob(name)), environment_of(origin)
        own.unlink()
        flip(file)
        with pytest.raises(DarkroomError, match=re.escape(str(file))):
            signatures.sign(environment, signed[1], keys[0][0])
        flip(file)
        signatures.sign(environment, signed[1], keys[0][0])
        assert verify(environment)[0] == []

    def test_a_damaged_signature_is_refused(self, origin, keys, signed):
        client, version, _ = signed
        (file,) = (origin / "mlartifacts").rglob("signatures/cnn-1.json")
        kept = file.read_bytes()
        for damage in (lambda: flip(file), lambda: file.write_text("{}"), lambda: file.write_text("")):
            damage()
            assert signatures.check(client, version, keys[0][1])
            file.write_bytes(kept)

    def test_a_signature_of_another_version_does_not_fit(self, keys, signed, tmp_path):
        client, version, folder = signed
        other = Path(shutil.copytree(folder, tmp_path / "other"))
        (other / "MLmodel").write_text((other / "MLmodel").read_text().replace("cnn", "gan"))
        moved = type("Version", (), {"name": "cnn", "version": "1", "run_id": version.run_id})
        moved.source = str(other)
        assert "MLmodel" in signatures.check(client, moved, keys[0][1])

    @pytest.mark.parametrize(
        "content", ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"]
    )
    def test_what_is_no_key_is_refused(self, signed, tmp_path, content):
        client, version, _ = signed
        (tmp_path / "key").write_text(content)
        with pytest.raises(BadInput, match="cannot be used as a private key"):
            signatures.sign(environment_of(tmp_path), version, tmp_path / "key")
        with pytest.raises(BadInput, match="cannot be used as a public key"):
            signatures.check(client, version, tmp_path / "key")

    @pytest.mark.nightly
    def test_the_command_fails_for_a_champion_without_a_signature_of_this_key(
        self, origin, keys, signed, monkeypatch
    ):
        from click.testing import CliRunner

        from pipeline.cli import commands

        monkeypatch.chdir(origin)
        run = lambda key: CliRunner().invoke(commands, ["verify", "--signatures", str(key)])
        good = run(keys[0][1])
        assert (good.exit_code, "cnn/1: signed\n" in good.output) == (0, True)
        bad = run(keys[1][1])
        assert (bad.exit_code, "cnn/1: FAILED: Key mismatch" in bad.output) == (1, True)
        (file,) = (origin / "mlartifacts").rglob("signatures/cnn-1.json")
        kept = file.read_bytes()
        file.unlink()
        unsigned = run(keys[0][1])
        assert (unsigned.exit_code, "cnn/1: FAILED: the champion is not signed" in unsigned.output) == (
            1,
            True,
        )
        signing = ["sign", "cnn@champion", "--key", str(keys[0][0])]
        assert CliRunner().invoke(commands, signing).exit_code == 0 and run(keys[0][1]).exit_code == 0
        file.write_bytes(kept)

    @pytest.mark.nightly
    def test_an_encrypted_key_asks_for_its_password(self, origin, keys, signed, tmp_path, monkeypatch):
        from click.testing import CliRunner

        from pipeline.cli import commands

        private, public = keys[0]
        locked = [
            "openssl",
            "pkcs8",
            "-topk8",
            "-in",
            private,
            "-out",
            tmp_path / "key.pem",
            "-passout",
            "pass:pw",
        ]
        if not shutil.which("openssl"):
            pytest.skip("openssl is not installed")
        subprocess.run(locked, check=True)
        monkeypatch.chdir(origin)
        command = ["sign", "cnn/1", "--key", str(tmp_path / "key.pem")]
        assert CliRunner().invoke(commands, command, input="pw\n").exit_code == 0
        assert signatures.check(signed[0], signed[1], public) == ""
        assert isinstance(CliRunner().invoke(commands, command, input="wrong\n").exception, BadInput)
