"""Recipes: settings for a data set, with what they were measured to reach, one YAML file for each.

``digits.yaml`` has all settings of the shipped params.yaml that recipes determine; the other files have the
settings that differ from it. Applying a recipe sets every setting of these sections, so the result does not
depend on what was in params.yaml before; all other sections stay.
"""

import io
import json
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
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

    All other lines stay as they are, with their comments. ``dry_run``: write nothing. Raises ``BadInput``,
    without writing anything, if the result is not valid, or if settings that are in no commit and in no
    recipe would be lost (unless ``force`` or ``dry_run`` is set).
    """
    before = read_file(path)
    target = sections(name, before)
    after = {**before, **target}
    changed = rerun.difference(leaves(before), leaves(after))
    if not force and not dry_run:
        _require_nothing_is_lost(path, leaves(before), leaves(after))
    write(before, after, path=path, dry_run=dry_run)
    return changed


def write(
    before: Mapping[str, Any], after: Mapping[str, Any], *, path: Path = PARAMS, dry_run: bool = False
) -> None:
    """Change params.yaml, which has the params ``before``, to ``after``; its comments stay.

    ``dry_run``: only check. Raises ``BadInput``, without writing anything, if the result is not valid.
    """
    text = path.read_text(encoding="utf-8")
    text = _changed(text if text.endswith("\n") else f"{text}\n", before, after)
    _require_valid(text, path, after)
    if after != before and not dry_run:
        write_text(path.resolve(), text)  # a symbolic link stays


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted ``key``. Mappings that are missing are created."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[last] = value


def _require_nothing_is_lost(path: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise ``BadInput`` if a value of ``before`` goes that is in no commit and in no recipe."""
    known = [rerun.committed(path.parent)]
    known += [leaves(_load(FOLDER / f"{name}.yaml")["settings"]) for name in names()]
    lost = [
        key for key, value in before.items() if all(each.get(key, ...) != value for each in (after, *known))
    ]
    if lost:
        what = f"has uncommitted settings that the recipe would replace: {listed(lost, 5)}"
        raise BadInput(what, where=str(path), remedy=f"git commit {path}, or add --force")


def _require_valid(text: str, path: Path, params: Mapping[str, Any]) -> None:
    """Raise ``BadInput`` if ``text`` cannot be the file ``path``, or is not ``params``."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, path.name)
        write_text(temporary, text)
        try:
            require_valid_params(temporary)
            if read_file(temporary) != json.loads(json.dumps(params)):
                remedy = "write each section as a block, one setting in a line"
                raise BadInput("its layout cannot be changed", where=str(temporary), remedy=remedy)
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


def _changed(text: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The YAML ``text`` of ``before``, changed to that of ``after``."""
    root = _yaml().compose(text)
    if root.flow_style:  # JSON
        return json.dumps(after, indent=2) + "\n"
    # From the end, so that positions stay true; at one place the parts stay in their order.
    for start, end, new in reversed(sorted(_edits(root, before, after, text), key=lambda edit: edit[0])):
        text = f"{text[:start]}{new}{text[end:]}"
    return text


def _edits(node: Any, before: Any, after: Any, text: str) -> Iterator[tuple[int, int, str]]:
    """The parts of ``text`` to replace, as (start, end, new text), so that a mapping becomes ``after``.

    ``node``: the mapping in ``text``, whose value is ``before``. What is equal keeps its text. New settings
    follow the last one. A mapping in braces is replaced as a whole.
    """
    for key, value in node.value:
        name, start, column = key.value, key.start_mark.index, key.start_mark.column
        if name not in after:  # its lines go; a comment before it stays
            yield start - column, _line_end(text, key, value), ""
        elif isinstance(after[name], Mapping) and value.id == "mapping" and not value.flow_style:
            yield from _edits(value, before[name], after[name], text)
        elif before[name] != after[name]:
            yield start, _end(text, key, value), _entry(name, after[name], column).strip()
    key, value = node.value[-1]
    end, column = _line_end(text, key, value), key.start_mark.column
    yield end, end, "".join(_entry(name, after[name], column) for name in after if name not in before)


def _entry(name: str, value: Any, column: int) -> str:
    """A setting as it is written at this column, with the end of its line."""
    stream = io.StringIO()
    _yaml().dump({name: value}, stream)
    return textwrap.indent(stream.getvalue(), " " * column)


def _end(text: str, key: Any, value: Any) -> int:
    """Where the value of a key ends, without the comments that follow it."""
    if value.id != "scalar" and not value.flow_style and value.value:
        last = value.value[-1]
        return _end(text, *last) if value.id == "mapping" else _end(text, key, last)
    if value.start_mark.index == value.end_mark.index:  # empty
        return text.index(":", key.end_mark.index) + 1
    return len(text[: value.end_mark.index].rstrip())


def _line_end(text: str, key: Any, value: Any) -> int:
    """Where the last line of a value ends."""
    return text.index("\n", _end(text, key, value)) + 1
