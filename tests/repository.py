"""A small project under git and DVC, and commands in it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from pipeline.core import model_files
from tests.project import MODELS, ONE_THREAD, PARAMS, ROOT

KEPT = "cnn"  # the only model of the project
WITHOUT_TRAINING = ("download", "preprocess", "evaluate")

CLEAN = ("DARKROOM_", "MLFLOW_", "DVC_", "RAY_", "GIT_", "PYTHONPATH")


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def create(folder: Path, **sections: dict) -> Path:
    """A committed project with a classifier only; ``sections`` replace those of its params.yaml."""
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    for name in model_files.names():
        if name != KEPT:
            remove(model_files.code_path(name, folder / "pipeline"))
    (folder / "data/own").mkdir(parents=True)
    shutil.copy(ROOT / "data/own/README.md", folder / "data/own")
    plan = read_yaml(ROOT / "dvc.yaml")
    stages = {
        name: stage
        for name, stage in plan["stages"].items()
        if name in WITHOUT_TRAINING or name == f"train-{KEPT}"
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    params = {key: value for key, value in PARAMS.items() if key == KEPT or key not in MODELS}
    (folder / "params.yaml").write_text(json.dumps({**params, **sections}))
    shell(folder, "git", "init", "-q", "-b", "main")
    shell(folder, "python", "dvc", "init", "-q")
    shell(folder, "python", "dvc", "remote", "add", "-q", "-d", "store", "../store")
    commit(folder, "the code")
    return folder


def read_yaml(path: Path) -> dict:
    """The content of a YAML file."""
    return yaml.safe_load(path.read_text())


def commit(folder: Path, message: str) -> None:
    """Commit everything."""
    shell(folder, "git", "add", "-A")
    shell(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", message)


def start(folder: Path, *command: str, **more: str) -> subprocess.Popen:
    """Start a command in ``folder``; Python modules (dvc, stages, ...) and darkroom use this Python."""
    words = [sys.executable, "-m", *command[1:]] if command[0] == "python" else list(command)
    if command[0] == "darkroom":
        words = [sys.executable, "-c", "from pipeline.cli import main; main()", *command[1:]]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(CLEAN)}
    here = {
        **kept,
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
        **ONE_THREAD,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **more,
    }
    return subprocess.Popen(
        words,
        cwd=folder,
        env=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def shell(folder: Path, *command: str, code: int = 0, **more: str) -> str:
    """The output of a command, which must end with exit code ``code``."""
    process = start(folder, *command, **more)
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output
