"""Champions and challengers, measured on the same test pictures, in the same feature space and settings."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.fields import PROCESSED, DataSpec
from pipeline.core.model_files import read_card
from pipeline.core.task import Task
from pipeline.data import sources
from pipeline.data.reading import arrange, read_layout
from pipeline.data.settings import DataSettings
from pipeline.errors import DarkroomError
from pipeline.estimate import Estimate
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import read_json
from pipeline.retraining.gates import Facts, Gate, GateSettings, Numbers, judge, newest_protocol
from pipeline.retraining.journal import Verdict
from pipeline.tracking import identity, promotion, registry

if TYPE_CHECKING:
    from pipeline.tracking.registry import MlflowClient

IMAGES = "images"  # the data set of the pictures that are retrained on


@dataclass(frozen=True)
class Expected:
    """The data of a training: images (C, H, W) or clips (T, C, H, W) of this shape in these classes."""

    shape: tuple[int, ...]
    class_names: tuple[str, ...] | None  # None: not known

    @classmethod
    def of(cls, folder: Path) -> "Expected":
        """The data of the trained model in ``folder``."""
        card = read_card(folder)
        return cls.of_spec(DataSpec.from_json(card["spec"]), card.get("class_names", ()))

    @classmethod
    def of_spec(cls, spec: DataSpec, class_names: Iterable[str]) -> "Expected":
        """The data with these fields, of which one is an image or a clip."""
        shapes = [field.shape for field in spec.fields.values() if field.kind in ("image", "clip")]
        return cls(shapes[0], tuple(class_names) or None)

    def __str__(self) -> str:
        names, shape = self.class_names, f"{' x '.join(map(str, self.shape))} pixels"
        if names is None:
            return f"{'clips' if len(self.shape) == 4 else 'images'} of {shape}"
        return f"{len(names)} classes ({', '.join(names[:5])}{', ...' * (len(names) > 5)}) of {shape}"


@dataclass(frozen=True)
class Champion:
    """The version with the alias champion, and the folder with its weights."""

    name: str
    version: str
    folder: Path

    def load(self, device: str) -> Task | None:
        """The model; None if its weights do not fit the present code."""
        try:
            return model_files.load(self.folder, device)
        except DarkroomError as error:
            print(f"  {error}")
            return None

    def incomparable(self, expected: Expected) -> str:
        """Why a model trained on ``expected`` cannot be compared with this one; '' if it can."""
        known = Expected.of(self.folder)
        names = {expected.class_names, known.class_names} - {None}
        if len(names) > 1 or known.shape != expected.shape:
            what = f"knows {known}, the new data has {expected}"
        elif self.load("cpu") is None:
            what = "does not fit the present code"
        else:
            return ""
        return f"the champion {self.name}/{self.version} {what}: they cannot be compared"


def load(champion: Champion | None, expected: Expected, device: str) -> Task | None:
    """The champion's model if it fits the code and knows the ``expected`` data."""
    return champion.load(device) if champion and Expected.of(champion.folder) == expected else None


def expected_data(
    data: DataSettings, tree: Path, files: Sequence[str] | None = None
) -> tuple[Expected | None, int | None]:
    """The data on which the worktree ``tree`` will train, and about how many test pictures it will have.

    ``files``: the names of its pictures, if they are not those in the folder. None: not known yet.
    """
    source = sources.find(data.source)
    channels = {"grey": 1, "rgb": 3}.get(data.color, source.shape[0])
    size = data.image_size or source.shape[1]
    if source.read is not None:
        manifest = tree / PROCESSED / IMAGES / "manifest.json"
        known = read_json(manifest) if manifest.is_file() else {}
        names = tuple(known["class_names"]) if known.get("source") == data.source else None
        return Expected((channels, size, size), names), None
    place = tree / data.folder
    try:
        layout = read_layout(place, data) if files is None else arrange(files, [], data)
        layout.refuse(where=data.folder)
    except (OSError, DarkroomError):  # the stage download reports it
        return None, None
    num_test = sum(entry.split == "test" for entry in layout.entries)
    num_test = num_test or round(len(layout.entries) * data.test_fraction)
    return Expected((channels, size, size), layout.class_names), num_test


def champions(client: "MlflowClient", names: Iterable[str], downloads: Path) -> dict[str, Champion]:
    """The champions of the models ``names``. Weights on another machine are copied into ``downloads``."""
    known = {model.name for model in client.search_registered_models(max_results=1000)}
    found = {}
    for name in names:
        if version := promotion.champion(client, name) if name in known else None:
            folder = registry.weights(client, version, downloads / f"{name}-{version.version}")
            found[name] = Champion(name, str(version.version), folder)
    return found


def challengers(client: "MlflowClient", tree: Path) -> dict[str, Any]:
    """The registered versions of the models in ``tree``. Raises ``DarkroomError`` if one is missing."""
    found = {}
    for name, folder in _models(tree).items():
        found[name] = registry.find_version(client, name, identity.of_card(read_card(folder)))
        if found[name] is None:
            what = f"MLflow does not have the trained {name} yet"
            raise DarkroomError(what, where=str(folder), remedy="darkroom sync, then repeat this command")
    return found


def compare(
    settings: EvaluationSettings,
    gates: GateSettings,
    tree: Path,
    device: str,
    new_pictures: int,
    candidates: Mapping[str, Any],
    serving: Mapping[str, Champion],
) -> list[Verdict]:
    """A verdict for each of ``candidates``: the registered versions of the models trained in ``tree``.

    A model of composed clips or scenes is measured on those of the test pictures.
    """
    folders, verdicts = _models(tree), list[Verdict]()
    for name, version in candidates.items():
        before = serving[name].version if name in serving else ""
        verdict = Verdict(model=name, version=str(version.version), before=before)
        verdicts.append(verdict)
        if verdict.version == before:
            verdict.reason = "it is the champion already"
        elif reason := version.tags.get(registry.UNWANTED):
            verdict.reason, verdict.gates = reason, [asdict(Gate("wanted", False, reason))]
    contested = {verdict.model: verdict for verdict in verdicts if not verdict.reason}
    print(f"comparing with the champions: {', '.join(sorted(contested)) or 'none'}")
    if not contested:
        return verdicts
    data = {name: _dataset_of(folders[name], tree) for name in contested}
    datasets = {one.folder.name: one for one in (Dataset.open(tree / PROCESSED / IMAGES), *data.values())}
    why = {name: one.incomparable(Expected.of(folders[name])) for name, one in serving.items()}
    fitting = {name: one.folder for name, one in serving.items() if not why[name]}
    # One space for all: that of the champion classifier, or of the challenger if there is none.
    space = fitting.get(settings.classifier, folders.get(settings.classifier))
    ours, theirs = (
        _measure(
            settings, datasets, {name: models[name] for name in contested if name in models}, space, device
        )
        for models in (folders, fitting)
    )
    for name, verdict in contested.items():
        seconds = read_json(tree / "history" / name / "times.json").get("total")
        facts = Facts(
            len(data[name].test),
            (folders[name] / model_files.WEIGHTS).stat().st_size / 1e6,
            seconds and seconds / 3600,
            new_pictures if _has_new(data[name]) else 0,
            why.get(name, ""),
        )
        known = {"now": theirs[name]} if name in theirs else {}
        found = judge({"now": ours[name]}, known if name in serving else None, gates, facts)
        verdict.numbers, verdict.before_numbers = _to_json(ours[name]), _to_json(theirs.get(name, {}))
        verdict.gates = [asdict(gate) for gate in found]
        failed = [f"{gate.name}: {gate.finding}" for gate in found if not gate.passed]
        better = [f"{gate.name}: {gate.finding}" for gate in found if gate.finding.startswith("better")]
        otherwise = "not worse, and trained on new pictures" if known else "the first version"
        verdict.promoted, verdict.reason = not failed, "; ".join(failed or better) or otherwise
    return verdicts


def judge_registered(
    client: "MlflowClient", experiment: str, version: Any, champion: Any | None, settings: GateSettings
) -> list[Gate]:
    """The gates of a registered ``version`` against the ``champion``, as far as MLflow knows the facts.

    Whether a promotion is worth it without new pictures is left to the user.
    """
    ours, theirs = registry.results(version), registry.results(champion) if champion else None
    measured = f"tags.`darkroom.protocol.{version.name}` = '{newest_protocol(ours, theirs)}'"
    evaluations = client.search_runs([experiment], measured, max_results=1)
    images = evaluations and evaluations[0].data.tags.get("darkroom.test_images")
    seconds = client.get_run(version.run_id).data.tags.get("darkroom.total")
    facts = Facts(int(images) if images else None, hours=float(seconds) / 3600 if seconds else None)
    if settings.max_megabytes:
        with tempfile.TemporaryDirectory() as temporary:
            weights = registry.weights(client, version, Path(temporary)) / model_files.WEIGHTS
            facts = replace(facts, megabytes=weights.stat().st_size / 1e6)
    return judge(ours, theirs, settings, facts)


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


def _measure(
    settings: EvaluationSettings,
    datasets: Mapping[str, Dataset],
    models: dict[str, Path],
    space: Path | None,
    device: str,
) -> dict[str, Numbers]:
    """The measures of ``models`` on the test split: the classifier's own, others in the feature ``space``."""
    settings = settings.model_copy(update={"models": ()})  # all that are given
    own = {name: models.pop(name) for name in [settings.classifier] if name in models}
    found: dict[str, Numbers] = {}
    for wanted, helper in ((models, {settings.classifier: space} if space else {}), (own, {})):
        if wanted:
            folders = wanted | helper
            tasks = {name: model_files.load(folder, device) for name, folder in folders.items()}
            digests = {name: model_files.digest(folder) for name, folder in folders.items()}
            with tempfile.TemporaryDirectory() as temporary:
                here = Path(temporary)
                outputs = {"history": here, "metrics": here / "metrics", "plots": here / "plots"}
                results = evaluate(settings, datasets, tasks, digests, **outputs)
            found |= {name: Estimate.read(results[name]) for name in wanted}
    return found


def _to_json(numbers: Numbers) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in numbers.items()}


def _models(tree: Path) -> dict[str, Path]:
    """The trained models in ``tree``."""
    folders = [card.parent for card in sorted((tree / "models").glob(f"[!.]*/{model_files.CARD}"))]
    return {folder.name: folder for folder in folders}


def _has_new(data: Dataset) -> bool:
    """Whether new pictures get into ``data``. A user's own clips and masks stay as they are."""
    return data.folder.name == IMAGES or "pictures" in data.manifest  # composed of them


def _dataset_of(folder: Path, tree: Path) -> Dataset:
    """The data set in ``tree`` that the model in ``folder`` learns from."""
    return Dataset.open(tree / PROCESSED / model_files.find(read_card(folder)["name"]).dataset)
