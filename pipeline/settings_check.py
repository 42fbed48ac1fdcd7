"""Validation of the whole params.yaml before any work starts.

DVC removes the outputs of a stage before it runs the stage, and a late stage may run after hours of training.
So every stage first checks all sections, not only its own. The check cannot change a result, so no stage
depends on it in dvc.yaml.
"""

import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.environment import checked_params
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import digest_of, sha256
from pipeline.params import PARAMS, Section, read_file, read_section, suggestion

if TYPE_CHECKING:
    from pipeline.core.task import Task


def require_valid_params(path: Path = PARAMS) -> None:
    """Raise ``BadInput`` with every fault of params.yaml and its remedy, if there are any.

    A stage of ``darkroom repro``, which has checked the file, does not load all models to check it again.
    """
    if (checked := checked_params()) and path.is_file() and checked == digest(path):
        return
    faults = find_faults(path)[1]
    if len(faults) == 1:
        raise faults[0]
    if faults:
        keys = [fault.where.removeprefix(f"{path}: ") for fault in faults]
        lines = [f"  {key}: {fault.what} ({fault.remedy})" for key, fault in zip(keys, faults)]
        what = "\n".join([f"{len(faults)} settings cannot be used", *lines])
        raise BadInput(what, where=str(path), remedy="correct them and repeat the command")


def digest(path: Path = PARAMS) -> str:
    """A digest of the place and the bytes of params.yaml."""
    return digest_of([str(path.resolve()), sha256(path)])


def find_faults(path: Path = PARAMS) -> tuple[list[str], list[DarkroomError]]:
    """The names of the valid sections, and the faults of the others.

    Raises ``BadInput`` if the file as a whole cannot be read.
    """
    models, valid, faults = _models(), list[str](), list[DarkroomError]()
    for name in read_file(path):
        try:
            _check(name, path, models)
            valid.append(name)
        except DarkroomError as error:
            faults.append(error)
    return valid, faults


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


def _compares(network: str, classifiers: list[str]) -> bool:
    """Whether images can be compared by ``network``, now or after the trainings."""
    from pipeline.core import model_files
    from pipeline.tracking.lineage import trained_models

    file = Path(network)
    if file.suffix == ".onnx":
        return file.is_file()
    folder = file.parent if file.name == model_files.WEIGHTS else file
    trained = {Path("models", name) for name in trained_models(Path()) if name in classifiers}
    return folder in trained or (folder / model_files.CARD).is_file()


def _check(name: str, path: Path, models: dict[str, type["Task"] | None]) -> None:
    """Raise ``BadInput`` if the section ``name`` cannot be used."""
    from pipeline.core.settings import read_training
    from pipeline.core.task import Task
    from pipeline.data.clips.settings import ClipSettings
    from pipeline.data.scenes.settings import SceneSettings
    from pipeline.data.settings import DataSettings
    from pipeline.data.sources import find
    from pipeline.evaluation.settings import EvaluationSettings
    from pipeline.layers.private import require_private
    from pipeline.retraining.gates import GateSettings
    from pipeline.retraining.settings import RetrainSettings
    from pipeline.search.settings import read as read_search

    others: dict[str, type[Section]] = {
        "clips": ClipSettings,
        "gates": GateSettings,
        "retrain": RetrainSettings,
        "scenes": SceneSettings,
    }
    if name == "data":
        find(read_section(name, DataSettings, path).source)
    elif name == "evaluate":
        settings = read_section(name, EvaluationSettings, path)
        classifier, network = settings.classifier, settings.feature_network
        able = [each for each, kind in models.items() if kind is None or kind.classify is not Task.classify]
        if network not in ("", "pixels") and not _compares(network, able):
            what = (
                "neither a classifier nor an .onnx file"
                if Path(network).exists()
                else "no such file or folder"
            )
            remedy = "correct it, name a trained model, or pixels"
            raise BadInput(f"{what}: {network}", where=f"{path}: evaluate.feature_network", remedy=remedy)
        if unknown := sorted(set(settings.models) - models.keys()):
            remedy = suggestion(unknown[0], [*models], "choose from")
            raise BadInput(
                f"there is no model '{unknown[0]}'", where=f"{path}: evaluate.models", remedy=remedy
            )
        if classifier not in able:
            what = f"there is no model '{classifier}'"
            if classifier in models:
                what = f"the model '{classifier}' is not a classifier"
            remedy = suggestion(classifier, able, "choose one of")
            raise BadInput(what, where=f"{path}: evaluate.classifier", remedy=remedy)
    elif name in others:
        read_section(name, others[name], path)
    elif name == "search":
        for searched in read_file(path)[name] or {}:
            if models.get(searched, Task) is not None:  # None: its own stage fails
                read_search(searched, path)
    elif name not in models:
        remedy = suggestion(name, ["data", "evaluate", "search", *others, *models], "known sections")
        raise BadInput("no such section", where=f"{path}: {name}", remedy=remedy)
    elif model := models[name]:
        training, config = read_training(name, model.Config, path)
        if training.sampling == "balanced" and getattr(config, "class_weights", "none") == "auto":
            what = "class_weights: auto and training.sampling: balanced together correct uneven classes twice"
            remedy = "set class_weights: none or training.sampling: shuffle"
            raise BadInput(what, where=f"{path}: {name}.model.class_weights", remedy=remedy)
        if getattr(config, "privacy", None):
            require_private(training, f"{path}: {name}.training")
