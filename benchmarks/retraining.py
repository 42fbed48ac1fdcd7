"""Simulate a month of `darkroom retrain`: new images, drift, broken and mislabelled images, crashes.

    python benchmarks/retraining.py                        # scikit-learn's digits
    python benchmarks/retraining.py --mnist <folder>       # the real MNIST, from its published files

Each day the command runs once in a clone of this repository (of its last commit), as a scheduler would run
it. The table shows what was delivered, the decision and its reason, the champion, and its accuracy on 500
images that are never delivered.
"""

import argparse
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import requests
import yaml
from PIL import Image

from pipeline import environment
from pipeline.core import model_files
from pipeline.data import formats

ROOT = Path(__file__).parents[1]
DAY_SECONDS = 1800
STEPS = {
    "num_steps": 400,
    "batch_size": 64,
    "ema_decay": 0.95,
    "log_every": 50,
    "validate_every": 100,
    "sample_every": 400,
}
SETTINGS = {
    "cnn": {
        "training": {**STEPS, "checkpoint_every": 100},
        "model": {"channels": [16, 32], "dense": [32], "dropout": 0.2, "shift": 0.05},
    },
    "gates": {"minimum_test_images": 30},
    "retrain": {"watch": "../incoming", "settle_seconds": 0, "commit": "in place", "push": True},
}
# images (n, H, W), labels, random generator -> (class, PNG) of each
Delivery = Callable[[np.ndarray, np.ndarray, np.random.Generator], list[tuple[int, bytes]]]


def main() -> None:
    """Run the simulation and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, help="the folder with MNIST's published files")
    parser.add_argument(
        "--size",
        type=int,
        default=60,
        help="images of an ordinary delivery; the first has ten times as many",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    environment.prepare()
    with tempfile.TemporaryDirectory(prefix="darkroom-month-") as place:
        month = Month(
            Path(place), *_pictures(arguments.mnist, arguments.seed), np.random.default_rng(arguments.seed)
        )
        try:
            play(month, arguments.size)
            print("\n" + month.run("history")[1])
        finally:
            month.server.kill()


def play(month: "Month", size: int) -> None:
    """Run 30 days. On days that are not in the plan nothing is delivered."""
    print("| day | delivered | exit | s | decision | champion | accuracy on 500 unseen |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    plan: dict[int, tuple[str, int, Delivery | None]] = {
        1: ("the first pictures", 10 * size, ordinary),
        4: ("new pictures", size, ordinary),
        7: ("new pictures", 5 * size, ordinary),
        10: ("half of them broken", size, broken),
        12: ("new pictures, labels shuffled", 3 * size, shuffled),
        15: ("rotated by 30 degrees", 3 * size, rotated),
        17: ("new pictures, killed with -9 in mid-training", 2 * size, ordinary),
        19: ("new pictures, tracking server dead", 2 * size, ordinary),
        22: ("inverted", 2 * size, inverted),
        25: ("new pictures, two runs at once", 2 * size, ordinary),
        28: ("an operator rolls back", 0, None),
    }
    for day in range(1, 31):
        what, count, delivery = plan.get(day, ("", 0, None))
        if delivery:
            month.deliver(count, delivery)
        if "rolls back" in what:
            month.run("rollback", "cnn", "--reason", "the customers prefer the old one")
        if "server dead" in what:
            month.server.kill()
            month.server.wait(30)
        second = month.start("retrain") if "at once" in what else None
        began = time.monotonic()
        code, output = month.run("retrain", kill="killed" in what)
        seconds = time.monotonic() - began
        if second:
            other = month.end(second)
            seconds = time.monotonic() - began
            what += f" (exits {sorted((code, other[0]))})"
            code, output = min((code, output), other)
        if "server dead" in what:
            month.server = month.serve()
        month.print_row(day, what, code, seconds, output)


class Month:
    """A project, the folder it watches, its tracking server, and the images that are not delivered yet."""

    def __init__(
        self, place: Path, images: np.ndarray, labels: np.ndarray, random: np.random.Generator
    ) -> None:
        self.place, self.project, self.random = place, place / "project", random
        self.unseen, self.images, self.labels = (images[:500], labels[:500]), images[500:], labels[500:]
        self.delivered = 0
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.server = self.serve()
        self._create(images.shape[-1])

    def _create(self, size: int) -> None:
        self._do("git", "clone", "--quiet", str(ROOT), str(self.project), where=self.place)
        plan = yaml.safe_load((self.project / "dvc.yaml").read_text())
        others = set(model_files.names()) - {"cnn"}
        for name in others:
            path = model_files.code_path(name, self.project / "pipeline")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        stages = {
            name: stage for name, stage in plan["stages"].items() if name.removeprefix("train-") not in others
        }
        stages["evaluate"]["deps"] = [
            dep for dep in stages["evaluate"]["deps"] if dep.rpartition("/")[2] not in others
        ]
        (self.project / "dvc.yaml").write_text(json.dumps({"stages": stages}))
        data = {"source": "folder", "folder": "data/own/digits", "image_size": size, "color": "grey"}
        data |= {"labels": "", "group": "", "min_images_per_class": 0}
        params = {"data": data, "evaluate": {"allow_few_samples": True, "num_bootstrap": 50}, **SETTINGS}
        (self.project / "params.yaml").write_text(json.dumps(params))
        for words in (
            ("dvc", "config", "core.site_cache_dir", str(self.place / "site")),
            ("dvc", "remote", "add", "-d", "store", str(self.place / "store")),
        ):
            self._do(sys.executable, "-m", *words)
        self._do("git", "add", "-A")
        author = ("-c", "user.name=month", "-c", "user.email=month@localhost")
        self._do("git", *author, "commit", "-q", "-m", "a classifier of digits")

    def serve(self) -> "Group":
        """Start the tracking server and wait until it answers."""
        options = {
            "--backend-store-uri": f"sqlite:///{self.place}/tracking.db",
            "--artifacts-destination": str(self.place / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            *(word for pair in options.items() for word in pair),
        ]
        quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(
            command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for _ in range(300):
            try:
                if requests.get(f"http://127.0.0.1:{self.port}/health", timeout=5).ok:
                    return Group(process)
            except requests.RequestException:
                time.sleep(0.3)
        raise TimeoutError("the tracking server does not answer")

    def deliver(self, count: int, delivery: Delivery) -> None:
        """Put the next ``count`` images, changed by ``delivery``, into the watched folder."""
        chosen = slice(self.delivered, self.delivered + count)
        assert chosen.stop <= len(self.images), "no images are left: choose a smaller --size"
        for number, (label, png) in enumerate(
            delivery(self.images[chosen], self.labels[chosen], self.random)
        ):
            path = self.place / f"incoming/{label}/{self.delivered + number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
        self.delivered += count

    def start(self, *command: str) -> subprocess.Popen:
        """Start a darkroom command in the project."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DARKROOM_", "DVC_", "RAY_", "MLFLOW_"))
        }
        here = {**clean, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.port}", "DVC_NO_ANALYTICS": "1"}
        here["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        words = [sys.executable, "-c", "from pipeline.cli import main; main()", *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(words, cwd=self.project, env=here, start_new_session=True, **pipes)

    def run(self, *command: str, kill: bool = False) -> tuple[int, str]:
        """Run a command; return its exit code and output.

        ``kill``: kill its process group while it trains.
        """
        process = self.start(*command)
        if kill:
            deadline = time.monotonic() + DAY_SECONDS
            while process.poll() is None and time.monotonic() < deadline and not self._trains():
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
        return self.end(process)

    def end(self, process: subprocess.Popen) -> tuple[int, str]:
        """Wait for the end of a command; return its exit code and output."""
        output, _ = process.communicate(timeout=DAY_SECONDS)
        return process.returncode, output

    def print_row(self, day: int, what: str, code: int, seconds: float, output: str) -> None:
        """Print a row of the table."""
        lines = output.splitlines()
        decision = [line.strip() for line in lines if line.startswith("  drift: drift")]
        pattern = r"promoted|refused|nothing new|error|continuing|killed"
        decision += [line for line in lines if re.match(pattern, line)]
        text = "; ".join(decision) or ("killed" if code < 0 else output.strip().splitlines()[-1])
        text = re.sub(r"\s+", " ", text.replace("|", "/"))[:260]
        version, accuracy = self._evaluate_champion()
        row = (day, what or "nothing", code, f"{seconds:.0f}", text, version, f"{accuracy:.1%}")
        print(f"| {' | '.join(map(str, row))} |", flush=True)

    def _evaluate_champion(self) -> tuple[str, float]:
        """The version of the champion, and its accuracy when MLflow loads it."""
        import mlflow
        import pandas as pd

        address = f"http://127.0.0.1:{self.port}"
        mlflow.set_tracking_uri(address)
        version = mlflow.MlflowClient(address).get_model_version_by_alias("cnn", "champion")
        model = mlflow.pyfunc.load_model(f"models:/cnn/{version.version}")
        images, labels = self.unseen
        answers = model.predict(pd.DataFrame({"image": [(image[None] / 255).tolist() for image in images]}))
        return f"cnn/{version.version}", float((answers["class"].to_numpy() == labels.astype(str)).mean())

    def _trains(self) -> bool:
        records = sorted(
            (self.project / ".darkroom/trainings").glob("cnn-*/metrics.jsonl"),
            key=lambda path: path.stat().st_mtime,
        )
        fresh = [path for path in records if not (path.parent / "finished.json").exists()]
        return bool(fresh) and len(fresh[-1].read_text().splitlines()) >= 3

    def _do(self, *words: str, where: Path | None = None) -> str:
        done = subprocess.run(
            words, cwd=where or self.project, capture_output=True, text=True, timeout=300, check=True
        )
        return done.stdout


class Group:
    """A process and its children."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def kill(self) -> None:
        """Kill all processes of the group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Wait until the process has ended."""
        self._process.wait(seconds)


def ordinary(images: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> list[tuple[int, bytes]]:
    """Unchanged images."""
    return [(int(label), _png(Image.fromarray(image))) for image, label in zip(images, labels)]


def rotated(images: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> list[tuple[int, bytes]]:
    """Images rotated by 30 degrees."""
    return [
        (int(label), _png(Image.fromarray(image).rotate(30, Image.Resampling.BILINEAR)))
        for image, label in zip(images, labels)
    ]


def inverted(images: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> list[tuple[int, bytes]]:
    """Inverted images."""
    return ordinary(255 - images, labels, random)


def shuffled(images: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> list[tuple[int, bytes]]:
    """Images with shuffled labels."""
    return ordinary(images, random.permutation(labels), random)


def broken(images: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> list[tuple[int, bytes]]:
    """Every second file is truncated."""
    return [
        (label, png[: len(png) // 2] if number % 2 else png)
        for number, (label, png) in enumerate(ordinary(images, labels, random))
    ]


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _pictures(mnist: Path | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey images (N, H, W), uint8, and their labels, in random order."""
    if mnist:
        paths = mnist / "train-images-idx3-ubyte.gz", mnist / "train-labels-idx1-ubyte.gz"
        images, labels = formats.read_idx_pair(*paths, shape=(1, 28, 28), classes=10)
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.array(
            [
                np.asarray(Image.fromarray((image * 15).astype(np.uint8)).resize((16, 16)))
                for image in digits.images
            ]
        )[:, None]
        labels = digits.target
    order = np.random.default_rng(seed).permutation(len(labels))
    return images[order, 0], labels[order]


if __name__ == "__main__":
    main()
