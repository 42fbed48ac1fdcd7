"""Champions and challengers, measured on the same test pictures, in the same feature space and settings."""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.fields import DataSpec
from pipeline.core.model_files import read_card
from pipeline.core.task import Task
from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.estimate import Estimate
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import read_json
from pipeline.retraining.gates import Circumstances, Gate, GateSettings, judge
from pipeline.retraining.journal import Verdict
from pipeline.tracking import connection, promotion, registry

IMAGES = "images"  # the data set that is retrained
Numbers = dict[str, Any]  # estimates by quantity, as JSON


@dataclass(frozen=True)
class Expected:
    """The data of a training: images of ``channels`` x ``size`` x ``size`` pixels in these classes."""

    channels: int
    size: int
    class_names: tuple[str, ...] | None  # None: not known

    @classmethod
    def of(cls, folder: Path) -> "Expected":
        """The data of the trained model in ``folder``."""
        card = read_card(folder)
        names = tuple(card["class_names"]) if "class_names" in card else None
        spec = DataSpec.from_json(card["spec"])
        return cls(spec.channels, spec.size, names)

    def __str__(self) -> str:
        names, shape = self.class_names, f"{self.channels} x {self.size} x {self.size} pixels"
        if names is None:
            return f"images of {shape}"
        return f"{len(names)} classes ({', '.join(names[:5])}{', ...' * (len(names) > 5)}) of {shape}"


@dataclass(frozen=True)
class Champion:
    """The version with the alias champion, and the folder with its weights."""

    version: str
    folder: Path


def champions(environment: Environment, names: list[str], cache: Path) -> dict[str, Champion]:
    """The champions of the models ``names``, by name.

    Weights that are not on this machine are downloaded into the folder ``cache``. Everything else in it is
    removed.
    """
    client, _ = connection.connect(environment)
    known = {model.name for model in client.search_registered_models(max_results=1000)}
    found, used = {}, set()
    for name in names:
        if version := promotion.champion(client, name) if name in known else None:
            folder = cache / f"{name}-{version.version}"
            folder.mkdir(parents=True, exist_ok=True)
            used.add(folder)
            found[name] = Champion(str(version.version), registry.weights(client, version, folder))
    for old in set(cache.glob("*")) - used:
        shutil.rmtree(old, ignore_errors=True)
    return found


def challengers(environment: Environment, tree: Path) -> dict[str, Any]:
    """The registered versions of the models in ``tree``, by name.

    Raises ``DarkroomError`` if MLflow lacks one of them.
    """
    client, _ = connection.connect(environment)
    found = {}
    for name, folder in _models(tree).items():
        found[name] = registry.find_version(client, name, read_card(folder)["sha256"])
        if found[name] is None:
            what, remedy = (
                f"MLflow does not have the trained {name} yet",
                "darkroom sync, then repeat this command",
            )
            raise DarkroomError(what, where=environment.tracking_uri, remedy=remedy)
    return found


def compare(
    environment: Environment,
    settings: EvaluationSettings,
    gates: GateSettings,
    tree: Path,
    new_pictures: int,
    candidates: Mapping[str, Any],
    serving: Mapping[str, Champion],
) -> list[Verdict]:
    """A verdict for each of ``candidates``: the registered versions of the models trained in ``tree``."""
    folders, data = _models(tree), Dataset.open(tree / "data/processed/images")
    contested = {
        name
        for name, version in candidates.items()
        if not (_is_champion(version, serving.get(name)) or version.tags.get(registry.UNWANTED))
    }
    print(f"comparing with the champions: {', '.join(sorted(contested)) or 'none'}", flush=True)
    champion_folders = {name: champion.folder for name, champion in serving.items()}
    device = environment.torch_device
    measured = measure(settings, data, folders, champion_folders, contested, device) if contested else {}
    verdicts = []
    for name, version in candidates.items():
        champion = serving.get(name)
        number, before = str(version.version), champion.version if champion else ""
        if _is_champion(version, champion):
            verdicts.append(Verdict(name, number, before, False, "it is the champion already"))
            continue
        if name not in contested:
            reason = version.tags[registry.UNWANTED]
            gate = dataclasses.asdict(Gate("wanted", False, reason))
            verdicts.append(Verdict(name, number, before, False, reason, [gate]))
            continue
        numbers, before_numbers = measured[name]
        hours = read_json(tree / "history" / name / "times.json").get("total", 0.0) / 3600
        megabytes = (folders[name] / model_files.WEIGHTS).stat().st_size / 1e6
        circumstances = Circumstances(new_pictures, len(data.test), megabytes, hours)
        known = {"now": Estimate.read(before_numbers)} if before_numbers else {}
        found = judge({"now": Estimate.read(numbers)}, known if champion else None, gates, circumstances)
        if champion and not before_numbers:
            why = incomparable(name, champion, Expected.of(folders[name]))
            found = [
                dataclasses.replace(gate, finding=why) if why and gate.name == "comparable" else gate
                for gate in found
            ]
        failed = [f"{gate.name}: {gate.finding}" for gate in found if not gate.passed]
        better = [f"{gate.name}: {gate.finding}" for gate in found if gate.finding.startswith("better")]
        otherwise = "not worse, and trained on new pictures" if known else "the first version"
        reason = "; ".join(failed or better) or otherwise
        results = [dataclasses.asdict(gate) for gate in found]
        verdicts.append(Verdict(name, number, before, not failed, reason, results, numbers, before_numbers))
    return verdicts


def _is_champion(version: Any, champion: Champion | None) -> bool:
    return champion is not None and str(version.version) == champion.version


def withdraw(environment: Environment, verdicts: list[Verdict]) -> None:
    """Remove the alias ``challenger`` from the versions that were refused."""
    refused = [verdict for verdict in verdicts if verdict.refused]
    client = connection.connect(environment)[0] if refused else None
    for verdict in refused:
        registry.withdraw(client, verdict.model, verdict.version)


def decide(verdicts: list[Verdict], classifier: str) -> tuple[str, str]:
    """The decision and its explanation.

    If the classifier is refused, the data may be wrong, and no model is promoted.
    """
    refused = {verdict.model: verdict for verdict in verdicts if verdict.refused}
    for verdict in verdicts:
        if classifier in refused and verdict.promoted:
            verdict.promoted = False
            verdict.reason = f"the classifier {classifier}, trained on the same data, was refused"
    promoted = [verdict for verdict in verdicts if verdict.promoted]
    parts = [
        *(f"{one.model} {one.before or 'none'} -> {one.version} ({one.reason})" for one in promoted),
        *(f"{one.model} stays {one.before or 'none'} ({one.reason})" for one in refused.values()),
    ]
    explanation = "; ".join(parts) or "the trained versions are the champions already"
    return "refused" if refused and not promoted else "promoted", explanation


def incomparable(name: str, champion: Champion, expected: Expected) -> str:
    """Why a model trained on ``expected`` cannot be compared with the ``champion``; '' if it can."""
    known = Expected.of(champion.folder)
    names = {expected.class_names, known.class_names} - {None}
    if len(names) > 1 or (known.channels, known.size) != (expected.channels, expected.size):
        what = f"knows {known}, the new data has {expected}"
    elif load(champion.folder, "cpu") is None:
        what = "does not fit the present code"
    else:
        return ""
    return f"the champion {name}/{champion.version} {what}: they cannot be compared"


def measure(
    settings: EvaluationSettings,
    data: Dataset,
    challengers: Mapping[str, Path],
    serving: Mapping[str, Path],
    contested: set[str],
    device: str = "cpu",
) -> dict[str, tuple[Numbers, Numbers]]:
    """For each ``contested`` model, the measures of challenger and champion on the test split of ``data``.

    The second is empty for a champion with other classes or sizes. Both are measured in the feature space of
    the champion classifier, or of the challenger if there is none.
    """
    fitting = {
        name: folder
        for name, folder in serving.items()
        if name in challengers and _fits(folder, challengers[name])
    }
    space = fitting.get(settings.classifier, challengers.get(settings.classifier))
    ours, theirs = (
        _measure(settings, data, models, space, contested, device) for models in (challengers, fitting)
    )
    return {name: (ours[name], theirs.get(name, {})) for name in contested}


def _measure(
    settings: EvaluationSettings,
    data: Dataset,
    models: Mapping[str, Path],
    space: Path | None,
    contested: set[str],
    device: str,
) -> dict[str, Numbers]:
    """Measures of ``models``: the classifier's own, and the others' in the feature space of ``space``."""
    classifier, found = settings.classifier, dict[str, Numbers]()
    own = {classifier: models[classifier]} if classifier in contested & models.keys() else {}
    others = {name: models[name] for name in contested & models.keys() - {classifier}}
    for wanted, helpers in ((own, {}), (others, {classifier: space} if space else {})):
        if wanted:
            folders = {**wanted, **helpers}
            tasks = {name: model_files.load(folder, device) for name, folder in folders.items()}
            digests = {name: model_files.digest(folder) for name, folder in folders.items()}
            with tempfile.TemporaryDirectory() as temporary:
                here = Path(temporary)
                outputs = {"history": here, "metrics": here / "metrics", "plots": here / "plots"}
                results = evaluate(settings, {IMAGES: data}, tasks, digests, **outputs)
            found |= {name: results[name] for name in wanted}
    return found


def load(folder: Path, device: str) -> Task | None:
    """The model in ``folder``; None if its weights do not fit the present code."""
    try:
        return model_files.load(folder, device)
    except DarkroomError as error:
        print(f"  {error}", flush=True)
        return None


def _models(tree: Path) -> dict[str, Path]:
    """The models that learn from the data set that is retrained."""
    folders = [card.parent for card in sorted((tree / "models").glob(f"[!.]*/{model_files.CARD}"))]
    kinds = {folder: model_files.find(read_card(folder)["name"]) for folder in folders}
    return {folder.name: folder for folder, kind in kinds.items() if kind.dataset == IMAGES}


def _fits(one: Path, other: Path) -> bool:
    first, second = read_card(one), read_card(other)
    same_spec = DataSpec.from_json(first["spec"]) == DataSpec.from_json(second["spec"])
    return (
        same_spec and first.get("class_names") == second.get("class_names") and load(one, "cpu") is not None
    )
