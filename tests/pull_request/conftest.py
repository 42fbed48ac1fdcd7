"""A project with results in two commits, written by hand: no stage is run."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeline.environment import Environment
from pipeline.tracking.lineage import folder_md5, md5_of

PROTOCOL = {"dataset": "images", "data_digest": "d" * 64, "test_examples": 400, "model_digest": "m"}


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


class Project:
    """``write`` replaces its results, settings, data and pictures by those of another ``dvc repro``."""

    def __init__(self, root: Path) -> None:
        self.root, self.environment = (
            root,
            Environment(root=root, storage=root / ".darkroom", tracking_uri=f"sqlite:///{root}/mlflow.db"),
        )
        self.measures = {
            "cnn": {"accuracy": interval(0.9, 0.02), "calibration_error": interval(0.1, 0.05)},
            "gan": {"fid": interval(4.0, 0.3), "recall": interval(0.5, 0.05)},
        }
        self.protocols = {name: dict(PROTOCOL) for name in self.measures}
        self.params = {"cnn": {"training": {"num_steps": 100}, "model": {}}, "gan": {"model": {"width": 8}}}
        self.params |= {"gates": {}}
        self.counts, self.class_names, self.shade = {"train": 1000, "test": 400}, ["cat", "dog"], 0

    def write(self) -> None:
        root = self.root
        details = {**self.measures, "protocol": self.protocols, "warnings": {}}
        for path, value in (("metrics/details.json", details), ("params.yaml", self.params)):
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_text(json.dumps(value))
        splits = {name: {"count": count, "shards": []} for name, count in self.counts.items()}
        manifest = {"source": "folder", "class_names": self.class_names, "splits": splits}
        outs = {
            "data/processed/images": self.keep("data/processed/images/manifest.json", json.dumps(manifest)),
            "plots": self.keep("plots/pictures/gan-samples.png", self.shade),
        }
        stages = {
            "train-gan": {
                "cmd": "train",
                "params": {"params.yaml": {"gan": self.params["gan"]}},
                "outs": [{"path": path, "md5": md5} for path, md5 in outs.items()],
            }
        }
        (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))

    def keep(self, path: str, content: str | int) -> str:
        """Write a file (a number: a picture in this shade) and keep it in DVC's cache; md5 of its output."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            Image.new("L", (8, 8), content).save(file)
        else:
            file.write_text(content)
        out = "plots" if path.startswith("plots") else "data/processed/images"
        name, md5 = file.relative_to(self.root / out).as_posix(), md5_of(file)
        listing = json.dumps([{"md5": md5, "relpath": name}], sort_keys=True)
        folder = folder_md5({name: md5})
        for digest, data in ((md5, file.read_bytes()), (folder, listing.encode())):
            cached = self.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
            cached.parent.mkdir(parents=True, exist_ok=True)
            cached.write_bytes(data)
        return folder


@pytest.fixture(scope="session")
def committed(tmp_path_factory) -> Path:
    """A project whose results are committed on the branch main; another branch is checked out."""
    root = tmp_path_factory.mktemp("committed")
    (root / ".dvc").mkdir()
    (root / ".dvc/config").touch()
    (root / "dvc.yaml").write_text("stages: {}")
    (root / ".gitignore").write_text("/.dvc/cache\n/data\n/plots\n/.darkroom\n/mlflow.db*\n")
    Project(root).write()
    for command in ("init -q -b main", "add .", "commit -qm results", "switch -qc change"):
        git(root, *command.split())
    return root


@pytest.fixture
def project(committed, tmp_path) -> Project:
    """A copy of it."""
    return Project(Path(shutil.copytree(committed, tmp_path / "project")))
