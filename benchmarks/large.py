"""Measure memory and speed with data that do not fit into memory.

    python benchmarks/large.py [--count 200000] [--folder /tmp]

Creates a zip of JPEG images of 96 x 96, runs the stages `download` and `preprocess`, then trains a small cnn
on the shards: from the page cache (warm), from the disk (cold: the shards are dropped from the page cache),
and alternating with the same training on data in memory (both). Each line is one process. "memory" is the
peak of its anonymous pages, sampled every 0.1 s; "resident" includes the pages of mapped files, which the
kernel can reclaim. Needs Linux and disk space for 1.5 times the decoded images.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.core import model_files
from pipeline.core.dataset import Dataset, Split
from pipeline.core.loop import Loop
from pipeline.core.settings import TrainingSettings
from pipeline.core.task import DataSpec
from pipeline.process import keep_freed_memory

SIZE, CLASSES, DISTINCT, TURNS = 96, 10, 300, 8
PARAMS = {
    "source": "folder",
    "folder": "pictures.zip",
    "image_size": SIZE,
    "validation_fraction": 0.01,
    "test_fraction": 0.05,
}


def pictures(count: int, size: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of ``count`` JPEG files, at most 600,000, in class folders.

    ``DISTINCT`` images are repeated with varying quantisation tables, so that all decode to different pixels.
    """
    random, encoded = np.random.default_rng(0), []
    for number in range(DISTINCT):
        stream, coarse = io.BytesIO(), random.integers(0, 128, (24, 24, 3)) + 12 * (number % CLASSES)
        Image.fromarray(coarse.astype(np.uint8)).resize((size, size)).save(stream, "JPEG", quality=90)
        encoded.append(stream.getvalue())
    for number in range(count):
        data, variant = bytearray(encoded[number % DISTINCT]), number // DISTINCT
        at = data.index(b"\xff\xdb") + 5  # the brightness table
        data[at : at + 3] = 3 + variant % 8, 2 + variant // 8 % 16, 2 + variant // 128 % 16
        yield f"class-{number % CLASSES}/{number:07d}.jpg", bytes(data)


def watched(command: list[str], folder: Path) -> tuple[float, str, str]:
    """Wall seconds, output and peak memory of a process."""
    began, anonymous, resident = time.perf_counter(), 0, 0  # sizes in kB
    with subprocess.Popen(
        [sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            )
            anonymous, resident = (
                max(a, int(status.get(b, "0").split()[0]))
                for a, b in ((anonymous, "RssAnon"), (resident, "VmHWM"))
            )
            time.sleep(0.1)
        text, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed\n{text}")
    return (
        time.perf_counter() - began,
        text,
        f"memory {anonymous / 976_562:.2f} GB, resident {resident / 976_562:.2f} GB",
    )


def train(mode: str, steps: str) -> None:
    """The child process: train on data/processed/images and print the measurements."""
    keep_freed_memory()  # as a worker does
    began, folder = time.perf_counter(), Path("data/processed/images")
    data = Dataset.open(folder)
    result = {"opened": time.perf_counter() - began, "shards": [], "memory": []}
    splits = {"shards": data.train}
    if mode == "cold":
        os.sync()
        for path in folder.rglob("*.npy"):
            os.posix_fadvise(os.open(path, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    if mode == "both":
        shards = data.manifest["splits"]["train"]["shards"]
        loaded = [
            {name: np.load(folder / shard[name]["file"]) for name in data.spec.fields} for shard in shards
        ]
        splits["memory"] = Split(loaded, data.spec)
    for seed in range(TURNS if mode == "both" else 1):
        for name in sorted(splits, reverse=bool(seed % 2)):  # the order alternates
            data.train = splits[name]
            settings = TrainingSettings(
                seed=seed,
                num_steps=int(steps),
                batch_size=128,
                log_every=int(steps),
                validate_every=int(steps),
            )
            task = model_files.build(
                "cnn",
                {"channels": [8, 16, 16], "dense": [32]},
                DataSpec.labelled_images(3, SIZE, CLASSES),
                seed,
            )
            loop = Loop(
                task,
                data,
                settings,
                Path(tempfile.mkdtemp(dir=".")),
                report=(metrics := dict[str, float]()).update,
            )
            before, state = time.process_time(), loop.run().state_dict()
            processor_seconds = time.process_time() - before
            batch_ms = loop.seconds["data"] / int(steps) * 1000
            weights = b"".join(value.numpy().tobytes() for value in state.values())
            speed = (metrics["system/images_per_second"], 1 / processor_seconds, batch_ms)
            result[name].append((*speed, hashlib.sha256(weights).hexdigest()))
    print(json.dumps(result))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200_000, help="pictures, at most 600,000")
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        return train(*given.train)
    print(
        f"{given.count:,} pictures, {given.count * 3 * SIZE**2 / 1e9:.1f} GB decoded, {os.cpu_count()} cores"
    )
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        (folder / "params.yaml").write_text(json.dumps({"data": PARAMS}))
        with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
            for name, data in pictures(given.count, SIZE):
                archive.writestr(name, data)
        watched(["-m", "stages.download"], folder)
        wall, _, memory = watched(["-m", "stages.preprocess"], folder)
        print(f"preprocess   {given.count / wall:6,.0f} images/s   {memory}", flush=True)
        for mode, steps in (("warm", "100"), ("cold", "100"), ("both", "30")):
            _, text, memory = watched([str(Path(__file__).resolve()), "--train", mode, steps], folder)
            result = json.loads(text.splitlines()[-1])
            rate, _, batch = np.median([one[:3] for one in result["shards"]], axis=0)
            seconds = f"opened in {result['opened']:.1f} s, {batch:.1f} ms a batch"
            print(f"train, {mode:5} {rate:6,.0f} images/s   {memory}   {seconds}", flush=True)
    pairs = list(zip(result["shards"], result["memory"], strict=True))
    for index, what in enumerate(("images/s", "images in a second of processor time")):
        ratios = [mine[index] / other[index] for mine, other in pairs]
        interval = f"{np.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{what}, shards / memory, {TURNS} turns: {interval}")
    print(f"the same weights: {all(mine[3] == other[3] for mine, other in pairs)}")


if __name__ == "__main__":
    main()
