"""Validation of the whole params.yaml before any work starts.

DVC removes the outputs of a stage before it runs the stage, and a late stage may run after hours of training.
So every stage first checks all sections, not only its own. The check cannot change a result, so no stage
depends on it in dvc.yaml.
"""

import difflib
import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadInput, DarkroomError
from pipeline.params import PARAMS, read_file, read_section

if TYPE_CHECKING:
    from pipeline.core.task import Task


def require_valid_params(path: Path = PARAMS) -> None:
    """Raise ``BadInput`` with every fault of params.yaml and its remedy, if there are any."""
    faults = find_faults(path)[1]
    if len(faults) == 1:
        raise faults[0]
    if faults:
        keys = [fault.where.removeprefix(f"{path}: ") for fault in faults]
        lines = [f"  {key}: {fault.what} ({fault.remedy})" for key, fault in zip(keys, faults)]
        what = "\n".join([f"{len(faults)} settings cannot be used", *lines])
        raise BadInput(what, where=str(path), remedy="correct them and repeat the command")


def find_faults(path: Path = PARAMS) -> tuple[list[str], list[DarkroomError]]:
    """The names of the valid sections, and the faults of the others.

    Raises ``BadInput`` if the file as a whole cannot be read.
    """
    readers, valid, faults = _readers(path), list[str](), list[DarkroomError]()
    for name in read_file(path):
        try:
            if name not in readers:
                near = difflib.get_close_matches(name, readers, 1)
                remedy = f"did you mean '{near[0]}'?" if near else f"known sections: {', '.join(readers)}"
                raise BadInput("no such section", where=f"{path}: {name}", remedy=remedy)
            readers[name]()
            valid.append(name)
        except DarkroomError as error:
            faults.append(error)
    return valid, faults


def _readers(path: Path) -> dict[str, Callable[[], Any]]:
    """A function for each known section that raises ``BadInput`` if the section cannot be used."""
    from pipeline.core.settings import read_training
    from pipeline.retraining.gates import GateSettings
    from pipeline.retraining.settings import RetrainSettings

    models = _models()
    readers: dict[str, Callable[[], Any]] = {
        "data": partial(_check_data, path),
        "evaluate": partial(_check_evaluate, path, models),
        "gates": partial(read_section, "gates", GateSettings, path),
        "retrain": partial(read_section, "retrain", RetrainSettings, path),
    }
    for name, model in models.items():
        readers[name] = partial(read_training, name, model.Config, path) if model else lambda: None
    return readers


def _models() -> dict[str, type["Task"] | None]:
    """The models by name. A file that cannot be imported gives None: it must stop only its own stage."""
    import pipeline.models
    from pipeline.core import model_files

    found: dict[str, type[Task] | None] = {}
    for module in pkgutil.iter_modules(pipeline.models.__path__):
        try:
            found[module.name] = model_files.find(module.name)
        except BadInput:  # a module without a model, such as layers.py
            continue
        except Exception:
            found[module.name] = None
    return found


def _check_data(path: Path) -> None:
    from pipeline.data.settings import DataSettings
    from pipeline.data.sources import find

    find(read_section("data", DataSettings, path).source)


def _check_evaluate(path: Path, models: Mapping[str, type["Task"] | None]) -> None:
    """Check the section, and that ``classifier`` names a model that can classify."""
    from pipeline.core.task import Task
    from pipeline.evaluation.settings import EvaluationSettings

    name = read_section("evaluate", EvaluationSettings, path).classifier
    able = [each for each, model in models.items() if model is None or model.classify is not Task.classify]
    if name in able:
        return
    what = f"the model '{name}' is not a classifier" if name in models else f"there is no model '{name}'"
    near = difflib.get_close_matches(name, able, 1)
    remedy = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(able)}"
    raise BadInput(what, where=f"{path}: evaluate.classifier", remedy=remedy)
