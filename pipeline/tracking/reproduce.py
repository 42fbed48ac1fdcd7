"""Train a registered model again from its commit, settings and data, and compare the weights."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.model_files import WEIGHTS, read_card
from pipeline.environment import Environment, for_child, privacy_key, privacy_secret
from pipeline.errors import DarkroomError
from pipeline.files import read_json, sha256, write_json
from pipeline.git import git, worktree
from pipeline.params import PARAMS, read_file
from pipeline.process import DVC, output
from pipeline.tracking import lineage, registry, rerun
from pipeline.tracking.dvc_lock import cache_folder

DVC_SECONDS = 3600
MACHINE = ("machine", "version.torch", "device", "threads", "workers")  # tags darkroom.<key>
TOLERANCE = 1e-3  # of the difference of a weight, if one of ``MACHINE`` differs


class Reproduction(NamedTuple):
    """Both SHA-256 of the weights, their largest difference, and how the machine differs."""

    expected: str
    found: str
    difference: float
    machine: list[str]


def reproduce(environment: Environment, client: Any, version: Any) -> Reproduction:
    """Train the registered ``version`` again in a worktree of its commit, with its data.

    Raises ``DarkroomError`` if the commit, the data or the settings are not available, or if the training
    fails.
    """
    root, tags = environment.root, client.get_run(version.run_id).data.tags
    if changed := rerun.uncommitted(tags):
        what = f"it was trained with uncommitted changes of {', '.join(changed)}"
        remedy = "commit before you train a model that others should be able to reproduce"
        raise DarkroomError(what, where=f"{version.name}/{version.version}", remedy=remedy)
    commit = tags["mlflow.source.git.commit"]
    if not git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", cwd=root, check=False):
        raise DarkroomError("its commit is not in this repository", where=commit, remedy="git fetch --all")
    with tempfile.TemporaryDirectory() as temporary, worktree(root, commit) as tree:
        registered = registry.weights(client, version, Path(temporary))
        card = read_card(registered)
        secret = _secret(environment, card, registered)
        settings = read_file(tree / PARAMS)  # an experiment may have changed those of the commit
        settings[card["name"]] = {"training": card["training"], "model": card["config"]}
        write_json(tree / PARAMS, settings)  # JSON is YAML
        _restore_inputs(root, tree, card["name"], tags)
        trained = _train(tree, card, tags, secret)
        expected, found = sha256(registered / WEIGHTS), sha256(trained / WEIGHTS)
        difference = 0.0 if expected == found else _difference(registered / WEIGHTS, trained / WEIGHTS)
        times = read_json(tree / "history" / card["name"] / "times.json")
    here = lineage.version_tags() | {f"darkroom.{key}": str(value) for key, value in times.items()}
    pairs = [(key, tags.get(f"darkroom.{key}"), here.get(f"darkroom.{key}")) for key in MACHINE]
    machine = [f"{key}: {then} then, {now} now" for key, then, now in pairs if then not in (None, now)]
    return Reproduction(expected, found, difference, machine)


def _restore_inputs(root: Path, tree: Path, name: str, tags: Mapping[str, str]) -> None:
    """Check out the data, and the models that the model ``name`` needs, by the md5s in ``tags``.

    If DVC's cache and remote lack one of them, all are made from their sources.
    """

    def dvc(*arguments: str) -> None:
        output(*DVC, *arguments, name=f"dvc {arguments[0]}", cwd=tree, timeout_seconds=DVC_SECONDS)

    for file in (root / ".dvc").glob("config*"):
        shutil.copy(file, tree / ".dvc")
    dvc("config", "--local", "cache.dir", str(cache_folder(root)))
    dvc("config", "--local", "core.site_cache_dir", str(root / ".dvc/site"))
    plan = lineage.stages_of(tree / "dvc.yaml")
    makers = {out: stage for stage, section in plan.items() for out in lineage.paths_in(section, "outs")}
    inputs = [dep for dep in lineage.paths_in(plan[f"train-{name}"], "deps") if dep in makers]
    if all(f"dvc.md5.{path}" in tags for path in inputs):
        lock: dict[str, dict[str, Any]] = {}
        for path in inputs:
            entry = lock.setdefault(makers[path], {"cmd": plan[makers[path]]["cmd"], "outs": []})
            entry["outs"].append({"path": path, "hash": "md5", "md5": tags[f"dvc.md5.{path}"]})
        write_json(tree / "dvc.lock", {"schema": "2.0", "stages": lock})
        for command in ("checkout", "pull"):
            with suppress(DarkroomError):
                return dvc(command, *inputs)
        (tree / "dvc.lock").unlink()
    print("the data is not in DVC's cache or remote; making it from its source", flush=True)
    try:
        dvc("repro", *sorted({makers[path] for path in inputs}))
    except DarkroomError as error:
        what, remedy = f"could not restore the data: {error.what}", "dvc pull, or restore its source"
        raise DarkroomError(what, where=", ".join(inputs), remedy=remedy) from None


def _secret(environment: Environment, card: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The variable with the secret of a private model in ``folder``. Raises ``DarkroomError`` for another."""
    if not card["config"].get("privacy"):
        return {}
    from safetensors.torch import load_file

    key = hashlib.sha256(privacy_key(environment, card["fingerprint"])).digest()
    if bytes(load_file(folder / WEIGHTS)["private.key_sha256"].tolist()) != key:
        remedy = "set DARKROOM_PRIVACY_SECRET to the secret of its training"
        what = "the noise of this private model is from another secret"
        raise DarkroomError(what, where=card["name"], remedy=remedy)
    return {"DARKROOM_PRIVACY_SECRET": privacy_secret(environment)}


def _train(tree: Path, card: Mapping[str, Any], tags: Mapping[str, str], secret: dict[str, str]) -> Path:
    """Run the training stage with the original number of workers; the folder of the trained model."""
    name, in_process = card["name"], tags.get("darkroom.mode", "in process") == "in process"
    separate = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tree}/mlflow.db",
        "DARKROOM_STORAGE": str(tree / ".darkroom"),
        "DARKROOM_WORKERS": "auto" if in_process else tags["darkroom.workers"],
    }
    command = [sys.executable, "-m", "stages.train", name]
    if subprocess.run(
        command, cwd=tree, env=for_child(separate | secret), check=False
    ).returncode:  # no time limit
        remedy = "see above; its commit may need other packages"
        raise DarkroomError("the training failed", where=name, remedy=remedy)
    trained = tree / "models" / name
    if (data := read_card(trained)["data"]) != card["data"]:
        what = f"it was trained on other data: {data[:16]}, not {card['data'][:16]}"
        raise DarkroomError(what, where=name, remedy="dvc pull")
    return trained


def _difference(one: Path, other: Path) -> float:
    """The largest difference of a weight; infinite if names or shapes of the tensors differ."""
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    shapes = [{name: weight.shape for name, weight in weights.items()} for weights in (first, second)]
    if shapes[0] != shapes[1]:
        return float("inf")
    differences = (first[name].double() - second[name].double() for name in first if first[name].numel())
    return max(float(difference.abs().max()) for difference in differences)
