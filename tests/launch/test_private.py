"""The secret of private trainings: where it is, where it is not, and what depends on it."""

import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.core import metrics_log, model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.environment import Environment, privacy_key, privacy_secret
from pipeline.errors import BadInput, DarkroomError, TrainingStopped
from pipeline.files import sha256
from pipeline.launch.training import Training, train
from pipeline.settings_check import require_valid_params
from pipeline.tracking import model_card, reproduce
from tests.project import Project

CONFIG = {"channels": [8], "dense": [8], "privacy": {"epsilon": 8.0}}
SETTINGS = TrainingSettings(num_steps=6, batch_size=64, log_every=1, validate_every=3, checkpoint_every=2)


@pytest.fixture
def environment(tmp_path, monkeypatch):
    monkeypatch.delenv("DARKROOM_PRIVACY_SECRET", raising=False)
    return Environment(tmp_path, storage=tmp_path / "storage", threads=1, device="cpu")


@pytest.fixture
def run(tmp_path, environment, processed_digits):
    """A function that trains a private classifier; its folder."""

    def run(name, listeners=(), **settings):
        config = model_files.find("cnn").Config.model_validate_json(json.dumps(CONFIG))
        training = Training(
            "cnn", SETTINGS.model_copy(update=settings), config, Dataset.open(processed_digits)
        )
        folder = tmp_path / "models" / name
        train(training, environment, folder, tmp_path / "history", list(listeners))
        return folder

    return run


def test_the_secret_is_made_once_for_the_user_alone_and_the_variable_goes_before_it(environment, monkeypatch):
    secret, path = privacy_secret(environment), environment.storage / "privacy-secret"
    assert path.read_text() == secret == privacy_secret(environment) and len(set(secret)) > 8
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and [*path.parent.iterdir()] == [path]
    keys = {privacy_key(environment, fingerprint) for fingerprint in "ab"}
    monkeypatch.setenv("DARKROOM_PRIVACY_SECRET", "5" * 64)
    assert privacy_secret(environment) == "5" * 64
    assert len(keys | {privacy_key(environment, "a")}) == 3


@pytest.mark.parametrize(
    ("mode", "text"), [(0o644, b"5" * 64), (0o600, b"5" * 63), (0o600, b""), (0o600, b"\xff" * 64)]
)
def test_a_secret_that_others_can_read_or_that_is_none_is_refused(environment, mode, text):
    path = environment.storage / "privacy-secret"
    path.parent.mkdir()
    path.write_bytes(text)
    path.chmod(mode)
    with pytest.raises(BadInput, match="only you can read"):
        privacy_secret(environment)


def test_a_killed_private_training_continues_with_its_secret_alone(run, environment, monkeypatch):
    logged = lambda folder: len(metrics_log.read(folder / "metrics.jsonl")) > 2
    monkeypatch.setattr("pipeline.launch.training.POLL_SECONDS", 0.01)
    whole = sha256(run("whole", num_steps=20) / "model.safetensors")
    secret = privacy_secret(environment)
    for folder in (environment.storage / "trainings").iterdir():
        folder.rename(folder.with_name("done")) if folder.is_dir() else folder.unlink()
    with pytest.raises(TrainingStopped):
        run("stopped", [logged], num_steps=20)
    monkeypatch.setenv("DARKROOM_PRIVACY_SECRET", "5" * 64)
    with pytest.raises(DarkroomError, match="began with another secret"):
        run("other", num_steps=20)
    monkeypatch.setenv("DARKROOM_PRIVACY_SECRET", secret)
    assert sha256(run("again", num_steps=20) / "model.safetensors") == whole


def test_another_secret_gives_another_model_and_a_model_shows_only_a_digest(
    run, environment, tmp_path, capfd
):
    folder = run("one")
    secret, card = privacy_secret(environment), model_files.read_card(folder)
    key = privacy_key(environment, card["fingerprint"])
    saved = load_file(folder / "model.safetensors")["private.key_sha256"]
    assert bytes(saved.tolist()) == hashlib.sha256(key).digest()
    assert reproduce._secret(environment, card, folder) == {"DARKROOM_PRIVACY_SECRET": secret}
    assert "epsilon 8 at delta 1e-05 for each training image" in model_card.text(card)
    printed = "".join(capfd.readouterr())
    assert "epsilon=8.0 delta=1e-05 max_grad_norm=1.0, noise multiplier" in printed
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "privacy-secret"]
    hidden = (secret.encode(), bytes.fromhex(secret), key, key.hex().encode())
    assert len(files) > 10 and not any(part in path.read_bytes() for path in files for part in hidden)
    assert not any(part in printed.encode() for part in hidden)
    (environment.storage / "privacy-secret").unlink()
    (environment.storage / "trainings").rename(tmp_path / "before")
    assert sha256(run("two") / "model.safetensors") != sha256(folder / "model.safetensors")
    with pytest.raises(DarkroomError, match="from another secret"):
        reproduce._secret(environment, card, folder)


def test_params_that_contradict_privacy_are_refused_before_any_stage(tmp_path, processed_digits):
    project = Project(tmp_path / "project", processed_digits)
    project.params["cnn"] = {"training": {"sampling": "balanced", "batch_size": 32}, "model": CONFIG}
    project.write()
    with pytest.raises(BadInput, match="does not fit privacy: sampling: balanced"):
        require_valid_params(project.folder / "params.yaml")


@pytest.mark.nightly
@pytest.mark.parametrize(
    "given", [{}, {"DARKROOM_PRIVACY_SECRET": os.urandom(32).hex()}], ids=["file", "variable"]
)
def test_a_secret_is_in_no_file_of_a_project_but_its_own_and_in_no_log(tmp_path, processed_digits, given):
    project = Project(tmp_path / "project", processed_digits)
    project.params["cnn"] = {"training": {"num_steps": 4, "batch_size": 300, "log_every": 1}, "model": CONFIG}
    project.write()
    (project.folder / ".gitignore").write_text((Path(__file__).parents[2] / ".gitignore").read_text())
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *words], cwd=project.folder, check=True)
    code, output = project.run("stages.train", "cnn", **given)
    assert code == 0, output
    code, evaluated = project.run("stages.evaluate", **given)
    assert code == 0 and '"epsilon"' in (project.folder / "metrics/evaluation.json").read_text(), evaluated
    own = project.folder / ".darkroom/privacy-secret"
    assert own.is_file() != bool(given)
    secret = given["DARKROOM_PRIVACY_SECRET"] if given else own.read_text()
    files = [path for path in project.folder.rglob("*") if path.is_file() and path != own]
    assert len(files) > 20
    hidden = (secret.encode(), bytes.fromhex(secret))
    assert [path for path in files for part in hidden if part in path.read_bytes()] == []
    assert secret not in output + evaluated
    shown = subprocess.run(
        ["git", "status", "--short", "--ignored", "-uall"], cwd=project.folder, capture_output=True
    )
    assert given or b"!! .darkroom/privacy-secret" in shown.stdout
