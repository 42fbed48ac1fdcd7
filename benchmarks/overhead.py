"""Compare a training stage with a bare PyTorch loop of the same model, data and settings.

    python benchmarks/overhead.py [model] [--rounds 3] [--workers 1 2]

Needs data/processed/images. The bare loop and the stage run alternately; medians and ratios are printed. The
bare loop is also a process of its own: it imports PyTorch, reads the same shards with NumPy, takes the same
steps with the same batches, schedule, clipping and weight averaging, and saves the weights. It has no
validation, samples, checkpoints, metrics log or tracking.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
BARE = """
import json, sys, time
began = time.perf_counter()
import numpy as np, torch
from torch.nn.utils import clip_grad_norm_
name, out = sys.argv[1:]
sys.path.insert(0, {root!r})
from pipeline.core import model_files
from pathlib import Path
from pipeline.core.batch import Batch
from pipeline.core.fields import DataSpec
from pipeline.core.noise import Noise
from pipeline.core.lr_schedule import learning_rate_factor
from pipeline.core.sampler import Sampler
from pipeline.core.settings import read_training
settings, config = read_training(name, model_files.find(name).Config)
data = Path("data/processed/images")
spec = DataSpec.from_json(json.loads((data / "manifest.json").read_text())["fields"])
images, labels = (np.load(data / f"train/{{field}}-00000.npy") for field in spec.fields)
task = model_files.build(name, config, spec, settings.seed)
task = task.to(memory_format=torch.channels_last)
average = [parameter.detach().clone() for parameter in task.parameters()]
phases, order = task.phases(), Sampler(settings.seed, (len(labels),), settings.batch_size)
rates = [phase.optimizer.param_groups[0]["lr"] for phase in phases]
loop = time.perf_counter()
for step in range(1, settings.num_steps + 1):
    rows = order.indices(step)
    batch = Batch.load({{"image": images[rows], "label": labels[rows]}}, spec)
    for phase, rate in zip(phases, rates):
        if step % phase.every == 0:
            task.requires_grad_(False)
            phase.module.requires_grad_(True)
            loss, _ = task.loss(phase.name, batch, Noise.whole(settings.seed, len(rows), phase.name, step))
            phase.optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(phase.module.parameters(), settings.clip_norm or float("inf"))
            factor = learning_rate_factor(settings.schedule, step, settings.num_steps)
            phase.optimizer.param_groups[0]["lr"] = rate * factor
            phase.optimizer.step()
    torch._foreach_lerp_(average, list(task.parameters()), 1 - settings.ema_decay)
ended = time.perf_counter()
torch.save(task.state_dict(), out)
print(json.dumps({{"imports and building": loop - began, "loop": ended - loop}}))
"""


def timed(command: list[str], cwd: Path = Path("."), **more: str) -> tuple[float, str]:
    """Wall seconds and output of a process."""
    began = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **more},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began, done.stdout


def bare(name: str, folder: Path) -> dict[str, float]:
    """Run the bare loop."""
    wall, output = timed([sys.executable, "-c", BARE.format(root=str(ROOT)), name, str(folder / "bare.pt")])
    return {"wall": wall, **json.loads(output.splitlines()[-1])}


def stage(name: str, folder: Path, workers: str) -> dict[str, float]:
    """Run the stage in a new project with the same params and data."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    (folder / "params.yaml").write_text(Path("params.yaml").read_text())
    (folder / "data/processed").mkdir(parents=True)
    (folder / "data/processed/images").symlink_to(Path("data/processed/images").resolve())
    tracking = f"sqlite:///{folder.parent}/mlflow.db"  # the first round creates it
    more = {"DARKROOM_WORKERS": workers, "DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": tracking}
    wall, _ = timed([sys.executable, "-m", "stages.train", name], folder, **more)
    times = json.loads((folder / f"history/{name}/times.json").read_text())
    parts = {
        key: times.get(key, 0.0)
        for key in (
            "start",
            "build",
            "data",
            "compute",
            "validation",
            "samples",
            "checkpoint",
            "write",
            "shutdown",
        )
    }
    parts["reporting and other in the loop"] = times["loop"] - sum(
        times.get(k, 0.0) for k in ("data", "compute", "validation", "samples", "checkpoint")
    )
    parts["imports, MLflow, exit"] = wall - times["total"]
    return {"wall": wall, "loop": times["loop"], **parts}


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="cnn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", nargs="*", default=[], help="also with this many real Ray workers")
    given = parser.parse_args()
    settings = yaml.safe_load(Path("params.yaml").read_text())[given.model]["training"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        modes = ["auto", *given.workers]
        runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in ["bare", *modes]}
        for _ in range(given.rounds):
            runs["bare"].append(bare(given.model, folder))
            for mode in modes:
                runs[mode].append(stage(given.model, folder, mode))
        imports = {
            name: timed([sys.executable, "-c", f"import {name}"])[0]
            for name in ("numpy", "torch", "ray.train.torch", "mlflow")
        }
    plain = median(runs["bare"])
    steps = f"{settings['num_steps']} steps of {settings['batch_size']} images"
    print(f"{given.model}: {steps}, {os.cpu_count()} cores, medians of {given.rounds}\n")
    print(f"bare loop      wall {plain['wall']:6.2f} s   loop {plain['loop']:6.2f} s")
    for mode in modes:
        mine = median(runs[mode])
        ratios = [a["loop"] / b["loop"] for a, b in zip(runs[mode], runs["bare"], strict=True)]
        label = "in process" if mode == "auto" else f"{mode} workers"
        print(f"{label:13}  wall {mine['wall']:6.2f} s   loop {mine['loop']:6.2f} s   ", end="")
        print(f"wall ratio {mine['wall'] / plain['wall']:.2f}   loop ratio {statistics.median(ratios):.3f}")
        print(f"    {'more than the bare process':34} {mine['wall'] - plain['wall']:6.2f} s; all parts:")
        for part, seconds in mine.items():
            if part not in ("wall", "loop"):
                print(f"    {part:34} {seconds:6.2f} s")
    print(
        "\nfresh processes: "
        + ", ".join(f"import {name} {seconds:.2f} s" for name, seconds in imports.items())
    )


if __name__ == "__main__":
    main()
