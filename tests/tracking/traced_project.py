"""A small project with stages of its own, whose lineage is traced and verified."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.environment import Environment
from pipeline.files import digest_of, read_json
from pipeline.tracking.runs import Description, open_run

URL = "https://example.org/digits.gz"
MAKE = """
import hashlib, json, shutil, sys
from collections.abc import Callable
from pathlib import Path

def write(path, data):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    folder = "data/processed/images/" if "processed" in path else "data/raw/"
    return {"file": path.removeprefix(folder), "sha256": digest}

if sys.argv[1] == "download":
    entry = write("data/raw/digits.gz", b"raw" * 99)
    source = {"sha256": entry["sha256"], "url": "https://example.org/digits.gz"}
    write("data/raw/source.json", {"files": {"digits.gz": source}})
elif sys.argv[1] == "preprocess":
    kinds = ("image", "label")
    shard = {kind: write(f"data/processed/images/test/{kind}-0.npy", kind.encode() * 99) for kind in kinds}
    write("data/processed/images/manifest.json", {"splits": {"test": {"shards": [shard]}}})
elif sys.argv[1] == "train":
    shutil.copytree("given/model", "models/cnn")
    write("history/cnn/metrics.jsonl", b"{}")
    write("history/cnn/times.json", b"{}")
else:
    write("metrics/evaluation.json", {"accuracy": 1.0})
    write("plots/pictures/cnn.png", b"picture" * 99)
    write("reports/index.html", b"report" * 99)
"""
STAGES = {
    "download": ([], ["data/raw"], "data.source"),
    "preprocess": (["data/raw"], ["data/processed/images"], "data"),
    "train-cnn": (["data/processed/images", "given"], ["models/cnn", "history/cnn"], "cnn"),
    "evaluate": (
        ["models", "history"],  # folders of outputs
        ["plots", "reports", {"metrics/evaluation.json": {"cache": False}}],
        "cnn.steps",
    ),
}
FILES = [
    "data/raw/digits.gz",
    "data/raw/source.json",
    "data/processed/images/test/image-0.npy",
    "data/processed/images/manifest.json",
    "models/cnn/model.safetensors",
    "models/cnn/model.json",
    "history/cnn/metrics.jsonl",
    "plots/pictures/cnn.png",
    "metrics/evaluation.json",
    "reports/index.html",
]
LOCAL = "/data /models /history /plots /reports /mlflow.db* /mlartifacts /storage /.dvc/cache /.dvc/tmp"
CONFIG = """[core]
    remote = store
    analytics = false
    site_cache_dir = {0}/site
['remote "store"']
    url = {0}/store
"""


def shell(folder: Path, command: str) -> None:
    words = [*([sys.executable, "-m"] if command.startswith("dvc") else []), *command.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def flip(path: Path) -> None:
    """Change one bit in the middle of a file; a second call undoes it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def environment_of(root: Path) -> Environment:
    return Environment(
        root=root,
        storage=root / "storage",
        tracking_uri=f"sqlite:///{root}/mlflow.db",
        artifacts=str(root / "mlartifacts"),
    )


def titles(node) -> str:
    return "\n".join(part.title for part in node.walk())


def make_project(base: Path, write_model: Callable[[Path, str], Path]) -> Path:
    """A project after a repro, committed and pushed, with its training in MLflow."""
    root = base / "origin"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text(CONFIG.format(base))
    (root / ".gitignore").write_text("\n".join(LOCAL.split()))
    (root / "make.py").write_text(MAKE)
    (root / "params.yaml").write_text(json.dumps({"data": {"source": "toy"}, "cnn": {"steps": 3}}))
    write_model(root / "given/model", "cnn")
    stages = {
        name: {
            "cmd": shlex.join([sys.executable, "make.py", name.split("-")[0]]),
            "deps": ["make.py", *deps],
            "params": [param],
            "outs": outs,
        }
        for name, (deps, outs, param) in STAGES.items()
    }
    (root / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    shell(root, "git init -q")
    shell(root, "dvc repro -q")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DVC_STAGE", "train-cnn")
        digest = digest_of(read_json(root / "data/processed/images/manifest.json"))
        with open_run(
            environment_of(root),
            Description("train-cnn", "f" * 64, {"steps": 3}, "toy", digest, "data/processed/images"),
        ) as run:
            run.log_artifact(root / "make.py", "tools")
            assert run.register(Path("models/cnn"), "cnn") == "1"
    for command in (
        "git add .",
        "git -c user.name=t -c user.email=t@example.org commit -qm made",
        "dvc push -q",
    ):
        shell(root, command)
    return root
