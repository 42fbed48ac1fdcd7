"""A training without disk, files, a home or a network: one clear error, then the same command ends well.

Each case runs in namespaces of its own, with a small file system or without a network; that needs unshare(1).
"""

import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.project import ROOT, Project

CAN_UNSHARE = (
    bool(shutil.which("unshare"))
    and not subprocess.run(["unshare", "-m", "-n", "true"], capture_output=True).returncode
)
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not CAN_UNSHARE, reason="unshare is not here, or needs more rights"),
]
TRAIN = f"{sys.executable} -m stages.train cnn"
LONG = "x" * 200
TWO_WORKERS = "1 MB of shared memory and two workers"
MOST_BY_TWO = 1e-3  # two workers add the same numbers in another order
# What is prepared in the namespace, the command, what ends the shortage (empty: the command ends well
# as it is), and parts of the error.
CASES = {
    **{
        f"a disk of {size} KB": (
            f"mount -t tmpfs -o size={size}k tmpfs .darkroom",
            TRAIN,
            "mount -o remount,size=1g .darkroom",
            "No space left on device|free some space",
        )
        for size in (16, 24, 32, 48, 64, 80, 96, 112, 128, 160)
    },
    "a project that is read-only": (
        "mount --bind . . && mount -o remount,ro,bind . && cd .",
        f"cd $PWD && {TRAIN}",
        "mount -o remount,rw,bind $PWD",
        "Read-only file system|mount this file system for writing",
    ),
    "64 open files": ("", f"(ulimit -n 64; {TRAIN})", "", ""),
    "1.5 GB of virtual memory": ("", f"(ulimit -v 1500000; {TRAIN})", "", ""),
    "a home that is missing": ("", f"HOME=/nowhere {TRAIN}", "", ""),
    "a TMPDIR that is missing": ("", f"TMPDIR=/nowhere {TRAIN}", "", ""),
    "a TMPDIR of 200 characters": (f"mkdir {LONG}", f"TMPDIR=$PWD/{LONG} {TRAIN}", "", ""),
    "no network": ("", f"unshare -n {TRAIN}", "", ""),
    "1 MB of shared memory": ("mount -t tmpfs -o size=1m tmpfs /dev/shm", TRAIN, "", ""),
    TWO_WORKERS: ("mount -t tmpfs -o size=1m tmpfs /dev/shm", f"DARKROOM_WORKERS=2 {TRAIN}", "", ""),
}


def small(folder, data):
    """A project with a short training."""
    project = Project(folder / "project", data)
    training = {"num_steps": 12, "batch_size": 32, "checkpoint_every": 4, "validate_every": 6, "log_every": 3}
    project.params["cnn"]["training"] = training
    project.write()
    return project


@pytest.fixture(scope="module")
def whole(tmp_path_factory, processed_digits):
    """The weights of a training that lacks nothing."""
    project = small(tmp_path_factory.mktemp("whole"), processed_digits)
    code, output = project.run("stages.train", "cnn")
    assert code == 0, output
    return load_file(project.folder / "models/cnn/model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_a_training_that_lacks_something_says_what_and_ends_well_afterwards(
    tmp_path, processed_digits, whole, name
):
    prepare, command, relief, words = CASES[name]
    project = small(tmp_path, processed_digits)
    (project.folder / ".darkroom").mkdir(exist_ok=True)
    parts = [prepare, f"{command} > ../first 2>&1; echo $? > ../code"]
    if relief:
        parts += [f"{relief} && {TRAIN} > ../second 2>&1"]
    script = "\n".join(filter(None, parts))
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script],
        cwd=project.folder,
        env=project.environment(PWD=str(project.folder)),
        capture_output=True,
        text=True,
        timeout=280,
    )
    first, code = (tmp_path / "first").read_text(), int((tmp_path / "code").read_text())
    assert done.returncode == 0, done.stderr + first
    assert code == bool(relief), first
    assert "Traceback" not in first and all(part in first for part in words.split("|")), first
    assert sum(line.startswith("error: ") for line in first.splitlines()) == bool(relief)
    found = load_file(project.folder / "models/cnn/model.safetensors")
    most = max(float((found[key] - value).abs().max()) for key, value in whole.items())
    assert found.keys() == whole.keys() and most <= (MOST_BY_TWO if name == TWO_WORKERS else 0), most
    left = [path for path in project.folder.rglob(".*.*") if path.name not in (".darkroom",)]
    assert not [path for path in left if str(os.getpid()) not in path.name and ROOT not in path.parents]
