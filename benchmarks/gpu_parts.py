"""The parts of gpu.py that need no real data. Each measures or checks something and returns its figures."""

import os
import platform
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu_child
import gpu_contract
import torch
from gpu_bench import Bench, LeftOut, default_kernels, settings_for, variants
from gpu_speed import bare_rate, gpu_share, in_turns, loop_rate, make_loop, now, training
from torch import Tensor

import pipeline
from pipeline.core import metrics_log, model_files
from pipeline.core.settings import TrainingSettings
from pipeline.errors import DarkroomError
from pipeline.files import digest_of_tree

MODELS = ("cnn", "gan", "vae", "ae", "vqvae", "transformer", "rcnn", "unet")
PACKAGES = ("torch", "numpy", "pydantic", "safetensors", "ray", "mlflow", "dvc", "pytest")
TOLERANCE = 0.1  # CPU against GPU after four steps, see ``agreement``
KERNELS = ("cnn", "gan")  # the models with which deterministic kernels and precisions are measured


def machine(bench: Bench) -> dict[str, Any]:
    """Hardware and versions."""
    root = Path(pipeline.__file__).parent
    found = {"device": str(bench.device), "python": platform.python_version(), "cores": os.cpu_count()}
    found |= {"system": platform.platform(), "threads": torch.get_num_threads()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        found |= {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 1e9, 1)}
        found |= {"capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}
        found |= {"cudnn": torch.backends.cudnn.version(), "driver": _driver()}
        found |= {"cudnn_tf32": torch.backends.cudnn.allow_tf32}
    return found | {"code": digest_of_tree([root / "core", root / "models"], root)[:12]}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def repeat(bench: Bench) -> dict[str, Any]:
    """Two trainings of each model from scratch: the SHA-256 of their weights."""
    found = bench.found
    for name in MODELS:
        settings = training(bench.sizes.steps, batch_size=bench.sizes.batch_size, ema_decay=0.9)
        with bench.going_on(name):
            digests = [_train(bench, name, settings, f"repeat-{name}-{number}") for number in (1, 2)]
            found[name] = {"sha256": digests[0], "equal": digests[0] == digests[1]}
            bench.check(found[name]["equal"], f"{name}: two trainings differ")
    return found


def _train(bench: Bench, name: str, settings: TrainingSettings, folder: str) -> str:
    """The SHA-256 of the weights of a finished training."""
    path = bench.folder / folder
    trained = make_loop(name, bench.data_for(name), settings, bench.config(name), path, bench.device).run()
    return model_files.write(trained, path / "model", {})["sha256"]


def agreement(bench: Bench) -> dict[str, Any]:
    """The difference between a CPU and this device after four steps in float32.

    It is the norm of the difference of all weights, divided by the norm of their change in these steps. (The
    largest difference says little: Adam takes steps of the same size for a gradient that is only rounding
    errors.) On a CPU, the kernels of oneDNN are compared with PyTorch's own.
    """
    (found := bench.found)["tolerance"] = TOLERANCE
    settings = training(4, batch_size=bench.sizes.batch_size)
    for name in MODELS:
        with bench.going_on(name):
            found[name] = _disagreement(bench, name, settings)
            bench.check(found[name] <= TOLERANCE, f"{name}: the weights differ by {found[name]:.2g}")
    return found


def _disagreement(bench: Bench, name: str, settings: TrainingSettings) -> float:
    data, config = bench.data_for(name), bench.config(name)
    start = model_files.build(name, config, data.spec, settings.seed).state_dict()
    ended = []
    for number, device in enumerate((torch.device("cpu"), bench.device)):
        with _native_kernels() if number and device.type == "cpu" else nullcontext():
            folder = bench.folder / f"agreement-{name}-{number}"
            loop = make_loop(name, data, settings, config, folder, device)
            loop.run()
            ended.append({key: value.cpu() for key, value in loop.task.state_dict().items()})
    return _distance(*ended) / _distance(ended[0], start)


def _distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The Euclidean distance of all weights."""
    return sum(float((first[key].double() - second[key].double()).square().sum()) for key in first) ** 0.5


@contextmanager
def _native_kernels() -> Iterator[None]:
    """Compute without oneDNN."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def contract(bench: Bench) -> dict[str, Any]:
    """The contract tests of all models and variants on this device, as many as fit the time."""
    seconds = min(bench.sizes.contract_seconds * bench.scale, bench.left - 5)
    found, errors = gpu_contract.run_tests(bench.device.type, time.monotonic() + seconds)
    bench.check(found["passed"] > 0, "no test passed")
    bench.check(not errors, "; ".join(f"{name}: {_last(error)}" for name, error in errors.items()))
    return found | {"errors": errors}


def _last(text: str) -> str:
    """The last line of a traceback, and the statement that raised the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" ^~")]
    return ": ".join(lines[-1:-3:-1])


def kill(bench: Bench) -> dict[str, Any]:
    """Kill a training with SIGKILL after a third of its steps, resume it, and compare with a whole one."""
    steps = bench.sizes.killed_steps
    every = {"log_every": steps // 60, "checkpoint_every": steps // 6}
    settings = training(steps, batch_size=bench.sizes.batch_size, ema_decay=0.9).model_copy(update=every)
    job = gpu_child.Job("cnn", bench.data_for("cnn"), settings, bench.config("cnn"), bench.folder / "killed")
    log = job.folder / "run-0/metrics.jsonl"
    process = job.start(bench.device)
    try:
        while (metrics_log.read(log) or [{"step": 0}])[-1]["step"] < steps // 3:
            if process.poll() is not None or bench.left < 0:
                raise RuntimeError(f"the training ended before it was killed: {job.output()[-1000:]}")
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    killed_at = metrics_log.read(log)[-1]["step"]
    (resumed,) = job.run(bench.device, bench.left)
    whole = _train(bench, "cnn", settings, "whole")
    bench.check(killed_at < steps, "the training had ended before it was killed")
    bench.check(resumed["first_step"] > 1, "the second training did not resume")
    bench.check(resumed["sha256"] == whole, "the resumed training differs")
    return {
        "killed_at": killed_at,
        "resumed_from": resumed["first_step"] - 1,
        "steps": steps,
        "equal": resumed["sha256"] == whole,
    }


def speed(bench: Bench) -> dict[str, Any]:
    """For each model: Darkroom's loop against a bare loop in turns, share of the GPU and peak memory."""
    for name in MODELS:
        with bench.going_on(name):
            bench.found[name] = _compare_with_bare(bench, name)
    return bench.found


def _compare_with_bare(bench: Bench, name: str) -> dict[str, Any]:
    settings = settings_for(bench, name, batch_size=bench.sizes.batch_size, ema_decay=0.99)
    given = name, bench.data_for(name), settings, bench.config(name), bench.device
    bare_rate(*given)  # the first run is slower
    shares: list[float] = []
    peaks: list[int] = []

    def product() -> float:
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
        with gpu_share(bench.device) as samples:
            rate = loop_rate(*given)
        shares.extend(samples)
        if bench.device.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated(bench.device))
        return rate

    rates, ratios = in_turns({"bare": lambda: bare_rate(*given), "loop": product}, bench.sizes.rounds)
    return {
        "loop_images_per_second": rates["loop"],
        "bare_images_per_second": rates["bare"],
        "ratio": ratios["loop"],
        "gpu_share": sum(shares) / len(shares) if shares else None,
        "peak_memory_mb": max(peaks) / 1e6 if peaks else None,
    }


def deterministic(bench: Bench) -> dict[str, Any]:
    """The speed with deterministic kernels relative to PyTorch's default kernels, in turns."""
    found = bench.found
    for name in KERNELS:
        settings = settings_for(bench, name, batch_size=bench.sizes.batch_size)
        run = partial(loop_rate, name, bench.data_for(name), settings, bench.config(name), bench.device)
        ways = {"default": partial(default_kernels, run), "deterministic": run}
        rates, ratios = in_turns(ways, bench.sizes.rounds)
        found[name] = {f"{label}_images_per_second": rate for label, rate in rates.items()}
        found[name]["ratio"] = ratios["deterministic"]
    return found


def precision(bench: Bench) -> dict[str, Any]:
    """The speed of each other precision, and of TF32 and compilation."""
    for name in KERNELS:
        settings = settings_for(bench, name, batch_size=bench.sizes.batch_size)
        for changes in variants():
            if "compile" in changes and (name != KERNELS[0] or bench.sizes.tiny or bench.left < 240):
                continue  # it compiles again in each turn, which takes up to a minute
            label = f"{name} {' '.join(f'{key} {value}' for key, value in changes.items())}"
            try:
                bench.found[label] = _compare(bench, name, settings, changes)
            except (DarkroomError, RuntimeError) as error:  # it diverged, or this device cannot do it
                bench.check(False, f"{label}: {error}"[:500])
    return bench.found


def _compare(
    bench: Bench, name: str, settings: TrainingSettings, changes: dict[str, Any]
) -> dict[str, float]:
    """The speed with ``changes`` of the settings, relative to that without."""
    run, changed = partial(loop_rate, name, bench.data_for(name)), settings.model_copy(update=changes)
    first, second = (partial(run, each, bench.config(name), bench.device) for each in (settings, changed))
    if "compile" not in changes:
        second()  # the first run is slower
    rounds = 1 if "compile" in changes else bench.sizes.rounds
    rates, ratios = in_turns({"first": first, "second": second}, rounds)
    return {"images_per_second": rates["second"], "ratio": ratios["second"]}


def ray(bench: Bench) -> dict[str, Any]:
    """The same training through Ray Train's in-process mode: SHA-256 and speed."""
    try:
        import ray  # noqa: F401

        from pipeline.environment import Environment
        from pipeline.launch.training import Training, train
    except ModuleNotFoundError as missing:
        raise LeftOut(f"{missing.name} is not installed") from None
    root = bench.folder / "ray"
    settings = training(bench.sizes.steps, batch_size=bench.sizes.batch_size, ema_decay=0.9)
    place = Environment(root, device=bench.device.type, storage=root, threads=torch.get_num_threads())
    began = now(bench.device)
    job = Training("cnn", settings, bench.config("cnn"), bench.data_for("cnn"))
    outcome = train(job, place, root / "model", root / "history", [])
    seconds, digest = now(bench.device) - began, model_files.read_card(root / "model")["sha256"]
    equal = digest == _train(bench, "cnn", settings, "without-ray")
    bench.check(equal, "the training through Ray differs")
    kept = {key: outcome.times[key] for key in ("mode", "device", "images_per_second")}
    return {"equal": equal, "seconds": seconds, **kept}
