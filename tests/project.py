"""A small project, in which tests run the stages as DVC does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from mlflow import MlflowClient

from pipeline.core import metrics_log
from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings
from pipeline.environment import Environment

ROOT = Path(__file__).parents[1]
MODELS = ("ae", "cnn", "gan", "vae")  # of the small project
# Darkroom's own; the checkout may have others.
SHIPPED_MODELS = {*MODELS, "rcnn", "transformer", "unet", "vqvae"}
TRAINING = {
    "num_steps": 60,
    "batch_size": 32,
    "ema_decay": 0.9,
    "log_every": 3,
    "validate_every": 20,
    "sample_every": 30,
    "checkpoint_every": 10,
}
# Threads wait for each other in a loop: two on a busy core take ten times the time of one.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "DARKROOM_THREADS": "1"}
# The params of the stage download, which DVC expects in params.yaml.
DOWNLOAD = {"folder": "", "labels": "", "group": "", "min_images_per_class": 0}
PARAMS = {
    "data": {"source": "digits", "image_size": 8, **DOWNLOAD},
    "cnn": {"training": TRAINING, "model": {"channels": [8, 8], "dense": [16], "dropout": 0.2, "shift": 0.1}},
    "gan": {"training": TRAINING, "model": {"width": 8, "latent_size": 8}},
    "vae": {"training": TRAINING, "model": {"width": 8, "latent_size": 4}},
    "ae": {"training": TRAINING, "model": {"width": 8, "code_size": 4}},
    "evaluate": {"allow_few_samples": True, "num_bootstrap": 20},
    "gates": {},
    "retrain": {},
}


def as_from_a_terminal():
    """Restore the default signal handlers. Tests in a background job of a shell would inherit others."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Project:
    """``folder`` with params.yaml, processed digits and an empty MLflow database, copied from ``data``."""

    def __init__(self, folder: Path, data: Path | None = None):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.params = {name: dict(section) for name, section in PARAMS.items()}
        self.write()
        if data is None:
            settings = DataSettings(image_size=8)
            environment = Environment(root=folder, storage=folder / ".darkroom")
            download(settings, environment, folder / "data/raw")
            preprocess(settings, environment, folder / "data/raw", folder / "data/processed/images")
            MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments(max_results=1)
        else:
            shutil.copytree(data, folder / "data/processed/images")
            shutil.copy(data.parents[2] / "mlflow.db", folder)  # creating it takes two seconds

    def write(self):
        (self.folder / "params.yaml").write_text(json.dumps(self.params))  # JSON is YAML

    def environment(self, **more):
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DARKROOM_", "MLFLOW_", "DVC_", "RAY_"))
        }
        return {**kept, "PYTHONPATH": str(ROOT), **ONE_THREAD, **more}

    def start(self, *command, **more):
        """Start a Python module in the project, in its own process group."""
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment(**more),
            start_new_session=True,
            preexec_fn=as_from_a_terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command, **more):
        """Run a Python module to its end: (exit code, output)."""
        process = self.start(*command, **more)
        try:
            output, _ = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output

    def trainings(self, name):
        return sorted(
            path for path in (self.folder / ".darkroom/trainings").glob(f"{name}-*") if path.is_dir()
        )

    def steps(self, name):
        """The recorded steps of the only training of this model, so far."""
        folders = self.trainings(name)
        return [line["step"] for line in metrics_log.read(folders[0] / "metrics.jsonl")] if folders else []

    def kill_at(self, process, name, step, limit=120.0):
        """Wait until ``step`` is recorded, then kill the group with -9. Returns the last recorded step."""
        deadline = time.monotonic() + limit
        while (self.steps(name) or [0])[-1] < step:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, f"step {step} was not reached in {limit} s"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        process.stdout.close()
        return self.steps(name)[-1]
