"""The stage ``evaluate``: measure all trained models and write the report."""

import json
from pathlib import Path

from pipeline import environment, process
from pipeline.files import digest_of


def main() -> None:
    """Evaluate all of models/ on data/processed; write metrics/, plots/ and reports/; log them to MLflow."""
    from pipeline.core import model_files
    from pipeline.core.dataset import Dataset
    from pipeline.data.settings import DataSettings
    from pipeline.evaluation import report
    from pipeline.evaluation.evaluate import evaluate, protocol_of
    from pipeline.evaluation.settings import EvaluationSettings
    from pipeline.params import read_section
    from pipeline.settings_check import require_valid_params
    from pipeline.tracking import lineage, runs

    require_valid_params()
    env = environment.read()
    settings = read_section("evaluate", EvaluationSettings)
    data, raw_folder = Dataset.open(Path("data/processed")), read_section("data", DataSettings).folder
    device = env.torch_device
    cards = sorted(Path("models").glob(f"[!.]*/{model_files.CARD}"))
    folders = {card.parent.name: card.parent for card in cards}
    tasks = {name: model_files.load(folder, device) for name, folder in folders.items()}
    digests = {name: model_files.digest(folder) for name, folder in folders.items()}
    params = json.loads(settings.model_dump_json())
    fingerprint = digest_of([params, data.digest, digests])
    tags = {"device": device, "test_images": len(data.test)}
    description = runs.Description(
        "evaluate", fingerprint, params, data.source, data.digest, "data/processed", tags
    )
    with runs.open_run(env, description) as run:
        results = evaluate(settings, data, tasks, digests)
        commit = lineage.git_tags(Path.cwd())["mlflow.source.git.commit"]
        source = f"{data.source} {raw_folder}" if data.source == "folder" else data.source
        report.write(results, data.folder, source=source, commit=commit)
        run.log_results(
            {name: results[name] for name in tasks},
            {name: model_files.read_card(folder)["sha256"] for name, folder in folders.items()},
            {name: digest_of(protocol_of(results, name)) for name in tasks},
        )
        run.write_run_file(Path("reports"))
        metrics = ("metrics/evaluation.json", "metrics/details.json")
        for path in (*metrics, "reports/index.html", "plots/pictures"):
            run.log_artifact(Path(path))
    outputs = "metrics/evaluation.json, reports/index.html"
    print(f"{len(tasks)} models evaluated on {len(data.test):,} test images -> {outputs}")


if __name__ == "__main__":
    process.run(main)
