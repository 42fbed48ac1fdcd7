"""Compare the speed of `download` and `preprocess` of an older commit with the present code, in turns.

    python benchmarks/preprocessing.py 58d87d9 --folder /tmp/speed [--count 200000] [--rounds 3] [--prepare]

Writes ``count`` different JPEG files of 32 x 32 pixels to <folder>/pictures, unless they are there from an
earlier call (--prepare: and ends). Each turn copies and preprocesses all of them in an empty project, with
the old and then the present code, in the next round the other way round. The last line is the present speed
as a multiple of the old one, in wall time: the median over the rounds, the lowest and the highest. It needs
an idle machine.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from large import pictures

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32
STAGES = ("download", "preprocess")


def write_pictures(folder: Path, count: int) -> None:
    """Write the files, unless all are there."""
    mark = folder.with_suffix(".count")
    if mark.is_file() and mark.read_text() == str(count):
        return
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in pictures(count, SIZE):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    mark.write_text(str(count))


def check_out(commit: str, folder: Path) -> None:
    """Write the files of ``commit`` to ``folder``."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            tar.extractall(folder, filter="data")


def seconds_of(code: Path, folder: Path) -> dict[str, float]:
    """Wall seconds of the stages of ``code``, in a new project in ``folder``."""
    with tempfile.TemporaryDirectory(dir=folder) as project:
        data = {"source": "folder", "folder": str(folder / "pictures"), "image_size": SIZE}
        (Path(project) / "params.yaml").write_text(json.dumps({"data": data}))
        found = {}
        for stage in STAGES:
            began = time.perf_counter()
            command = [sys.executable, "-m", f"stages.{stage}"]
            environment = os.environ | {"PYTHONPATH": str(code)}
            done = subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True)
            if done.returncode:
                sys.exit(f"{code}: {stage} failed\n{done.stdout}{done.stderr}")
            found[stage] = time.perf_counter() - began
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="the old code")
    parser.add_argument("--folder", type=Path, required=True, help="where pictures and copies are kept")
    parser.add_argument("--count", type=int, default=200_000, help="pictures, at most 600,000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prepare", action="store_true", help="only write the pictures")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_pictures(folder / "pictures", given.count)
    if given.prepare:
        return
    ratios = []
    with tempfile.TemporaryDirectory(dir=folder) as old:
        check_out(given.commit, Path(old))
        codes = {given.commit: Path(old), "present": ROOT}
        for number in range(given.rounds):
            times = {
                name: seconds_of(codes[name], folder) for name in sorted(codes, reverse=bool(number % 2))
            }
            for name, found in times.items():
                parts = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in found.items())
                print(f"{name:>8}: {parts}, {given.count / sum(found.values()):,.0f} images/s", flush=True)
            ratios.append(sum(times[given.commit].values()) / sum(times["present"].values()))
    interval = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    print(f"present speed / speed of {given.commit}: {interval}")


if __name__ == "__main__":
    main()
