"""Champions and challengers, measured on the same test pictures, in the same feature space, with the same
settings."""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.model_files import read_card
from pipeline.core.task import Task
from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import read_json
from pipeline.retraining.gates import Circumstances, Gate, GateSettings, judge
from pipeline.retraining.journal import Verdict
from pipeline.tracking import outbox, promotion, registry

Numbers = dict[str, float]


@dataclass(frozen=True)
class Expected:
    """What a model that is trained next will be for: square images of ``channels`` x ``size`` x ``size`` in
    these classes."""

    channels: int
    size: int
    class_names: tuple[str, ...] | None  # None: not known

    @classmethod
    def of(cls, folder: Path) -> "Expected":
        """The same of the trained model in ``folder``."""
        card = read_card(folder)
        names = tuple(card["class_names"]) if "class_names" in card else None
        return cls(card["spec"]["channels"], card["spec"]["size"], names)

    def __str__(self) -> str:
        names, shape = self.class_names, f"{self.channels} x {self.size} x {self.size} pixels"
        if names is None:
            return f"images of {shape}"
        return f"{len(names)} classes ({', '.join(names[:5])}{', ...' * (len(names) > 5)}) of {shape}"


@dataclass(frozen=True)
class Champion:
    """The version that serves, and the folder with its weights."""

    version: str
    folder: Path


def champions(environment: Environment, names: list[str], beside: Path) -> dict[str, Champion]:
    """The champions of the models ``names``, by name. Weights that are not on this machine are downloaded
    into ``beside``, from which everything else is removed."""
    client, _ = outbox.connect(environment)
    known = {model.name for model in client.search_registered_models(max_results=1000)}
    found = {}
    for name in names:
        if version := promotion.champion(client, name) if name in known else None:
            folder = beside / f"{name}-{version.version}"
            folder.mkdir(parents=True, exist_ok=True)
            found[name] = Champion(str(version.version), registry.weights(client, version, folder))
    for old in set(beside.glob("*")) - {
        beside / f"{name}-{champion.version}" for name, champion in found.items()
    }:
        shutil.rmtree(old, ignore_errors=True)
    return found


def challengers(environment: Environment, tree: Path) -> dict[str, Any]:
    """The registered versions, by name, of the models in ``tree``. Raises ``DarkroomError`` if MLflow lacks
    one of them."""
    client, _ = outbox.connect(environment)
    found = {}
    for name, folder in _models(tree).items():
        found[name] = registry.find_version(client, name, read_card(folder)["sha256"])
        if found[name] is None:
            remedy = "darkroom sync, then repeat this command"
            raise DarkroomError(
                f"MLflow does not have the trained {name} yet", where=environment.tracking_uri, remedy=remedy
            )
    return found


def hold(
    environment: Environment,
    settings: EvaluationSettings,
    gates: GateSettings,
    tree: Path,
    new_pictures: int,
    candidates: Mapping[str, Any],
    serving: Mapping[str, Champion],
) -> list[Verdict]:
    """A verdict for each of the ``candidates``: the registered versions of the models that were trained in
    ``tree``."""
    folders, data = _models(tree), Dataset.open(tree / "data/processed")
    serves = {name: serving[name].version if name in serving else "" for name in candidates}
    settled = {name: version.tags.get(registry.UNWANTED, "") for name, version in candidates.items()}
    settled |= {
        name: "it is the champion already"
        for name, version in candidates.items()
        if str(version.version) == serves[name]
    }
    contested = {name for name in candidates if not settled[name]}
    print(f"comparing with the champions: {', '.join(sorted(contested)) or 'none'}", flush=True)
    theirs = {name: champion.folder for name, champion in serving.items()}
    measured = (
        measure(settings, data, folders, theirs, contested, environment.torch_device) if contested else {}
    )
    verdicts = []
    for name, version in candidates.items():
        if name not in contested:
            wanted = (
                []
                if str(version.version) == serves[name]
                else [dataclasses.asdict(Gate("wanted", False, settled[name]))]
            )
            verdicts.append(Verdict(name, str(version.version), serves[name], False, settled[name], wanted))
            continue
        ours, before = measured[name]
        hours = read_json(tree / "history" / name / "times.json").get("total", 0.0) / 3600
        circumstances = Circumstances(
            new_pictures, len(data.test), (folders[name] / model_files.WEIGHTS).stat().st_size / 1e6, hours
        )
        known = None if name not in serving else {"now": before} if before else {}
        found = judge({"now": ours}, known, gates, circumstances)
        if known == {} and (difference := incomparable(name, serving[name], Expected.of(folders[name]))):
            found = [
                dataclasses.replace(gate, finding=difference) if gate.name == "comparable" else gate
                for gate in found
            ]
        failed = [f"{gate.name}: {gate.finding}" for gate in found if not gate.passed]
        gained = [f"{gate.name}: {gate.finding}" for gate in found if gate.finding.startswith("better")]
        reason = "; ".join(failed or gained) or (
            "not worse, and trained on new pictures" if known else "the first version"
        )
        results = [dataclasses.asdict(gate) for gate in found]
        verdicts.append(
            Verdict(name, str(version.version), serves[name], not failed, reason, results, ours, before)
        )
    return verdicts


def withdraw(environment: Environment, verdicts: list[Verdict]) -> None:
    """Remove the alias ``challenger`` from the versions that were refused."""
    refused = [verdict for verdict in verdicts if verdict.refused]
    client = outbox.connect(environment)[0] if refused else None
    for verdict in refused:
        registry.withdraw(client, verdict.model, verdict.version)


def sum_up(verdicts: list[Verdict], classifier: str) -> tuple[str, str]:
    """The decision and its explanation. If the classifier is refused, the data is in doubt and no model is
    promoted."""
    refused = {verdict.model: verdict for verdict in verdicts if verdict.refused}
    if classifier in refused:
        for verdict in verdicts:
            if verdict.promoted:
                verdict.promoted, verdict.reason = (
                    False,
                    f"the classifier {classifier}, trained on the same data, was refused",
                )
    promoted = [verdict for verdict in verdicts if verdict.promoted]
    parts = [
        f"{verdict.model} {verdict.before or 'none'} -> {verdict.version} ({verdict.reason})"
        for verdict in promoted
    ]
    parts += [
        f"{verdict.model} stays {verdict.before or 'none'} ({verdict.reason})" for verdict in refused.values()
    ]
    return "refused" if refused and not promoted else "promoted", "; ".join(
        parts
    ) or "the trained versions are the champions already"


def incomparable(name: str, champion: Champion, expected: Expected) -> str:
    """Why a model trained for ``expected`` cannot be compared with the ``champion``; '' if it can."""
    known = Expected.of(champion.folder)
    same_classes = (
        None in (expected.class_names, known.class_names) or expected.class_names == known.class_names
    )
    if not (same_classes and (known.channels, known.size) == (expected.channels, expected.size)):
        return f"the champion {name}/{champion.version} knows {known}, the new data has {expected}: they cannot be compared"
    if load(champion.folder, "cpu") is None:
        return (
            f"the champion {name}/{champion.version} does not fit the present code: they cannot be compared"
        )
    return ""


def measure(
    settings: EvaluationSettings,
    data: Dataset,
    challengers: Mapping[str, Path],
    serving: Mapping[str, Path],
    contested: set[str],
    device: str = "cpu",
) -> dict[str, tuple[Numbers, Numbers]]:
    """For each ``contested`` model, the measures of challenger and champion on the test split of ``data``;
    the second is empty for a champion with other classes or sizes.

    The feature space is that of the champion classifier, or of the challenger if there is none; it is the
    same for both.
    """
    fitting = {
        name: folder
        for name, folder in serving.items()
        if name in challengers and _fits(folder, challengers[name])
    }
    judge_of_images = fitting.get(settings.classifier, challengers.get(settings.classifier))
    ours, theirs = (
        _measure(settings, data, side, judge_of_images, contested, device) for side in (challengers, fitting)
    )
    return {name: (ours[name], theirs.get(name, {})) for name in contested}


def _measure(
    settings: EvaluationSettings,
    data: Dataset,
    side: Mapping[str, Path],
    space: Path | None,
    contested: set[str],
    device: str,
) -> dict[str, Numbers]:
    """Measures of one side: the classifier by its answers, all others in the feature space of the classifier
    in ``space``."""
    classifier, found = settings.classifier, dict[str, Numbers]()
    alone = {classifier: side[classifier]} if classifier in contested & side.keys() else {}
    others = {name: side[name] for name in contested & side.keys() - {classifier}}
    for folders, wanted in (
        (alone, set(alone)),
        (others | ({classifier: space} if others and space else {}), set(others)),
    ):
        if wanted:
            tasks = {name: model_files.load(folder, device) for name, folder in folders.items()}
            digests = {name: model_files.digest(folder) for name, folder in folders.items()}
            with tempfile.TemporaryDirectory() as beside:
                here = Path(beside)
                results = evaluate(
                    settings,
                    data,
                    tasks,
                    digests,
                    history=here,
                    metrics=here / "metrics",
                    plots=here / "plots",
                )
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
    return {
        card.parent.name: card.parent for card in sorted((tree / "models").glob(f"[!.]*/{model_files.CARD}"))
    }


def _fits(one: Path, other: Path) -> bool:
    first, second = read_card(one), read_card(other)
    return (
        all(first.get(key) == second.get(key) for key in ("spec", "class_names"))
        and load(one, "cpu") is not None
    )
