"""The project that is killed: seven stages on digits of 8 x 8 pixels, and what must be right in it."""

import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.core import metrics_log
from pipeline.environment import Environment
from pipeline.files import digest_of, hashes, read_json
from pipeline.tracking.dvc_lock import DvcLock, locked_stages, read_rwlock
from pipeline.tracking.lineage import md5_of
from tests.chaos.points import RANDOM
from tests.project import PARAMS, ROOT, TRAINING

MODELS = ("cnn", "gan")
STAGES = (
    *("download", "preprocess", "compose-clips", "compose-scenes"),
    *(f"train-{name}" for name in MODELS),
    "evaluate",
)
SETTINGS = {**TRAINING, "num_steps": 40}
COMPOSED = {"num_train": 20, "num_validation": 10, "num_test": 10}
PRIVATE = ("tmp", "site", "cache", "store", "config.local")  # in .dvc, not in git
NAMED_BY_CONTENT, TEMPORARY = (".dvc/cache/", "mlartifacts/"), re.compile(r"/\.|\.tmp$")
LEFT_BY_REPAIR = {"dvc.lock.broken"}  # the damaged file, kept for the user


def create(
    folder: Path,
    chosen: tuple[str, ...] = STAGES,
    training: Mapping[str, Any] = SETTINGS,
    **sections: Mapping[str, Any],
) -> None:
    """A committed project, nothing of which has run yet. Its stages depend on data, not on code.

    ``sections`` are added to those of its params.yaml, or to what is in them.
    """
    for name in ("data/own", "pipeline", "stages"):  # a retraining reads the code in the last two
        (folder / name).mkdir(parents=True)
        (folder / name / "README.md").touch()
    (folder / ".dvc/tmp").mkdir(parents=True)
    (folder / ".dvc/config").write_text(
        "[core]\n    analytics = false\n    check_update = false\n    site_cache_dir = ../.dvc/site\n"
        "    remote = store\n['remote \"store\"']\n    url = store\n"
    )
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    (folder / ".gitignore").write_text(
        (ROOT / ".gitignore").read_text() + "".join(f"/.dvc/{name}\n" for name in PRIVATE)
    )
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    plan = {name: stages[name] for name in chosen}
    for stage in plan.values():
        stage["deps"] = [path for path in stage["deps"] if not path.startswith(("pipeline/", "stages/"))]
    (folder / "dvc.yaml").write_text(json.dumps({"stages": plan}))
    params = {name: PARAMS[name] for name in ("data", "evaluate", "gates", "retrain")}
    params |= {name: {**PARAMS[name], "training": {**SETTINGS, **training}} for name in MODELS}
    params |= {"clips": {**COMPOSED, "num_frames": 4}, "scenes": COMPOSED}
    params |= {name: {**params.get(name, {}), **section} for name, section in sections.items()}
    (folder / "params.yaml").write_text(json.dumps(params))
    git = "git init -q && git add -A && git -c user.name=t -c user.email=t@example.org commit -qm all"
    subprocess.run(["sh", "-c", git], cwd=folder, check=True, timeout=60)


def result(folder: Path, stage: str) -> dict[str, Any]:
    """What a stage made that must have the same bits each time, and what MLflow and the folder show."""
    name = stage.removeprefix("train-")
    if stage == "download":
        made: Any = hashes(folder / "data/raw")
    elif data := {"preprocess": "images", "compose-clips": "clips", "compose-scenes": "scenes"}.get(stage):
        made = hashes(folder / "data/processed" / data)
    elif stage == "evaluate":
        made = hashes(folder / "metrics")
    else:
        log = metrics_log.read(folder / f"history/{name}/metrics.jsonl")
        plain = lambda metrics: {key: metrics[key] for key in metrics if not key.startswith("system/")}
        made = [hashes(folder / f"models/{name}"), [(line["step"], plain(line["metrics"])) for line in log]]
    return described(folder, {stage: made})


def described(folder: Path, made: Mapping[str, Any], *more: Any) -> dict[str, Any]:
    """Digests of what was ``made``, what MLflow shows, with ``more`` of it, and the names of the files."""
    bits = {part: digest_of(content) for part, content in made.items()}
    return {"bits": bits, "mlflow": [_mlflow(folder), *more], "files": _files(folder)}


def _mlflow(folder: Path) -> Any:
    """The runs with state and the numbers of their metrics, the points that are there twice, the aliases."""
    if not (folder / "mlflow.db").exists():
        return []
    with sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True) as database:
        query = (
            "select t.value, r.status, r.run_uuid from runs r join tags t using (run_uuid) where t.key = ?"
        )
        runs = database.execute(query, ("darkroom.stage",)).fetchall()
        query = "select key, step, count(*) from metrics where run_uuid = ? group by key, step"
        points = {run: database.execute(query, (run,)).fetchall() for *_, run in runs}
        aliases = database.execute("select name, alias, version from registered_model_aliases").fetchall()
    found = []
    for stage, status, run in runs:
        own = [point for point in points[run] if not point[0].startswith("system/")]
        found.append([stage, status, len(own), [point for point in own if point[2] > 1]])
    return json.loads(json.dumps([sorted(found), sorted(aliases)]))


def _files(folder: Path) -> list[str]:
    """The names in the project, with * for what differs from run to run; of some folders temporary ones."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    names -= {name for name in names if name.startswith((".git/", ".dvc/tmp/", ".dvc/site/", ".dvc/store/"))}
    names -= {name for name in names if name.startswith(".dvc/cache/files/")}  # removed after ten minutes
    shown = {name for name in names if not name.startswith(NAMED_BY_CONTENT) or TEMPORARY.search(name)}
    return sorted({RANDOM.sub("*", name) for name in shown} - LEFT_BY_REPAIR)


def damaged_dvc_files(folder: Path) -> list[str]:
    """DVC's own files that a kill has left damaged: every later `dvc` command fails."""
    broken = ["dvc.lock"] if _is_damaged(folder / "dvc.lock") else []
    return broken + [".dvc/tmp/rwlock"] * (read_rwlock(folder / ".dvc/tmp/rwlock") is None)


def _is_damaged(dvc_lock: Path) -> bool:
    return dvc_lock.exists() and (not dvc_lock.read_text() or locked_stages(dvc_lock) is None)


def lost(before: Path, after: Path) -> list[str]:
    """Of what was there before a kill, what is not as it was: params, git's HEAD, objects of DVC's cache."""
    kept = ["params.yaml", "dvc.yaml", ".git/HEAD", ".git/refs/heads"]
    kept += [path.relative_to(before).as_posix() for path in (before / ".dvc/cache/files").rglob("*/*/*")]
    return [name for name in kept if md5_of(before / name) != md5_of(after / name)]


def damaged_outputs(folder: Path) -> list[str]:
    """Outputs, cache objects and records that do not match each other."""
    environment = Environment(root=folder)
    params = read_json(folder / "params.yaml")
    problems, _ = DvcLock(environment.root).check_all(params)
    return [str(problem) for problem in problems]


def steps_again(folder: Path, model: str) -> int:
    """The recorded steps of a training of ``model`` after its newest checkpoint."""
    most = 0
    for training in (folder / ".darkroom/trainings").glob(f"{model}-*/"):
        lines = metrics_log.read(training / "metrics.jsonl")
        kept = [int(path.stem.removeprefix("step-")) for path in training.glob("checkpoints/step-*.json")]
        most = max(most, (lines[-1]["step"] if lines else 0) - max(kept, default=0))
    return most
