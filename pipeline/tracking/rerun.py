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
from pipeline.git import git
from pipeline.params import PARAMS, read_file

MAX_SHOWN = 3  # params in the name of a run
# Text that needs no quotes in Hydra's overrides.
PLAIN = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)


@dataclass(frozen=True)
class Change:
    """A param that differs from the commit. ``kind``: '' (another value), '+' (added) or '~' (removed)."""

    key: str
    value: Any
    kind: str = ""

    @property
    def override(self) -> str:
        """The change as an argument of ``dvc exp run -S`` (Hydra's grammar)."""
        if self.kind == "~":
            return f"~{self.key}"
        plain = isinstance(self.value, str) and PLAIN.fullmatch(self.value)
        return f"{self.kind}{self.key}={self.value if plain else json.dumps(self.value, ensure_ascii=False)}"

    def title(self, stage: str) -> str:
        """The change as short text for the name of a run of ``stage``."""
        section, _, rest = self.key.partition(".")
        prefix = "" if stage == f"train-{section}" or not rest else f"{section} "
        name = prefix + (rest.removeprefix("training.").removeprefix("model.") or section)
        return f"without {name}" if self.kind == "~" else f"{name}={as_text(self.value)[:40]}"


def as_text(value: Any) -> str:
    """Text as it is, other values as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


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


def committed(root: Path, commit: str = "HEAD") -> dict[str, Any]:
    """The params in a commit by dotted key; empty without a repository, or if the commit has none."""
    text = git("show", f"{commit}:./{PARAMS}", cwd=root, check=False)
    try:
        return leaves(YAML(typ="safe", pure=True).load(text)) if text else {}
    except (YAMLError, AttributeError):
        return {}


def changes(root: Path, params: Mapping[str, Any] | None = None) -> list[Change]:
    """How ``params`` (by dotted key; None: params.yaml) differ from the commit; empty without a commit."""
    before, now = committed(root), read_params(root) if params is None else params
    return difference(before, now) if before and now else []


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What has to be changed in the params ``before`` to get ``after``, both by dotted key."""
    found = [
        Change(key, value, "" if key in before else "+")
        for key, value in after.items()
        if key not in before or before[key] != value
    ]
    for key in sorted(before.keys() - after.keys()):
        # If a value has become a mapping, or the reverse, other keys show the change.
        if not any(other.startswith(f"{key}.") or key.startswith(f"{other}.") for other in after):
            found.append(Change(key, None, "~"))
    return found


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
    overrides = [word for change in changed for word in ("-S", change.override)]
    last = ["dvc", "exp", "run", *overrides] if changed else ["dvc", "repro"]
    return [f"git checkout {commit}", "dvc pull --allow-missing", shlex.join(last + [stage] * bool(stage))]


def uncommitted(tags: Mapping[str, str]) -> list[str]:
    """The files apart from params.yaml that had uncommitted changes, from the tags of a run."""
    paths = tags.get("darkroom.git.changed", "").split(", ")
    return [path for path in paths if path not in ("", str(PARAMS))]


def note(stage: str, tags: Mapping[str, str], changed: list[Change]) -> str:
    """The commands as Markdown, with a warning about uncommitted changes."""
    lines = commands(stage, tags, changed)
    if not lines:
        return "No command can repeat it: its folder was not a git repository with a commit."
    warning = ""
    if edited := ", ".join(uncommitted(tags)):
        warning = f"It ran with uncommitted changes of {edited}, which these commands do not restore.\n\n"
    return "\n".join([f"{warning}To repeat it:\n\n```sh", *lines, "```"])
