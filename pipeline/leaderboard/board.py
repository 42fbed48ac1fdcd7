"""The file of a leaderboard, and its trainings. All faults are found before anything is trained."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline import recipes
from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.fields import PROCESSED
from pipeline.core.settings import read_training
from pipeline.errors import BadInput, DarkroomError
from pipeline.evaluation import glossary
from pipeline.files import write_json
from pipeline.launch.training import Training
from pipeline.params import Section, read_file, suggestion, validate
from pipeline.settings_check import find_faults, require_valid_params
from pipeline.tracking.rerun import Change, difference, leaves

PROJECT = "params"  # the base: params.yaml as it is


class Board(Section):
    """A leaderboard. Settings are named as in ``dvc exp run -S``, such as ``gan.model.width``."""

    model: str
    title: str = ""
    base: str = PROJECT  # 'params', or the recipe whose settings the variants change
    num_steps: int | None = Field(None, ge=1)  # of each training; None: as the base has it
    seeds: tuple[int, ...] = ()
    measures: tuple[str, ...] = ()  # shown; none: all headline measures
    curve: str = ""  # a metric of the validation split, shown with its best and its last value
    settings: dict[str, Any] = Field({})  # of all variants
    variants: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Entry:
    """One training: a variant and a seed. ``params``: the whole params.yaml with its settings."""

    variant: str
    seed: int
    params: Mapping[str, Any]
    fingerprint: str
    num_parameters: int

    def changes(self) -> list[Change]:
        """What has to be changed in params.yaml."""
        return difference(leaves(read_file()), leaves(self.params))

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def read(path: Path) -> Board:
    """The leaderboard in a YAML file. Raises ``BadInput`` with all faults that need no data to be found."""
    require_valid_params()
    board = validate(read_file(path), Board, where=str(path))
    faults = [*_general_faults(board)]
    if not faults:
        faults = [fault for name in board.variants for fault in _faults_of(board, name)]
        faults += _equal_variants(board)
    _refuse(path, list(dict.fromkeys(faults)))
    return board


def entries(board: Board, path: Path) -> list[Entry]:
    """The trainings of ``board``, by seed and then by variant. The data has to be preprocessed.

    Raises ``BadInput`` if a model cannot be built with its settings; ``path`` is named as the place.
    """
    found, faults = list[Entry](), list[str]()
    kind = model_files.find(board.model)
    data = Dataset.open(PROCESSED / kind.dataset)
    needs = {need: Path("models", need) for need in kind.needs}
    for seed in board.seeds:
        for variant in board.variants:
            params = params_of(board, variant, seed)
            try:
                settings, config = _written(
                    params, lambda file: read_training(board.model, kind.Config, file)
                )
                if not needs:
                    count = _num_parameters(board.model, config, data)
                fingerprint = Training(board.model, settings, config, data, needs).fingerprint
                found.append(Entry(variant, seed, params, fingerprint, 0 if needs else count))
            except DarkroomError as error:
                faults.append(f"{variant}: {error.where}: {error.what} ({error.remedy})")
    _refuse(path, list(dict.fromkeys(faults)))
    return found


def params_of(board: Board, variant: str, seed: int | None = None) -> dict[str, Any]:
    """The whole params.yaml of one training."""
    params = read_file()
    if board.base != PROJECT:
        params |= recipes.sections(board.base, params)
    params = json.loads(json.dumps(params))
    own: dict[str, Any] = {"evaluate.models": [board.model]}
    own |= {} if board.num_steps is None else {f"{board.model}.training.num_steps": board.num_steps}
    own |= {} if seed is None else {f"{board.model}.training.seed": seed}
    for key, value in (leaves(board.settings) | leaves(board.variants[variant]) | own).items():
        recipes.put(params, key, value)
    return params


def _general_faults(board: Board) -> Iterator[str]:
    models = model_files.names()
    if board.model not in models:
        yield f"model: there is no model '{board.model}' ({suggestion(board.model, models, 'choose one of')})"
    bases = [PROJECT, *recipes.names()]
    if board.base not in bases:
        yield f"base: there is no recipe '{board.base}' ({suggestion(board.base, bases, 'choose one of')})"
    elif board.base != PROJECT:
        mine = read_file()
        if json.loads(json.dumps(recipes.sections(board.base, mine)["data"])) != mine.get("data"):
            yield f"base: its data are not those of params.yaml (first run: darkroom recipe {board.base})"
    if not board.seeds:
        yield "seeds: is empty (name the seeds to train with, such as [0, 1, 2])"
    if len(set(board.seeds)) < len(board.seeds) or any(not 0 <= seed < 2**31 for seed in board.seeds):
        yield "seeds: are not different numbers from 0 to 2147483647 (correct them)"
    for name in board.measures:
        if name not in glossary.MEASURES:
            yield f"measures: there is no '{name}' ({suggestion(name, sorted(glossary.MEASURES), 'known')})"
    for where, settings in [("settings", board.settings), *board.variants.items()]:
        for key in leaves(settings):
            if key.startswith("data."):
                yield f"{where}: {key}: all variants learn from the data of params.yaml (leave it out)"
            if key in (f"{board.model}.training.num_steps", f"{board.model}.training.seed"):
                yield f"{where}: {key}: is the same for all variants (set num_steps and seeds of the file)"


def _faults_of(board: Board, variant: str) -> list[str]:
    faults = _written(params_of(board, variant), lambda file: find_faults(file)[1])
    return [
        f"{variant}: {fault.where.rpartition(': ')[2]}: {fault.what} ({fault.remedy})" for fault in faults
    ]


def _equal_variants(board: Board) -> Iterator[str]:
    first: dict[str, str] = {}
    for name in board.variants:
        text = json.dumps(params_of(board, name), sort_keys=True)
        if text in first:
            yield f"{name}: has the settings of '{first[text]}' (change or remove one of them)"
        first.setdefault(text, name)


def _written(params: Mapping[str, Any], use: Any) -> Any:
    """The result of ``use(path)`` for a temporary params.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        write_json(path, params)
        try:
            return use(path)
        except DarkroomError as error:
            where = error.where.replace(f"{path}: ", "")
            raise BadInput(error.what, where=where, remedy=error.remedy) from None


def _num_parameters(name: str, config: Any, data: Dataset) -> int:
    """The number of parameters of a model; raises ``BadInput`` if it cannot be built."""
    try:
        task = model_files.build(name, config, data.spec, 0)
        task.phases()
    except (ValueError, RuntimeError) as error:
        raise BadInput(str(error), where=f"{name}.model", remedy="correct its settings") from None
    return sum(parameter.numel() for parameter in task.parameters())


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        what = "\n".join([f"{len(faults)} faults", *(f"  {fault}" for fault in faults)])
        if len(faults) == 1:
            what = faults[0]
        raise BadInput(what, where=str(path), remedy="correct the file and repeat the command")
