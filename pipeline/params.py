"""The sections of params.yaml as frozen, validated pydantic models. No other module reads that file.

Types are strict, and NaN and infinity are refused. An unknown key is refused with the most similar known key.
Defaults are in the classes.
"""

import difflib
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import BadInput, DarkroomError
from pipeline.files import write_json

PARAMS = Path("params.yaml")
MAX_BYTES = 1_000_000
MAX_DEPTH = 50  # of lists and mappings; reading thousands of levels takes half a minute

Width = Annotated[int, Field(ge=1)]  # of a layer


class Section(BaseModel):
    """A section of params.yaml, or a part of one."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def refuse(self, wrong: Mapping[str, object], needed: Mapping[str, str]) -> None:
        """Raise ``ValueError`` with all that is wrong: for the validators of several settings.

        ``wrong``: by fault, whether the settings have it. Settings without an effect that are not at their
        defaults are faults, too. ``needed``: by setting, the other one that it needs, as "name: value", or as
        "name" for any value but zero and none. Several values are separated by " or ".
        """
        faults = [fault for fault, applies in wrong.items() if applies]
        for name, condition in needed.items():
            other, _, values = condition.partition(": ")
            value = getattr(self, other)
            fits = value in values.split(" or ") if values else value not in (0, None, "none")
            if not fits and getattr(self, name) != type(self).model_fields[name].default:
                faults.append(f"{name} is for {condition}, not {value}")
        if faults:
            raise ValueError("; ".join(faults))


S = TypeVar("S", bound=Section)
T = TypeVar("T")


def read_file(path: Path = PARAMS) -> dict[str, Any]:
    """The whole file as plain values. Raises ``BadInput`` if it is not one small YAML 1.2 mapping of them."""
    try:
        if path.exists() and not path.is_file():  # to open a FIFO waits for ever
            raise BadInput("is not a regular file", where=str(path), remedy="replace it by a file")
        if path.stat().st_size > MAX_BYTES:
            remedy = "keep data out of the settings"
            raise BadInput(f"is larger than {MAX_BYTES:,} bytes", where=str(path), remedy=remedy)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = "run from the project's root, the folder with params.yaml"
        raise BadInput("no such file", where=str(path), remedy=remedy) from None
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text ({error.reason})"
        raise BadInput(what, where=str(path), remedy="save it as UTF-8") from None
    except OSError as error:  # such as a link to itself
        what = f"cannot be read ({error.strerror})"
        raise BadInput(what, where=str(path), remedy="check its permissions and links") from None
    return json.loads(_parse(text, path))


@functools.lru_cache(maxsize=8)  # a stage reads the same file a dozen times
def _parse(text: str, path: Path) -> str:
    """The YAML ``text`` as JSON."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

    depth = 0
    if text.startswith("{") and _is_written_json(text):
        return text  # without YAML, which takes a hundred times as long
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            if isinstance(event, AliasEvent):
                what = "YAML aliases (*name) are not accepted"
                raise BadInput(what, where=str(path), remedy="write the value out")
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                where = f"{path}, line {event.start_mark.line + 1}"
                raise BadInput(f"is nested more than {MAX_DEPTH} deep", where=where, remedy="flatten it")
        value = YAML(typ="safe", pure=True).load(text)
        plain = json.dumps(value, allow_nan=False)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadInput(f"cannot be read: {problem}", where=where, remedy="correct the YAML there") from None
    except (TypeError, ValueError, RecursionError) as error:
        what = f"has a value that is not plain and finite ({error})"
        raise BadInput(what, where=str(path), remedy="use numbers, text, lists") from None
    if not isinstance(value, dict):
        remedy = "start each section with 'name:'"
        raise BadInput("is not a mapping of sections", where=str(path), remedy=remedy)
    return plain


def _is_written_json(text: str) -> bool:
    """Whether ``text`` is a mapping as ``write_json`` writes it, not nested too deep."""
    try:
        same = text == json.dumps(json.loads(text), indent=2, allow_nan=False) + "\n"
    except (ValueError, RecursionError):
        return False
    return same and "\n" + "  " * MAX_DEPTH not in text


def read_section(name: str, kind: type[S], path: Path = PARAMS) -> S:
    """The section ``name`` of the file, validated as ``kind``. Raises ``BadInput`` with the key at fault."""
    values = read_file(path)
    if name not in values:
        near = difflib.get_close_matches(name, values, 1)
        hint = f"; is '{near[0]}' meant to be '{name}'?" if near else ""
        raise BadInput(f"has no section '{name}'{hint}", where=str(path), remedy=f"add a section '{name}:'")
    return validate(values[name], kind, where=f"{path}: {name}")


def validate(values: Any, kind: type[S], where: str) -> S:
    """``values`` as a ``kind``. An error names ``where`` before the key."""
    try:
        # JSON mode also accepts a list for a tuple and 1 for a float.
        return kind.model_validate_json(json.dumps(values, allow_nan=False))
    except ValidationError as error:
        (what, key, remedy), *others = [_explain(problem, kind, where) for problem in error.errors()[:3]]
        remedy = "; also ".join([remedy, *(f"{other[1]}: {other[0]}" for other in others)])
        raise BadInput(what, where=key, remedy=remedy) from None


def as_file(params: Mapping[str, Any], use: Callable[[Path], T]) -> T:
    """The result of ``use(path)`` for a temporary file with ``params``. Its errors do not name the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, PARAMS)
        write_json(path, params)
        try:
            return use(path)
        except DarkroomError as error:
            where = error.where.replace(f"{path}: ", "")
            raise BadInput(error.what, where=where, remedy=error.remedy) from None


def suggestion(name: str, known: list[str], otherwise: str) -> str:
    """A remedy for an unknown name: the most similar known one, or ``otherwise`` and all of them."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{near[0]}'?" if near else f"{otherwise}: {', '.join(known)}"


def _explain(problem: Any, kind: type[BaseModel], where: str) -> tuple[str, str, str]:
    location = [str(part) for part in problem["loc"]]
    path = ".".join([where, *location])
    if problem["type"] == "extra_forbidden":
        known = _keys_at(kind, location[:-1])
        return "no such setting", path, suggestion(location[-1], sorted(known), "known here")
    if problem["type"] == "missing":
        return "is missing", path, "give it a value"
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):  # settings that do not fit
        return problem["msg"].removeprefix("Value error, "), path, "change one of these settings"
    return f"{problem['msg']}, got {problem['input']!r}"[:200], path, "correct the value"


def _keys_at(kind: Any, location: list[str]) -> list[str]:
    for part in location:
        field = getattr(kind, "model_fields", {}).get(part)
        if field is not None:
            kind = field.annotation
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
    return list(getattr(kind, "model_fields", {}))
