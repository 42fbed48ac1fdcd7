"""The stage ``evaluate``: every trained model measured, and the report."""

from pathlib import Path

from pipeline import environment, process


def main() -> None:
    """Measure all of models/ on data/processed; write metrics/, plots/ and reports/."""
    import torch

    from pipeline.data.dataset import Dataset
    from pipeline.evaluation import report
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.evaluation.settings import EvaluationSettings
    from pipeline.models import store
    from pipeline.params import read_section

    settings = read_section("evaluate", EvaluationSettings)
    dataset = Dataset.open(Path("data/processed"))
    device = "cuda" if environment.read().device != "cpu" and torch.cuda.is_available() else "cpu"
    folders = {card.parent.name: card.parent for card in sorted(Path("models").glob(f"*/{store.CARD}"))}
    tasks = {name: store.load(folder, device) for name, folder in folders.items()}
    results = evaluate(settings, dataset, tasks, {name: store.digest(folder) for name, folder in folders.items()})
    report.write(results, dataset.folder, source=str(dataset.source))


if __name__ == "__main__":
    process.run(main)
