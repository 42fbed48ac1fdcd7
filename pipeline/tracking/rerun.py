"""The commands that repeat a run: its commit, and the params that differed from the commit."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import BadInput
from pipeline.params import PARAMS, read_file
from pipeline.tracking import lineage

MAX_SHOWN = 3  # params in the name of a run
PLAIN = re.compile(r"[A-Za-z_][\w./-]*")  # text that needs no quotes in Hydra's overrides
KEYWORDS = ("true", "false", "null", "nan", "inf")  # of Hydra: as text they need quotes


@dataclass(frozen=True)
class Change:
    """A param that differs from the commit. ``kind``: '' (another value), '+' (added) or '~' (removed)."""

    key: str
    value: Any
    kind: str = ""

    @property
    def override(self) -> str:
        """The change as an argument of ``dvc exp run -S`` (Hydra's grammar)."""
        return f"~{self.key}" if self.kind == "~" else f"{self.kind}{self.key}={_hydra(self.value)}"

    def title(self, stage: str) -> str:
        """The change as short text for the name of a run of ``stage``."""
        section, _, rest = self.key.partition(".")
        prefix = "" if stage == f"train-{section}" or not rest else f"{section} "
        name = prefix + (rest.removeprefix("training.").removeprefix("model.") or section)
        text = self.value if isinstance(self.value, str) else json.dumps(self.value)
        return f"without {name}" if self.kind == "~" else f"{name}={text[:40]}"


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested params by dotted key. Lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def read_params(root: Path) -> dict[str, Any]:
    """The params of the project in ``root`` by dotted key; empty if they cannot be read."""
    try:
        return leaves(read_file(root / PARAMS))
    except BadInput:
        return {}


def changes(root: Path) -> list[Change]:
    """How params.yaml differs from the commit, in the order of the file; empty outside a repository."""
    text = lineage.run_git(root, "show", f"HEAD:./{PARAMS}")
    try:
        committed = leaves(json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))) if text else {}
    except (YAMLError, TypeError, ValueError, AttributeError):
        return []
    now = read_params(root)
    if not committed or not now:
        return []
    differing = [key for key, value in now.items() if committed.get(key) != value or key not in committed]
    found = [Change(key, now[key], "" if key in committed else "+") for key in differing]
    removed = [key for key in committed if key not in now and not _is_restructured(key, now)]
    return found + [Change(key, None, "~") for key in removed]


def of_stage(changed: list[Change], stage: str) -> list[Change]:
    """The changes that affect a stage: for ``train-<model>`` those of data and model, otherwise all."""
    name = stage.removeprefix("train-")
    return [change for change in changed if name == stage or change.key.partition(".")[0] in ("data", name)]


def title(changed: list[Change], stage: str = "") -> str:
    """The first changes as text for the name of a run of ``stage`` ('': all stages)."""
    shown = [change.title(stage) for change in changed[:MAX_SHOWN]]
    return ", ".join(shown + [f"{len(changed) - MAX_SHOWN} more"] * (len(changed) > MAX_SHOWN))


def commands(stage: str, tags: Mapping[str, str], changed: list[Change]) -> list[str]:
    """The commands that repeat ``stage`` ('': all stages) from its commit; empty if the commit is unknown."""
    commit = tags["mlflow.source.git.commit"]
    if commit == "unknown":
        return []
    overrides = [word for change in changed for word in ("-S", shlex.quote(change.override))]
    last = ["dvc", "exp", "run", *overrides] if changed else ["dvc", "repro"]
    return [f"git checkout {commit}", "dvc pull --allow-missing", " ".join([*last, *filter(None, [stage])])]


def uncommitted(tags: Mapping[str, str]) -> list[str]:
    """The files apart from params.yaml that had uncommitted changes, from the tags of a run."""
    return [
        path for path in tags.get("darkroom.git.changed", "").split(", ") if path not in ("", str(PARAMS))
    ]


def note(stage: str, tags: Mapping[str, str], changed: list[Change]) -> str:
    """The commands as Markdown, with a warning about uncommitted changes."""
    lines = commands(stage, tags, changed)
    if not lines:
        return "No command can repeat it: its folder was not a git repository with a commit."
    warning = ""
    if edited := uncommitted(tags):
        files = ", ".join(edited)
        warning = f"It ran with uncommitted changes of {files}, which these commands do not restore.\n\n"
    return f"{warning}To repeat it:\n\n```sh\n" + "\n".join(lines) + "\n```"


def _is_restructured(key: str, now: Mapping[str, Any]) -> bool:
    """Whether ``key`` was a value and is now a mapping, or the reverse. Then other keys show the change."""
    return any(other.startswith(f"{key}.") or key.startswith(f"{other}.") for other in now)


def _hydra(value: Any) -> str:
    if isinstance(value, str):
        if PLAIN.fullmatch(value) and value.lower() not in KEYWORDS:
            return value
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
