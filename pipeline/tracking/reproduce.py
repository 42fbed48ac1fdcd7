"""Making a registered model again, from nothing but its commit, its settings and its data, and comparing the bytes."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import environment as surroundings
from pipeline.core.model_files import WEIGHTS, read_card
from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.files import read_json, sha256, write_json
from pipeline.params import PARAMS, read_file
from pipeline.process import DVC
from pipeline.tracking import lineage, registry
from pipeline.tracking.ledger import Ledger

GIT_SECONDS = 60
DVC_SECONDS = 3600
DATA = "data/processed"
MACHINE = (
    "darkroom.machine",
    "darkroom.version.torch",
    "darkroom.device",
    "darkroom.threads",
    "darkroom.workers",
)
TOLERANCE = 1e-3  # on every weight, where one of these is another


@dataclass(frozen=True)
class Verdict:
    """What came of it. ``difference`` is the largest between two weights, 0 for equal bytes; ``machine`` what differs of the machine."""

    expected: str
    found: str
    difference: float
    machine: list[str]

    @property
    def same(self) -> bool:
        """Bit for bit."""
        return self.expected == self.found

    @property
    def passed(self) -> bool:
        """The same, or within the tolerance on a machine that is not the same."""
        return self.same or (bool(self.machine) and self.difference <= TOLERANCE)


def reproduce(environment: Environment, client: Any, version: Any) -> Verdict:
    """Train the registered ``version`` again in a worktree of its commit, with the data that DVC has by its hash.

    Raises ``DarkroomError`` where the commit, the data or the settings cannot be had, or where the training fails.
    """
    tags, where = client.get_run(version.run_id).data.tags, f"{version.name}/{version.version}"
    changed = [
        path for path in tags.get("darkroom.git.changed", "").split(", ") if path not in ("", str(PARAMS))
    ]
    if changed:
        remedy = "commit before you train what others should be able to make again"
        raise DarkroomError(
            f"it was trained with uncommitted changes of {', '.join(changed)}", where=where, remedy=remedy
        )
    with (
        tempfile.TemporaryDirectory() as beside,
        _worktree(environment.root, tags["mlflow.source.git.commit"]) as tree,
    ):
        known = registry.weights(client, version, Path(beside))
        card = read_card(known)
        _set_params(tree / PARAMS, card)
        _bring_data(environment.root, tree, tags)
        made = _train(tree, card, tags)
        expected, found = sha256(known / WEIGHTS), sha256(made / WEIGHTS)
        difference = 0.0 if expected == found else _difference(known / WEIGHTS, made / WEIGHTS)
        here = lineage.version_tags() | {
            f"darkroom.{key}": str(value)
            for key, value in read_json(tree / "history" / card["name"] / "times.json").items()
        }
    machine = [
        f"{key.removeprefix('darkroom.')}: {tags[key]} then, {here[key]} now"
        for key in MACHINE
        if here.get(key) != tags.get(key, here.get(key))
    ]
    return Verdict(expected, found, difference, machine)


@contextmanager
def _worktree(root: Path, commit: str) -> Iterator[Path]:
    """A clean checkout of ``commit`` in a temporary folder, removed at the end."""
    if _run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], root, GIT_SECONDS).returncode:
        raise DarkroomError("its commit is not in this repository", where=commit, remedy="git fetch --all")
    with tempfile.TemporaryDirectory(prefix="darkroom-") as parent:
        tree = Path(parent, "tree")
        try:
            done = _run(
                ["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], root, GIT_SECONDS
            )
            if done.returncode:
                raise DarkroomError(
                    f"no worktree could be made: {done.stderr.strip()[:200]}",
                    where=str(root),
                    remedy="git worktree prune",
                )
            yield tree
        finally:
            _run(["git", "worktree", "remove", "--force", str(tree)], root, GIT_SECONDS)
    _run(["git", "worktree", "prune"], root, GIT_SECONDS)


def _set_params(path: Path, card: Mapping[str, Any]) -> None:
    """The settings that the model's card names, in place of the commit's: an experiment may have been run with others."""
    values = read_file(path)
    values[card["name"]] = {"training": card["training"], "model": card["config"]}
    write_json(path, values)  # JSON is YAML


def _bring_data(root: Path, tree: Path, tags: Mapping[str, str]) -> None:
    """The processed data by its md5, from DVC's cache or a remote; where DVC has it no more, made again from the source."""
    for name in ("config", "config.local"):
        if (root / ".dvc" / name).is_file():
            shutil.copy(root / ".dvc" / name, tree / ".dvc" / name)
    places = {"cache.dir": Ledger(root).cache, "core.site_cache_dir": root / ".dvc/site"}
    for key, place in places.items():
        _run([*DVC, "config", "--local", key, str(place)], tree, DVC_SECONDS)
    md5 = tags.get(f"dvc.md5.{DATA}")
    if md5:
        entry = {"cmd": "python -m stages.preprocess", "outs": [{"path": DATA, "hash": "md5", "md5": md5}]}
        write_json(tree / "dvc.lock", {"schema": "2.0", "stages": {"preprocess": entry}})
        for command in ("checkout", "pull"):
            if _run([*DVC, command, "--quiet", DATA], tree, DVC_SECONDS).returncode == 0:
                return
        (tree / "dvc.lock").unlink()
    print("the data is no longer in DVC's cache or remote: it is made again from its source", flush=True)
    done = _run([*DVC, "repro", "preprocess"], tree, DVC_SECONDS)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["dvc repro failed"])[-1]
        raise DarkroomError(
            f"the data cannot be had: {reason}",
            where=f"{DATA} {md5 or ''}",
            remedy="dvc pull, or bring back its source",
        )


def _train(tree: Path, card: Mapping[str, Any], tags: Mapping[str, str]) -> Path:
    """Run the stage with as many workers as then; the folder of the model that it made."""
    workers = "auto" if tags.get("darkroom.mode", "in process") == "in process" else tags["darkroom.workers"]
    apart = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tree}/mlflow.db",
        "DARKROOM_STORAGE": str(tree / ".darkroom"),
        "DARKROOM_WORKERS": workers,
    }
    command = [sys.executable, "-m", "stages.train", card["name"]]
    if subprocess.run(
        command, cwd=tree, env=surroundings.for_child(apart), check=False
    ).returncode:  # it takes as long as it takes
        raise DarkroomError(
            "the training failed", where=card["name"], remedy="see above; its commit may need other packages"
        )
    made = tree / "models" / card["name"]
    if (data := read_card(made)["data"]) != card["data"]:
        raise DarkroomError(
            f"it was trained on other data: {data[:16]}, not {card['data'][:16]}",
            where=DATA,
            remedy="dvc pull",
        )
    return made


def _difference(one: Path, other: Path) -> float:
    """The largest difference between two weights; infinite where the tensors are not the same ones."""
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    if {name: value.shape for name, value in first.items()} != {
        name: value.shape for name, value in second.items()
    }:
        return float("inf")
    return max(
        float((first[name].double() - second[name].double()).abs().max())
        for name in first
        if first[name].numel()
    )


def _run(command: list[str], where: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    environment = surroundings.for_child({})
    return subprocess.run(
        command, cwd=where, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
