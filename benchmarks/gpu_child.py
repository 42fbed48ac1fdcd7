"""For gpu.py: trainings in a process of their own, which is killed, or whose start is measured."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_speed import make_loop, now

from pipeline.core import model_files
from pipeline.core.dataset import Dataset, Split
from pipeline.core.determinism import make_deterministic
from pipeline.core.settings import TrainingSettings
from pipeline.core.task import Task
from pipeline.files import read_json, write_json

SCRIPT = Path(__file__).with_name("gpu.py")


@dataclass(frozen=True)
class Job:
    """The same training, ``times`` times. The first resumes if it was interrupted."""

    name: str
    data: Dataset
    settings: TrainingSettings
    config: Any
    folder: Path
    times: int = 1

    def start(self, device: torch.device) -> subprocess.Popen[bytes]:
        """Start a process."""
        about = {
            "name": self.name,
            "data": str(self.data.folder),
            "settings": json.loads(self.settings.model_dump_json()),
            "config": json.loads(self.config.model_dump_json()),
            "folder": str(self.folder),
            "times": self.times,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "started": time.time(),
        }
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / "job.json", about)
        with open(self.folder / "output", "wb") as output:
            command = [sys.executable, str(SCRIPT), "--child", str(self.folder / "job.json")]
            return subprocess.Popen(command, stdout=output, stderr=output)

    def run(self, device: torch.device, seconds: float) -> list[dict[str, Any]]:
        """Run a process for at most ``seconds``; return the results of the trainings that ended."""
        process, code = self.start(device), 0
        try:
            code = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            print(f"{self.folder.name}: stopped after {seconds:.0f} s", file=sys.stderr)
        finally:
            process.kill()
            process.wait(timeout=60)
        results = [self.folder / f"run-{number}/result.json" for number in range(self.times)]
        found = [read_json(path) for path in results if path.is_file()]
        if code or not found:
            raise RuntimeError(f"no training ended (exit code {code}): {self.output()[-1000:]}")
        return found

    def output(self) -> str:
        """What the process printed."""
        return (self.folder / "output").read_text(errors="replace")


def run(path: Path) -> None:
    """The process: train, and write result.json and the model of each training."""
    about = read_json(path)
    make_deterministic(about["threads"])
    device, data = torch.device(about["device"]), Dataset.open(Path(about["data"]))
    settings = TrainingSettings.model_validate_json(json.dumps(about["settings"]))
    for number in range(about["times"]):
        folder, began = Path(about["folder"]) / f"run-{number}", now(device)
        loop = make_loop(about["name"], data, settings, about["config"], folder, device)
        trained = loop.run()
        seconds = now(device) - began
        result = {
            "sha256": model_files.write(trained, folder / "model", {})["sha256"],
            "first_step": settings.num_steps - loop.num_steps_taken + 1,
            "seconds": seconds,
            "seconds_from_start": time.time() - about["started"],  # of the process
            "accuracy": accuracy(trained, data.test) if about["name"] == "cnn" else None,
        }
        write_json(folder / "result.json", result)


@torch.no_grad()
def accuracy(task: Task, split: Split) -> float:
    """The share of images that a classifier labels correctly."""
    batches = split.batches(500, task.device)
    hits = [task.classify(batch.images).argmax(1) == batch.labels for batch in batches]  # type: ignore[union-attr]
    return float(torch.cat(hits).double().mean())
