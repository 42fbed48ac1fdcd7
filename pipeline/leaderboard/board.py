"""The file of a leaderboard, and its trainings. All faults are found before anything is trained."""

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field

from pipeline import recipes
from pipeline.core import model_files
from pipeline.core.abilities import Ability
from pipeline.core.dataset import Dataset
from pipeline.core.fields import PROCESSED
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings, read_training
from pipeline.core.task import Task
from pipeline.errors import BadInput, DarkroomError
from pipeline.evaluation import glossary
from pipeline.evaluation.context import Context
from pipeline.evaluation.evaluate import applying
from pipeline.evaluation.evaluators import likelihood, membership
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.launch.training import Training
from pipeline.params import Section, as_file, read_file, suggestion, validate
from pipeline.settings_check import find_faults, require_valid_params
from pipeline.tracking.rerun import Change, difference, leaves

GENERATES = {Ability.GENERATE, Ability.USES_LABELS, Ability.DECODE}  # abilities of a model that generates
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


class _Untrained(NamedTuple):
    """What is known of a variant before its training: its size, and what will be measured of it."""

    num_parameters: int
    measures: set[str]
    curves: set[str]  # metrics of the validation split


def read(path: Path) -> Board:
    """The leaderboard in a YAML file. Raises ``BadInput`` with all faults that need no data to be found."""
    require_valid_params()
    board = validate(read_file(path), Board, where=str(path))
    faults = [*_general_faults(board)]
    if not faults:
        faults = [*_key_faults(board)]
        faults += [fault for name in board.variants for fault in _faults_of(board, name)]
        faults += _equal_variants(board)
    _refuse(path, list(dict.fromkeys(faults)))
    return board


def entries(board: Board, path: Path) -> list[Entry]:
    """The trainings of ``board``, by seed and then by variant. The data has to be preprocessed.

    Raises ``BadInput`` if a model cannot be built with its settings, or if no variant has a measure or the
    curve of ``board``; ``path`` is named as the place.
    """
    found, faults, untrained = list[Entry](), list[str](), dict[str, _Untrained]()
    kind = model_files.find(board.model)
    data = Dataset.open(PROCESSED / kind.dataset)
    needs = {need: Path("models", need) for need in kind.needs}
    for seed in board.seeds:
        for variant in board.variants:
            params = params_of(board, variant, seed)
            try:
                settings, config = _read_training(board, params)
                if not needs and variant not in untrained:
                    untrained[variant] = _build(board.model, config, data)
                training = Training(board.model, settings, config, data, needs)
                training.require_examples()
                count = 0 if needs else untrained[variant].num_parameters
                found.append(Entry(variant, seed, params, training.fingerprint, count))
            except DarkroomError as error:
                faults.append(f"{variant}: {error.where}: {error.what} ({error.remedy})")
    if untrained:
        shown = {"measures": board.measures, "curve": (board.curve,) if board.curve else ()}
        known = {
            "measures": sorted({name for each in untrained.values() for name in each.measures}),
            "curve": sorted({name for each in untrained.values() for name in each.curves}),
        }
        for key, names in shown.items():
            for name in set(names) - set(known[key]):
                remedy = suggestion(name, known[key], "choose from")
                faults.append(f"{key}: {board.model} has no '{name}' ({remedy})")
    _refuse(path, list(dict.fromkeys(faults)))
    return found


def params_of(board: Board, variant: str, seed: int | None = None) -> dict[str, Any]:
    """The whole params.yaml of one training."""
    params = json.loads(_with_base(board.base, json.dumps(read_file())))
    own: dict[str, Any] = {"evaluate.models": [board.model]}
    own |= {} if board.num_steps is None else {f"{board.model}.training.num_steps": board.num_steps}
    own |= {} if seed is None else {f"{board.model}.training.seed": seed}
    for key, value in (leaves(board.settings) | leaves(board.variants[variant]) | own).items():
        recipes.put(params, key, value)
    return params


@functools.lru_cache  # to read a recipe takes half a second
def _with_base(base: str, text: str) -> str:
    """The params in the JSON ``text`` with the sections of the recipe ``base``, as JSON."""
    params = json.loads(text)
    return text if base == PROJECT else json.dumps(params | recipes.sections(base, params))


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


def _key_faults(board: Board) -> Iterator[str]:
    """Settings that are not part of a training: variants that differ in them alone would share one."""
    for where, settings in [("settings", board.settings), *board.variants.items()]:
        for key, value in leaves(settings).items():
            if not key.startswith(f"{board.model}."):
                yield f"{where}: {key}: is not a setting of {board.model} (set it in params.yaml, for all)"
            elif value == {}:
                yield f"{where}: {key}: is empty (leave it out)"
            elif key in (f"{board.model}.training.num_steps", f"{board.model}.training.seed"):
                yield f"{where}: {key}: is the same for all variants (set num_steps and seeds of the file)"


def _faults_of(board: Board, variant: str) -> list[str]:
    faults = as_file(params_of(board, variant), lambda file: find_faults(file)[1])
    return [
        f"{variant}: {fault.where.rpartition(': ')[2]}: {fault.what} ({fault.remedy})" for fault in faults
    ]


def _equal_variants(board: Board) -> Iterator[str]:
    first: dict[str, str] = {}
    for name in board.variants:
        with suppress(DarkroomError):  # it is among the other faults
            text = str(_read_training(board, params_of(board, name)))
            if text in first:
                yield f"{name}: has the settings of '{first[text]}' (change or remove one of them)"
            first.setdefault(text, name)


def _read_training(board: Board, params: Mapping[str, Any]) -> tuple[TrainingSettings, Any]:
    """The training settings and the model's configuration; a setting left out has its default."""
    config = model_files.find(board.model).Config
    return as_file(params, lambda file: read_training(board.model, config, file))


def _build(name: str, config: Any, data: Dataset) -> _Untrained:
    """Try a model with its initial weights on one image; raises ``BadInput`` if it cannot be built."""
    try:
        task = model_files.build(name, config, data.spec, 0).eval()
        task.phases()
        with torch.no_grad():
            curves = set(task.evaluate(data.train.batch(np.arange(1)), Noise.whole(0, 1, "validation")))
    except (ValueError, RuntimeError) as error:
        raise BadInput(str(error), where=f"{name}.model", remedy="correct its settings") from None
    context = Context(EvaluationSettings(), {task.dataset: data}, {name: task}, {}, Path(), name)
    own = curves | ({"importance_weighted_bound"} if hasattr(task, "log_weights") else set())
    later = GENERATES if type(task).generate is not Task.generate else set()  # an autoencoder, once trained
    own |= set(likelihood.USE) if hasattr(task, "tokens") and likelihood.NATS not in curves else set()
    for attack in membership.fitting(context.abilities | later, curves):
        own |= {attack, attack + membership.FOUND}
    measuring = [*applying(context), *(each for each in glossary.EVALUATORS if each.needs in later)]
    applied = [own if each.needs is None else set(each.measures) for each in measuring]
    count = sum(parameter.numel() for parameter in task.parameters())
    return _Untrained(count, set[str]().union(*applied), curves)


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        what = "\n".join([f"{len(faults)} faults", *(f"  {fault}" for fault in faults)])
        if len(faults) == 1:
            what = faults[0]
        raise BadInput(what, where=str(path), remedy="correct the file and repeat the command")
