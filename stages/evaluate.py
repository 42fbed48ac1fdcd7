"""The stage ``evaluate``: measure the trained models and write the report."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import environment, process
from pipeline.errors import BadInput
from pipeline.files import digest_of

if TYPE_CHECKING:
    from pipeline.evaluation.settings import EvaluationSettings


def fingerprint(settings: "EvaluationSettings", data: dict[str, str], models: dict[str, str]) -> str:
    """What the results depend on. ``data`` and ``models``: digests by name."""
    from pipeline.evaluation.features import network_digest

    network = [network_digest(settings.feature_network)] if settings.feature_network else []
    return digest_of([json.loads(settings.model_dump_json()), data, models, *network])


def required(settings: "EvaluationSettings", names: Collection[str]) -> list[str]:
    """Those of the models ``names`` that an evaluation of ``settings.models`` (none: all) loads.

    Of the models that are left out these are the classifiers that compare images, if they are trained.
    """
    from pipeline.core.model_files import CARD, find
    from pipeline.core.task import Task

    chosen = settings.models
    datasets = {find(name).dataset for name in chosen}

    def compares(name: str) -> bool:
        if not Path("models", name, CARD).is_file() or find(name).classify is Task.classify:
            return False
        return name == settings.classifier or find(name).dataset in datasets

    return [name for name in names if not chosen or name in chosen or compares(name)]


def main() -> None:
    """Evaluate the models with a stage in dvc.yaml, or ``evaluate.models``, on their data sets.

    Write metrics/, plots/ and reports/, and log them to MLflow.
    """
    from pipeline.core import model_files
    from pipeline.core.dataset import Dataset
    from pipeline.core.memory_format import use_channels_last
    from pipeline.data.settings import DataSettings
    from pipeline.evaluation import history, report
    from pipeline.evaluation.evaluate import evaluate, protocol_of
    from pipeline.evaluation.settings import EvaluationSettings
    from pipeline.openmp import short_waits_if_busy
    from pipeline.params import read_section
    from pipeline.settings_check import require_valid_params
    from pipeline.tracking import lineage, runs

    require_valid_params()
    process.keep_freed_memory()
    env = environment.read()
    settings = read_section("evaluate", EvaluationSettings)
    raw_folder = read_section("data", DataSettings).folder
    stage = lineage.stages_of(Path("dvc.yaml")).get("evaluate", {})
    network, watched = settings.feature_network, lineage.paths_in(stage, "deps")
    if network not in ("", "pixels") and not any(Path(network).is_relative_to(path) for path in watched):
        print(f"note: DVC does not watch {network}: add it to the deps of the stage evaluate", flush=True)
    device = env.torch_device
    names = lineage.trained_models(Path.cwd())
    if not names:
        remedy = "add one, as docs/adding-a-model.md shows"
        raise BadInput("has no stage train-<model>", where="dvc.yaml", remedy=remedy)
    present = {card.parent.name for card in Path("models").glob(f"[!.]*/{model_files.CARD}")}
    if left := sorted(present - set(names)):
        print(f"skipped: {', '.join(left)}, because dvc.yaml has no stage train-{left[0]}", flush=True)
    folders = {name: Path("models", name) for name in required(settings, names)}
    for name in folders:
        history.check(Path("history", name))
    tasks = {name: model_files.load(folder, device) for name, folder in folders.items()}
    for task in tasks.values():
        use_channels_last(task)  # as in the training
    digests = {name: model_files.digest(folder) for name, folder in folders.items()}
    used = sorted({task.dataset for task in tasks.values()})
    datasets = {name: Dataset.open(Path("data/processed", name)) for name in used}
    data_digests = {name: data.digest for name, data in datasets.items()}
    sources = sorted({data.source for data in datasets.values()})
    params = json.loads(settings.model_dump_json())
    description = runs.Description(
        "evaluate",
        fingerprint(settings, data_digests, digests),
        params,
        ", ".join(sources),
        data_digests[used[0]] if len(used) == 1 else digest_of(data_digests),
        "data/processed",
        {"device": device, "test_images": min((len(data.test) for data in datasets.values()), default=0)},
    )
    with runs.open_run(env, description) as run:
        with short_waits_if_busy():
            results = evaluate(settings, datasets, tasks, digests)
        commit = lineage.git_tags(Path.cwd())["mlflow.source.git.commit"]
        source = ", ".join(f"folder {raw_folder}" if each == "folder" else each for each in sources)
        report.write(
            results, {name: data.folder for name, data in datasets.items()}, source=source, commit=commit
        )
        measured = list(results["protocol"])
        run.log_results(
            {name: results[name] for name in measured},
            {name: model_files.read_card(folder) for name, folder in folders.items()},
            {name: digest_of(protocol_of(results, name)) for name in measured},
        )
        run.write_run_file(Path("reports"))
        metrics = ("metrics/evaluation.json", "metrics/details.json")
        for path in (*metrics, "reports/index.html", "plots/pictures"):
            run.log_artifact(Path(path))
    sizes = ", ".join(f"{len(data.test):,} test examples of {name}" for name, data in datasets.items())
    print(f"{len(measured)} models evaluated on {sizes} -> metrics/evaluation.json, reports/index.html")


if __name__ == "__main__":
    process.run(main)
