"""Champions and challengers measured alike: the same test pictures, the same feature space, the same settings, now."""

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.dataset import Dataset
from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import read_json
from pipeline.models import store
from pipeline.models.store import read_card
from pipeline.retraining.gates import Circumstances, GateSettings, judge
from pipeline.retraining.journal import Verdict
from pipeline.tracking import outbox, promotion, registry

Numbers = dict[str, float]


@dataclass(frozen=True)
class Champion:
    """The version that serves, and the folder with its weights."""

    version: str
    folder: Path


def champions(environment: Environment, names: list[str], beside: Path) -> dict[str, Champion]:
    """Those that serve, by name, of ``names``. What is not on this machine is fetched into ``beside``."""
    client, _ = outbox.connect(environment)
    known = {model.name for model in client.search_registered_models(max_results=1000)}
    found = {}
    for name in names:
        if version := promotion.champion(client, name) if name in known else None:
            folder = beside / f"{name}-{version.version}"
            folder.mkdir(parents=True, exist_ok=True)
            found[name] = Champion(str(version.version), registry.weights(client, version, folder))
    return found


def hold(
    environment: Environment, settings: EvaluationSettings, gates: GateSettings, tree: Path, new_pictures: int, beside: Path
) -> list[Verdict]:
    """A verdict for each model in ``tree``, where it was trained. Raises ``DarkroomError`` where MLflow does not know one yet."""
    client, _ = outbox.connect(environment)
    folders = {card.parent.name: card.parent for card in sorted((tree / "models").glob(f"[!.]*/{store.CARD}"))}
    versions: dict[str, str] = {}
    for name, folder in folders.items():
        found = registry.find_version(client, name, read_card(folder)["sha256"])
        if found is None:
            raise DarkroomError(
                f"MLflow has not been told of {name}", where=environment.tracking_uri, remedy="darkroom sync, then this again"
            )
        versions[name] = str(found.version)
    serving = champions(environment, list(folders), beside)
    contested = {name for name, version in versions.items() if name in serving and serving[name].version != version}
    data = Dataset.open(tree / "data/processed")
    print(f"measured beside the champions: {', '.join(sorted(contested)) or 'none'}", flush=True)
    theirs = {name: champion.folder for name, champion in serving.items()}
    measured = measure(settings, data, folders, theirs, contested, environment.torch_device) if contested else {}
    verdicts = []
    for name, folder in folders.items():
        if name not in contested:
            verdicts.append(Verdict(name, versions[name], versions[name], False, "it serves already"))
            continue
        ours, before = measured[name]
        hours = read_json(tree / "history" / name / "times.json").get("total", 0.0) / 3600
        circumstances = Circumstances(new_pictures, len(data.test), (folder / store.WEIGHTS).stat().st_size / 1e6, hours)
        found = judge({"now": ours}, {"now": before} if before else {}, gates, circumstances)
        failed = [f"{gate.name}: {gate.finding}" for gate in found if not gate.passed]
        gained = [f"{gate.name}: {gate.finding}" for gate in found if gate.finding.startswith("better")]
        reason = "; ".join(failed or gained) or "no worse, and it learnt from what the champion never saw"
        told = [dataclasses.asdict(gate) for gate in found]
        verdicts.append(Verdict(name, versions[name], serving[name].version, not failed, reason, told, ours, before))
    return verdicts


def withdraw(environment: Environment, verdicts: list[Verdict]) -> None:
    """Take the alias from the challengers that were refused: they wait for nothing any more."""
    refused = [verdict for verdict in verdicts if verdict.gates and not verdict.promoted]
    client = outbox.connect(environment)[0] if refused else None
    for verdict in refused:
        registry.withdraw(client, verdict.model, verdict.version)


def sum_up(verdicts: list[Verdict], classifier: str) -> tuple[str, str]:
    """The decision and its explanation. The classifier vouches for the data: where it is refused, nothing is promoted."""
    refused = {verdict.model: verdict for verdict in verdicts if verdict.gates and not verdict.promoted}
    if classifier in refused:
        for verdict in verdicts:
            if verdict.promoted:
                verdict.promoted, verdict.reason = False, f"{classifier}, which vouches for the data, was refused"
    promoted = [verdict for verdict in verdicts if verdict.promoted]
    said = [f"{verdict.model} {verdict.before} -> {verdict.version} ({verdict.reason})" for verdict in promoted]
    said += [f"{verdict.model} stays {verdict.before} ({verdict.reason})" for verdict in refused.values()]
    return "refused" if refused and not promoted else "promoted", "; ".join(said) or "what was trained serves already"


def measure(
    settings: EvaluationSettings,
    data: Dataset,
    challengers: Mapping[str, Path],
    serving: Mapping[str, Path],
    contested: set[str],
    device: str = "cpu",
) -> dict[str, tuple[Numbers, Numbers]]:
    """By ``contested`` model: the challenger's and the champion's measures on the test split of ``data``; none of a champion that
    knows other classes or sizes.

    The feature space is that of the champion classifier, or of the challenger where there is none: it does not change with the side.
    """
    fitting = {name: folder for name, folder in serving.items() if name in challengers and _fits(folder, challengers[name])}
    judge_of_images = fitting.get(settings.classifier, challengers.get(settings.classifier))
    ours, theirs = (_measure(settings, data, side, judge_of_images, contested, device) for side in (challengers, fitting))
    return {name: (ours[name], theirs.get(name, {})) for name in contested}


def _measure(
    settings: EvaluationSettings, data: Dataset, side: Mapping[str, Path], space: Path | None, contested: set[str], device: str
) -> dict[str, Numbers]:
    """The classifier by its own answers, and all others in the ``space`` of one that is the same for both sides."""
    classifier, found = settings.classifier, dict[str, Numbers]()
    alone = {classifier: side[classifier]} if classifier in contested & side.keys() else {}
    others = {name: side[name] for name in contested & side.keys() - {classifier}}
    for folders, wanted in ((alone, set(alone)), (others | ({classifier: space} if others and space else {}), set(others))):
        if wanted:
            tasks = {name: store.load(folder, device) for name, folder in folders.items()}
            digests = {name: store.digest(folder) for name, folder in folders.items()}
            with tempfile.TemporaryDirectory() as beside:
                here = Path(beside)
                results = evaluate(settings, data, tasks, digests, history=here, metrics=here / "metrics.json", plots=here / "plots")
            found |= {name: results[name] for name in wanted}
    return found


def _fits(one: Path, other: Path) -> bool:
    first, second = read_card(one), read_card(other)
    return all(first.get(key) == second.get(key) for key in ("spec", "class_names"))
