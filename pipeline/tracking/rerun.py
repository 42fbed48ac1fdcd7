"""How a run can be made again: its commit, the params that were not the commit's, and what a command cannot bring back."""

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

MAX_SHOWN = 3  # params in a name
PLAIN = re.compile(r"[A-Za-z_][\w./-]*")  # text that needs no quotes among Hydra's overrides
WORDS = ("true", "false", "null", "nan", "inf")  # which Hydra does not read as text


@dataclass(frozen=True)
class Change:
    """A param that is not as committed: ``kind`` is '' (another value), '+' (the commit lacks it) or '~' (the commit has it)."""

    key: str
    value: Any
    kind: str = ""

    @property
    def override(self) -> str:
        """The change as ``dvc exp run -S`` takes it (Hydra's grammar)."""
        return f"~{self.key}" if self.kind == "~" else f"{self.kind}{self.key}={_hydra(self.value)}"

    def title(self, stage: str) -> str:
        """The change as a short text for the name of a run of ``stage``, which says what model it is."""
        section, _, rest = self.key.partition(".")
        own = "" if stage == f"train-{section}" or not rest else f"{section} "
        name = own + (rest.removeprefix("training.").removeprefix("model.") or section)
        text = self.value if isinstance(self.value, str) else json.dumps(self.value)
        return f"without {name}" if self.kind == "~" else f"{name}={text[:40]}"


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested params by dotted key; a list or an empty mapping is one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            leaves(value, f"{prefix}{key}.")
            if isinstance(value, Mapping) and value
            else {f"{prefix}{key}": value}
        )
    return flat


def read_params(root: Path) -> dict[str, Any]:
    """The params of ``root``, by dotted key; none where they cannot be read."""
    try:
        return leaves(read_file(root / PARAMS))
    except BadInput:
        return {}


def changes(root: Path) -> list[Change]:
    """How params.yaml differs from the current commit's, in the file's order; nothing outside a repository."""
    text = lineage._git(root, "show", f"HEAD:./{PARAMS}")
    try:
        committed = leaves(json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))) if text else {}
    except (YAMLError, TypeError, ValueError, AttributeError):
        return []
    now = read_params(root)
    if not committed or not now:
        return []
    differing = [key for key, value in now.items() if committed.get(key) != value or key not in committed]
    found = [Change(key, now[key], "" if key in committed else "+") for key in differing]
    return found + [
        Change(key, None, "~") for key in committed if key not in now and not _is_refined(key, now)
    ]


def of_stage(changed: list[Change], stage: str) -> list[Change]:
    """The changes that concern a stage: for ``train-<model>`` those of the data and of that model, for others all."""
    name = stage.removeprefix("train-")
    return [change for change in changed if name == stage or change.key.partition(".")[0] in ("data", name)]


def title(changed: list[Change], stage: str = "") -> str:
    """Some changes as text for the name of a run of ``stage`` ('': of all stages); empty for none."""
    shown = [change.title(stage) for change in changed[:MAX_SHOWN]]
    return ", ".join(shown + [f"{len(changed) - MAX_SHOWN} more"] * (len(changed) > MAX_SHOWN))


def commands(stage: str, tags: Mapping[str, str], changed: list[Change]) -> list[str]:
    """The commands that make ``stage`` ('': all) again from its commit; none where no commit is known."""
    commit = tags["mlflow.source.git.commit"]
    if commit == "unknown":
        return []
    overrides = [word for change in changed for word in ("-S", shlex.quote(change.override))]
    last = ["dvc", "exp", "run", *overrides] if changed else ["dvc", "repro"]
    return [
        f"git checkout {commit}",
        "dvc pull --allow-missing",
        " ".join([*last, *([stage] if stage else [])]),
    ]


def note(stage: str, tags: Mapping[str, str], changed: list[Change]) -> str:
    """The commands with what they cannot bring back, as Markdown."""
    lines = commands(stage, tags, changed)
    if not lines:
        return "It cannot be made again by a command: its folder was no git repository with a commit."
    edited = [
        path for path in tags.get("darkroom.git.changed", "").split(", ") if path not in ("", str(PARAMS))
    ]
    warning = (
        f"It ran with uncommitted changes of {', '.join(edited)}, which these commands do not bring back.\n\n"
        if edited
        else ""
    )
    return f"{warning}To make it again:\n\n```sh\n" + "\n".join(lines) + "\n```"


def _is_refined(key: str, now: Mapping[str, Any]) -> bool:
    """Whether ``key`` was one value and is a mapping by now, or the other way round: the other keys say so."""
    return any(other.startswith(f"{key}.") or key.startswith(f"{other}.") for other in now)


def _hydra(value: Any) -> str:
    if isinstance(value, str):
        if PLAIN.fullmatch(value) and value.lower() not in WORDS:
            return value
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
