"""The space of a search: its points, as settings of a project, and its faults."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import recipes
from pipeline.core import model_files
from pipeline.core.settings import TrainingSettings, read_training
from pipeline.errors import BadInput, DarkroomError
from pipeline.params import PARAMS, as_file, read_file
from pipeline.search.settings import ModelSearch, Setting, read
from pipeline.tracking.rerun import leaves

DIGITS = 4  # of a number from a range, so that params.yaml stays readable
MOST_TRIED = 24  # points at the ends of the ranges that are tried before a search

Point = dict[str, Any]  # the chosen settings by name; of choices, their texts


def points(search: ModelSearch, values_of: Callable[[str], list[Any]]) -> Iterator[Point]:
    """All combinations of ``values_of`` the settings, without those whose conditions do not hold."""

    def extend(names: list[str], chosen: Point) -> Iterator[Point]:
        if not names:
            yield chosen
        elif not search.is_active(names[0], chosen):
            yield from extend(names[1:], chosen)
        else:
            for value in values_of(names[0]):
                yield from extend(names[1:], chosen | {names[0]: value})

    return extend([*search.settings], {})


def grid(search: ModelSearch, params: Mapping[str, Any]) -> Iterator[Point]:
    """The points of the grid, the last setting changing first."""
    return points(search, lambda name: _grid_values(search.settings[name], is_whole(search, name, params)))


def _grid_values(setting: Setting, whole: bool) -> list[Any]:
    if setting.low is None or setting.high is None:
        return [*setting.values]
    if setting.step is not None:
        count = int((setting.high - setting.low) / setting.step + 1e-9) + 1
        return [rounded(setting.low + number * setting.step, setting, whole) for number in range(count)]
    space = np.geomspace if setting.log else np.linspace
    found = (rounded(value, setting, whole) for value in space(setting.low, setting.high, setting.num_points))
    return list(dict.fromkeys(found))


def ends(setting: Setting) -> list[Any]:
    """The lowest and the highest value, or the choices."""
    return [*setting.values] or list(dict.fromkeys([setting.low, setting.high]))


def rounded(value: float, setting: Setting, whole: bool) -> int | float:
    """A number of a range with ``DIGITS`` digits."""
    assert setting.low is not None and setting.high is not None
    if whole:
        return round(value)
    digits = 10 if setting.step else DIGITS
    return min(max(float(f"{float(value):.{digits}g}"), float(setting.low)), float(setting.high))


def is_whole(search: ModelSearch, name: str, params: Mapping[str, Any]) -> bool:
    """Whether a range has whole numbers only."""
    setting = search.settings[name]
    numbers = (setting.low, setting.high, setting.step or 1, leaves(params).get(name, 1))
    return not any(isinstance(number, float) for number in numbers)


def settings_of(search: ModelSearch, point: Point) -> dict[str, Any]:
    """The values of the settings at ``point``. A setting whose condition does not hold is left out."""
    known = {name: search.settings[name].values for name in point}
    return {name: known[name][value] if known[name] else value for name, value in point.items()}


def params_of(search: ModelSearch, params: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The whole ``params`` with these ``settings``; the searched settings that are left out get defaults."""
    changed = copy.deepcopy(dict(params))
    for name in search.settings:
        if name in settings:
            recipes.put(changed, name, settings[name])
        else:
            _remove(changed, name)
    return changed


def _remove(params: dict[str, Any], name: str) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        params = params.get(parent) or {}
    params.pop(last, None)


def training_of(name: str, params: Mapping[str, Any]) -> tuple[TrainingSettings, Any]:
    """The training settings and the model's configuration. Raises ``BadInput`` if they are not valid."""
    config = model_files.find(name).Config
    return as_file({name: params[name]}, lambda file: read_training(name, config, file))


def read_search(name: str, path: Path = PARAMS) -> ModelSearch:
    """What is searched for the model ``name``, with metric and mode filled in.

    Raises ``BadInput`` with all faults of the space: settings that do not exist, and values that the model
    refuses.
    """
    search, params, where = read(name, path), read_file(path), f"{path}: search.{name}"
    if name not in model_files.names() or name not in params:
        raise BadInput("there is no such model", where=where, remedy=f"add a section '{name}:' first")
    if faults := [*_value_faults(name, search, params)]:
        what = faults[0] if len(faults) == 1 else "\n  ".join([f"{len(faults)} faults", *faults])
        raise BadInput(what, where=where, remedy="correct it, or restrict it with 'when'")
    training, _ = training_of(name, params)
    metric = search.metric or training.monitor or "validation/loss"
    mode = search.mode or (training.monitor_mode if metric == training.monitor else "min")
    return search.model_copy(update={"metric": metric, "mode": mode})


def _value_faults(name: str, search: ModelSearch, params: Mapping[str, Any]) -> Iterator[str]:
    """What the model refuses, each fault with the first point that has it."""
    found: dict[str, str] = {}
    for point in corners(search):
        settings = settings_of(search, point)
        try:
            training_of(name, params_of(search, params, settings))
        except DarkroomError as error:
            shown = ", ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
            fault = f"{error.where}: {error.what} ({error.remedy})"
            found.setdefault(fault, f"{fault}, with {shown}")
    yield from found.values()


def corners(search: ModelSearch) -> list[Point]:
    """Up to ``MOST_TRIED`` points at the ends of the ranges, and more if a choice or an end needs them."""
    every = list(islice(points(search, lambda name: ends(search.settings[name])), 4096))
    chosen = every[:: -(-len(every) // MOST_TRIED)]
    for name, setting in search.settings.items():
        for value in ends(setting):
            if not any(point.get(name) == value for point in chosen):
                chosen += [point for point in every if point.get(name) == value][:1]
    return chosen
