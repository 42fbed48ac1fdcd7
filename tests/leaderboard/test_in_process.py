"""A leaderboard whose trainings run in the process of the command, without DVC."""

from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from pipeline import environment
from pipeline.leaderboard import board as boards
from pipeline.leaderboard import in_process, trainings
from tests.project import Project
from tests.search.conftest import project  # noqa: F401 - a fixture

BOARD = {
    "model": "cnn",
    "num_steps": 9,
    "seeds": [0],
    "measures": ["accuracy"],
    "curve": "accuracy",
    "settings": {"cnn.model.dropout": 0.0, "cnn.training.validate_every": 3},
    "variants": {"slow": {"cnn.model.optimizer.learning_rate": 1e-4}, "fast": {}},
}


def files(folder: Path) -> set[str]:
    """The files of the workspace."""
    own = [path for path in folder.iterdir() if not path.name.startswith((".", "mlflow.db", "mlartifacts"))]
    return {str(path) for top in own for path in (top, *top.rglob("*"))}


def test_each_training_is_run_measured_and_tracked_once_and_the_workspace_is_left_alone(
    project: Project,  # noqa: F811
    monkeypatch,
    capfd,
):
    monkeypatch.setattr(trainings, "_experiment", lambda *_: pytest.fail("a DVC experiment was run"))
    (project.folder / "board.yaml").write_text(yaml.safe_dump(BOARD, sort_keys=False))
    board, env = boards.read(Path("board.yaml")), environment.read()
    entries, before = boards.entries(board, Path("board.yaml")), files(project.folder)
    whole, calls = in_process.evaluate, []

    def fails_first(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("accuracy is not finite")  # or a lack of memory: the other goes on
        return whole(*arguments, **keywords)

    monkeypatch.setattr(in_process, "evaluate", fails_first)
    failed, measured = trainings.run(env, board, entries, in_process=True)
    assert failed.run is None and measured.run and "not finite" in capfd.readouterr().err
    failed, again = trainings.run(env, board, entries, in_process=True)  # is trained already
    assert failed.run and again.run.run_id == measured.run.run_id and len(calls) == 3
    output = capfd.readouterr().out
    assert "2 trainings, of which 1 are finished" in output and "already finished" in output
    for result in (failed, again):
        ((found,),) = [result.run.results.values()]
        assert 0 <= found["accuracy"].low <= found["accuracy"].value <= found["accuracy"].high <= 1
        assert len(result.curve) == 3
    assert files(project.folder) == before
    runs = MlflowClient(env.tracking_uri).search_runs(["1"], "attributes.status = 'FINISHED'")
    assert sorted(run.data.tags["darkroom.stage"] for run in runs) == ["evaluate"] * 2 + ["train-cnn"] * 2
