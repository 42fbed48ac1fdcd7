"""Train a registered model again from its commit, settings and data, and compare the weights."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.model_files import WEIGHTS, read_card
from pipeline.environment import Environment, for_child
from pipeline.errors import DarkroomError
from pipeline.files import read_json, sha256, write_json
from pipeline.params import PARAMS, read_file
from pipeline.process import DVC
from pipeline.tracking import lineage, registry, rerun
from pipeline.tracking.dvc_lock import DvcLock

GIT_SECONDS = 60
DVC_SECONDS = 3600
DATA = "data/processed/images"
MACHINE = ("machine", "version.torch", "device", "threads", "workers")  # tags darkroom.<key>
TOLERANCE = 1e-3  # of every weight, if one of ``MACHINE`` differs


@dataclass(frozen=True)
class Verdict:
    """The result: both SHA-256, the largest difference of a weight, and how the machine differs."""

    expected: str
    found: str
    difference: float
    machine: list[str]

    @property
    def same(self) -> bool:
        """Whether the weights are equal bit for bit."""
        return self.expected == self.found

    @property
    def passed(self) -> bool:
        """Whether the weights are equal; on another machine, within the tolerance."""
        return self.same or (bool(self.machine) and self.difference <= TOLERANCE)


def reproduce(environment: Environment, client: Any, version: Any) -> Verdict:
    """Train the registered ``version`` again in a worktree of its commit, with its data.

    Raises ``DarkroomError`` if the commit, the data or the settings are not available, or if the training
    fails.
    """
    tags = client.get_run(version.run_id).data.tags
    if changed := rerun.uncommitted(tags):
        raise DarkroomError(
            f"it was trained with uncommitted changes of {', '.join(changed)}",
            where=f"{version.name}/{version.version}",
            remedy="commit before you train a model that others should be able to reproduce",
        )
    with (
        tempfile.TemporaryDirectory() as temporary,
        _worktree(environment.root, tags["mlflow.source.git.commit"]) as tree,
    ):
        registered = registry.weights(client, version, Path(temporary))
        card = read_card(registered)
        _set_params(tree / PARAMS, card)
        _restore_data(environment.root, tree, tags)
        trained = _train(tree, card, tags)
        expected, found = sha256(registered / WEIGHTS), sha256(trained / WEIGHTS)
        difference = 0.0 if expected == found else _difference(registered / WEIGHTS, trained / WEIGHTS)
        times = read_json(tree / "history" / card["name"] / "times.json")
        here = lineage.version_tags() | {f"darkroom.{key}": str(value) for key, value in times.items()}
    pairs = [(key, tags.get(f"darkroom.{key}"), here.get(f"darkroom.{key}")) for key in MACHINE]
    machine = [f"{key}: {then} then, {now} now" for key, then, now in pairs if then not in (None, now)]
    return Verdict(expected, found, difference, machine)


@contextmanager
def _worktree(root: Path, commit: str) -> Iterator[Path]:
    """A clean checkout of ``commit`` in a temporary folder, removed at the end."""
    if _run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], root, GIT_SECONDS).returncode:
        raise DarkroomError("its commit is not in this repository", where=commit, remedy="git fetch --all")
    with tempfile.TemporaryDirectory(prefix="darkroom-") as parent:
        tree = Path(parent, "tree")
        try:
            command = ["git", "worktree", "add", "--quiet", "--detach", str(tree), commit]
            done = _run(command, root, GIT_SECONDS)
            if done.returncode:
                what = f"could not create a worktree: {done.stderr.strip()[:200]}"
                raise DarkroomError(what, where=str(root), remedy="git worktree prune")
            yield tree
        finally:
            _run(["git", "worktree", "remove", "--force", str(tree)], root, GIT_SECONDS)
    _run(["git", "worktree", "prune"], root, GIT_SECONDS)


def _set_params(path: Path, card: Mapping[str, Any]) -> None:
    """Set the params to those of the model's card: an experiment may have changed those of the commit."""
    values = read_file(path)
    values[card["name"]] = {"training": card["training"], "model": card["config"]}
    write_json(path, values)  # JSON is YAML


def _restore_data(root: Path, tree: Path, tags: Mapping[str, str]) -> None:
    """Check out the processed data by its md5; if DVC's cache and remote lack it, make it from its source."""
    for name in ("config", "config.local"):
        if (root / ".dvc" / name).is_file():
            shutil.copy(root / ".dvc" / name, tree / ".dvc" / name)
    folders = {"cache.dir": DvcLock(root).cache, "core.site_cache_dir": root / ".dvc/site"}
    for key, folder in folders.items():
        _run([*DVC, "config", "--local", key, str(folder)], tree, DVC_SECONDS)
    md5 = tags.get(f"dvc.md5.{DATA}")
    if md5:
        entry = {"cmd": "python -m stages.preprocess", "outs": [{"path": DATA, "hash": "md5", "md5": md5}]}
        write_json(tree / "dvc.lock", {"schema": "2.0", "stages": {"preprocess": entry}})
        for command in ("checkout", "pull"):
            if _run([*DVC, command, "--quiet", DATA], tree, DVC_SECONDS).returncode == 0:
                return
        (tree / "dvc.lock").unlink()
    print("the data is not in DVC's cache or remote; making it from its source", flush=True)
    done = _run([*DVC, "repro", "preprocess"], tree, DVC_SECONDS)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["dvc repro failed"])[-1]
        remedy = "dvc pull, or restore its source"
        raise DarkroomError(
            f"could not restore the data: {reason}", where=f"{DATA} {md5 or ''}", remedy=remedy
        )


def _train(tree: Path, card: Mapping[str, Any], tags: Mapping[str, str]) -> Path:
    """Run the training stage with the original number of workers; the folder of the trained model."""
    workers = "auto" if tags.get("darkroom.mode", "in process") == "in process" else tags["darkroom.workers"]
    separate = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tree}/mlflow.db",
        "DARKROOM_STORAGE": str(tree / ".darkroom"),
        "DARKROOM_WORKERS": workers,
    }
    command = [sys.executable, "-m", "stages.train", card["name"]]
    done = subprocess.run(command, cwd=tree, env=for_child(separate), check=False)  # no time limit
    if done.returncode:
        remedy = "see above; its commit may need other packages"
        raise DarkroomError("the training failed", where=card["name"], remedy=remedy)
    trained = tree / "models" / card["name"]
    if (data := read_card(trained)["data"]) != card["data"]:
        what = f"it was trained on other data: {data[:16]}, not {card['data'][:16]}"
        raise DarkroomError(what, where=DATA, remedy="dvc pull")
    return trained


def _difference(one: Path, other: Path) -> float:
    """The largest difference of a weight; infinite if names or shapes of the tensors differ."""
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    if first.keys() != second.keys() or any(first[name].shape != second[name].shape for name in first):
        return float("inf")
    differences = (first[name].double() - second[name].double() for name in first if first[name].numel())
    return max(float(difference.abs().max()) for difference in differences)


def _run(command: list[str], folder: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=for_child({}), capture_output=True, text=True, timeout=seconds, check=False
    )
