"""A small project that is retrained on deliveries of scikit-learn's digits."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.retraining.journal import Journal
from tests.project import PARAMS
from tests.repository import shell

STEPS = {
    "num_steps": 150,
    "batch_size": 64,
    "ema_decay": 0.9,
    "log_every": 50,
    "validate_every": 50,
    "sample_every": 150,
}
SECTIONS = {
    "data": {**PARAMS["data"], "source": "folder", "folder": "data/own/digits", "color": "grey"},
    "cnn": {
        "training": {**STEPS, "checkpoint_every": 50},
        "model": {"channels": [16, 16], "dense": [32], "optimizer": {"kind": "adamw", "learning_rate": 0.01}},
    },
    "gates": {"minimum_test_images": 20},
    "retrain": {"watch": "../incoming", "settle_seconds": 0, "commit": "in place"},
}


def deliver(project: Path, first: int, last: int, labels: np.ndarray | None = None) -> None:
    """Put scikit-learn's digits ``first`` to ``last`` into the watched folder, with ``labels`` if given."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    shown = digits.target if labels is None else labels
    for number in range(first, last):
        path = project.parent / f"incoming/{shown[number]}/{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15).astype(np.uint8)).save(path)


def look(project: Path) -> dict:
    """The state of the project: champion, commit, promotions, quarantine, open retraining."""
    from mlflow import MlflowClient

    from pipeline.tracking import promotion

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    serving = client.get_model_version_by_alias("cnn", "champion")
    return {
        "sha256": serving.tags["darkroom.sha256"],
        "version": int(serving.version),
        "history": [
            (event["event"], event["from"], event["to"]) for event in promotion.alias_history(client, "1")[1:]
        ],
        "lock": shell(project, "git", "show", "HEAD:data/own/digits.dvc"),
        "quarantined": len(Journal(project).quarantined()),
        "open": Journal(project).current(),
    }


def copied(first: Path, folder: Path) -> Path:
    """A copy of ``first`` in ``folder``, with its deliveries; MLflow's files stay where they are."""
    shutil.copytree(
        first.parent, folder, symlinks=True, ignore=shutil.ignore_patterns("tree", "site", "worktrees")
    )
    return folder / "project"
