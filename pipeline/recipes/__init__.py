"""Recipes: settings for a data set, with what they were measured to reach, one YAML file for each.

``digits.yaml`` has all settings of the shipped params.yaml that recipes determine; the other files have the
settings that differ from it. Applying a recipe sets every setting of these sections, so the result does not
depend on what was in params.yaml before; all other sections stay.
"""

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.errors import BadInput, listed
from pipeline.files import write_text
from pipeline.params import PARAMS, Section, read_file, suggestion, validate
from pipeline.settings_check import require_valid_params
from pipeline.tracking import rerun
from pipeline.tracking.rerun import Change, leaves

FOLDER = Path(__file__).parent
DIGITS = "digits"  # the recipe with all settings
WIDTH = 4096  # of a line; longer lines would be wrapped


class Recipe(Section):
    """One recipe. ``hardware`` is the machine of the measurement; ``own`` are settings about the user's data.

    Settings in ``own`` keep a value that is in params.yaml and not empty.
    """

    description: str
    command: str
    hardware: str
    time: str
    reaches: str
    own: tuple[str, ...] = ()
    settings: dict[str, dict[str, Any]]


def names() -> list[str]:
    """The names of all recipes, ``digits`` first."""
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=lambda name: (name != DIGITS, name))


def read(name: str) -> Recipe:
    """The recipe ``name``. Raises ``BadInput`` for an unknown name."""
    if name not in names():
        raise BadInput("no such recipe", where=name, remedy=suggestion(name, names(), "choose one of"))
    return validate(read_file(FOLDER / f"{name}.yaml"), Recipe, where=f"recipe {name}")


def sections(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """All sections that the recipe ``name`` sets. ``params``: the project's, for settings about own data."""
    recipe, mine = read(name), leaves(params)
    merged = _load(FOLDER / f"{DIGITS}.yaml")["settings"]
    _merge(merged, _load(FOLDER / f"{name}.yaml")["settings"])
    for key in recipe.own:
        if mine.get(key):
            put(merged, key, mine[key])
    return merged


def apply(name: str, *, path: Path = PARAMS, dry_run: bool = False, force: bool = False) -> list[Change]:
    """Write the settings of the recipe ``name`` into params.yaml. Returns the changes.

    Comments and layout stay. ``dry_run``: write nothing. Raises ``BadInput``, without writing anything, if
    the result is not valid, or if settings that are in no commit and in no recipe would be lost (unless
    ``force`` is set).
    """
    before = read_file(path)
    target = sections(name, before)
    after = {**before, **target}
    changed = rerun.difference(leaves(before), leaves(after))
    if not force:
        _require_nothing_is_lost(changed, path, leaves(before))
    text = path.read_text(encoding="utf-8")
    document = _yaml().load(text)
    for section, values in target.items():
        _update(document, section, values, text.splitlines())
    stream = io.StringIO()
    _yaml().dump(document, stream)
    _require_valid(stream.getvalue(), path)
    if changed and not dry_run:
        write_text(path, stream.getvalue())
    return changed


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted ``key``. Mappings that are missing are created."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[last] = value


def _require_nothing_is_lost(changed: list[Change], path: Path, now: Mapping[str, Any]) -> None:
    """Raise ``BadInput`` if one of ``changed`` replaces a value that is in no commit and in no recipe."""
    known = [leaves(_load(FOLDER / f"{name}.yaml")["settings"]) for name in names()]
    uncommitted = {change.key for change in rerun.changes(path.parent) if change.kind != "~"}
    lost = [
        change.key
        for change in changed
        if change.key in uncommitted
        and not any(change.key in recipe and recipe[change.key] == now[change.key] for recipe in known)
    ]
    if lost:
        what = f"has uncommitted settings that the recipe would replace: {listed(lost, 5)}"
        raise BadInput(what, where=str(path), remedy=f"git commit {path}, or add --force")


def _require_valid(text: str, path: Path) -> None:
    """Raise ``BadInput`` if ``text`` cannot be the file ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, path.name)
        write_text(temporary, text)
        try:
            require_valid_params(temporary)
        except BadInput as error:
            what, where, remedy = (
                each.replace(str(temporary), str(path)) for each in (error.what, error.where, error.remedy)
            )
            raise BadInput(what, where=where, remedy=remedy) from None


def _yaml() -> YAML:
    round_trip = YAML()  # keeps comments, and builds no objects
    round_trip.preserve_quotes, round_trip.width = True, WIDTH
    return round_trip


def _load(path: Path) -> Any:
    with path.open(encoding="utf-8") as file:
        return _yaml().load(file)


def _merge(target: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _update(parent: Any, name: str, values: Any, lines: list[str]) -> None:
    """Make ``parent[name]`` equal to ``values``; what is equal already keeps its text.

    ``lines`` are those of the file. A comment stays one space after its value if it was there before.
    """
    old = parent.get(name)
    if isinstance(old, dict) and isinstance(values, dict):
        for key in [key for key in old if key not in values]:
            _remove(old, key)
        for key, value in values.items():
            _update(old, key, value, lines)
    elif name not in parent:
        # Before the last key, since the comment after that one belongs to what follows.
        parent.insert(max(0, len(parent) - 1), name, values)
    elif old != values:
        parent[name] = values
        comment = (parent.ca.items.get(name) or [None] * 3)[2]
        if comment and not lines[comment.start_mark.line][: comment.start_mark.column].endswith("  "):
            comment.start_mark.column = 0  # the first column after the value


def _remove(parent: Any, key: str) -> None:
    """Remove a key. What follows its line, such as a blank line, is kept if the key was the last one."""
    keys, token = list(parent), parent.ca.items.get(key)
    parent.pop(key)
    if token and token[2] and key == keys[-1] and len(keys) > 1 and keys[-2] not in parent.ca.items:
        _, _, token[2].value = token[2].value.partition("\n")
        token[2].value = f"\n{token[2].value}"
        parent.ca.items[keys[-2]] = token
