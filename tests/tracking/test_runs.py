"""One run for one training: each metric once, and the right status."""

import json
import subprocess
from contextlib import nullcontext
from dataclasses import replace

import pytest

from pipeline.errors import BadInput
from pipeline.estimate import Estimate
from pipeline.tracking import delivery_queue, registry, restored
from pipeline.tracking.runs import Description, open_run
from tests.tracking.conftest import all_runs, child, write_lines, write_model, write_picture

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org")


def test_a_killed_and_resumed_training_is_one_run_with_each_step_once(environment, client, tmp_path):
    folder = tmp_path / "training"
    write_lines(folder, range(0, 10))
    write_picture(folder, 0)
    assert child(environment).wait() == -9
    (killed,) = all_runs(client())
    assert killed.info.status == "RUNNING"
    assert len(client().get_metric_history(killed.info.run_id, "validation/accuracy")) == 10
    write_lines(folder, range(10, 20))
    write_picture(folder, 10)
    with open_run(environment, Description("train-gan", "f" * 64, {"seed": 1})) as run:
        run.follow(folder)
        assert client().get_run(run.id).info.status == "RUNNING"
    (finished,) = all_runs(client())
    assert finished.info.run_id == killed.info.run_id == run.id
    assert finished.info.status == "FINISHED"
    for key in ("validation/accuracy", "train/discriminator/loss"):
        assert [point.step for point in client().get_metric_history(run.id, key)] == list(range(20))
    pictures = [
        entry.path for entry in client().list_artifacts(run.id, "images") if entry.path.endswith(".png")
    ]
    assert sorted(path.split("+")[2] for path in pictures) == ["0", "10"]
    # MLflow shows these with the curves of train
    assert all(path.startswith("images/train~samples+") for path in pictures)
    assert not list((environment.storage / "tracking").glob("*.json"))


def test_a_replay_without_the_local_record_adds_nothing(environment, client, description, tmp_path):
    folder = tmp_path / "training"
    write_lines(folder, range(1500))
    write_picture(folder, 3)
    for failing in (True, False):
        try:
            with open_run(environment, description) as run:
                run.follow(folder)
                if failing:
                    raise RuntimeError("out of memory")
        except RuntimeError:
            assert client().get_run(run.id).data.tags["darkroom.failure"] == "RuntimeError: out of memory"
    (only,) = all_runs(client())
    assert [
        point.step for point in client().get_metric_history(only.info.run_id, "validation/accuracy")
    ] == list(range(1500))
    assert len(client().list_artifacts(only.info.run_id, "images")) == 2
    assert "darkroom.failure" not in only.data.tags


def test_repeating_a_finished_training_does_not_change_its_run(environment, client, description, tmp_path):
    ends = set()
    for attempt, raised in enumerate((None, None, ValueError("a failing repetition"))):
        folder = tmp_path / str(attempt)  # trained again: the same steps at another time
        folder.mkdir()
        for step in range(5):
            with open(folder / "metrics.jsonl", "a") as file:
                file.write(
                    json.dumps({"step": step, "time": 1000 * attempt + step, "metrics": {"train/loss": 1.0}})
                    + "\n"
                )
        with (
            pytest.raises(ValueError) if raised else nullcontext(),
            open_run(environment, description) as run,
        ):
            run.follow(folder)
            if raised:
                raise raised
        (only,) = all_runs(client())
        assert only.info.status == "FINISHED"
        assert [point.step for point in client().get_metric_history(only.info.run_id, "train/loss")] == list(
            range(5)
        )
        ends.add(only.info.end_time)
    assert len(ends) == 1


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (ValueError("no"), "FAILED"),
        (SystemExit(143), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (None, "FINISHED"),
    ],
)
def test_the_final_status_is_correct(environment, client, description, raised, status):
    with pytest.raises(type(raised)) if raised else nullcontext(), open_run(environment, description):
        if raised:
            raise raised
    (only,) = all_runs(client())
    assert only.info.status == status
    assert only.info.end_time >= only.info.start_time


@pytest.mark.nightly
def test_several_processes_can_create_the_database_at_the_same_time(environment, client, tmp_path):
    (tmp_path / "mlflow.db").unlink()
    racers = [child(environment, f"train-{index}", "finish") for index in range(4)]
    outputs = [racer.communicate()[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, outputs
    assert "".join(outputs) == ""
    assert [run.info.status for run in all_runs(client())] == ["FINISHED"] * 4


def test_params_are_flat_and_do_not_conflict_when_a_run_is_opened_again(environment, client, description):
    with pytest.raises(RuntimeError), open_run(environment, description):
        raise RuntimeError
    more = replace(description, params={"training": {"seed": 8}, "new": True})
    with open_run(environment, more) as run:
        pass
    params = client().get_run(run.id).data.params
    assert params == {
        "training.seed": "7",
        "training.clip_norm": "null",
        "model.dense": "[64, 32]",
        "model.kind": "hinge",
        "new": "true",
    }


def test_a_folder_is_recorded_only_after_it_has_its_run_file(environment, description, tmp_path, monkeypatch):
    """So a kill between the two is made good by the next attempt."""
    with open_run(environment, description) as run:
        monkeypatch.setattr(run, "write_run_file", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.follow(tmp_path)
        assert [record.folder for record in delivery_queue.load_all(environment)] == [""]


def test_an_incomplete_line_is_sent_when_it_is_complete(environment, client, description, tmp_path):
    line = json.dumps({"step": 1, "time": 5, "metrics": {"a": 1.0}}) + "\n"
    with open_run(environment, description) as run:
        (tmp_path / "metrics.jsonl").write_text(line + line[:9])
        run.follow(tmp_path)
        (tmp_path / "metrics.jsonl").write_text(line + line.replace('"step": 1', '"step": 2'))
        run.follow(tmp_path)
    assert [point.step for point in client().get_metric_history(run.id, "a")] == [1, 2]


def test_a_run_has_the_tags_of_its_origin(environment, client, description, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", *IDENTITY, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    with open_run(environment, description) as run:
        pass
    found = client().get_run(run.id)
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, json.loads(data.dataset.source)) == (
        "digits",
        "d" * 36,
        {"uri": "data/processed/images"},
    )
    tags = found.data.tags
    assert (
        tags["darkroom.command"].endswith("dvc repro train-gan") and tags["mlflow.source.name"] == "train-gan"
    )
    assert (
        tags["mlflow.source.git.commit"] in tags["mlflow.note.content"]
        and tags["darkroom.num_workers"] == "2"
    )
    assert tags["darkroom.version.torch"].startswith("2.") and int(tags["darkroom.pid"]) > 0
    assert found.info.run_name == "train-gan, seed 7"


def test_results_reach_the_run_that_trained_the_model(environment, client, description, tmp_path):
    from pipeline.core import model_files

    with open_run(environment, description) as trained:
        assert trained.register(write_model(tmp_path / "gan", "gan"), "gan") == "1"
    card = model_files.read_card(tmp_path / "gan")
    (tmp_path / "report.html").write_text("<p>")
    fid = Estimate(3.5, 3.0, 4.0, 0.5)
    for _ in range(2):
        with open_run(environment, Description("evaluate", "e" * 64)) as run:
            run.log_results(
                {"gan": {"fid": fid.to_json()}, "vae": {"fid": {"value": 4.0}}},
                {"gan": card},
                {"gan": "p" * 64},
            )
            run.log_artifact(tmp_path / "report.html", "report")
    found = client().get_run(run.id)
    parts = {
        "test/gan/fid": 3.5,
        "test/gan/fid_low": 3.0,
        "test/gan/fid_high": 4.0,
        "test/gan/fid_floor": 0.5,
    }
    assert found.data.metrics == {**parts, "test/vae/fid": 4.0}
    assert client().get_run(found.data.tags["mlflow.parentRunId"]).data.metrics == found.data.metrics
    version = client().get_model_version("gan", "1")
    assert "| fid | 3.5 | 3 to 4 | 0.5 |" in version.description
    assert registry.results(version) == {"p" * 64: {"fid": fid}}
    assert set(client().get_run(trained.id).data.metrics) == {"test_fid"}
    assert [point.value for point in client().get_metric_history(trained.id, "test_fid")] == [3.5]
    assert [entry.path for entry in client().list_artifacts(run.id, "report")] == ["report/report.html"]


def test_details_of_an_earlier_version_give_no_results():
    details = {"vae": {"fid": 1.0, "fid_low": 0.5}, "gan": {"fid": {"value": 2.0, "floor": 1.0}}}
    found = restored.results_of(details, {}, 7)
    assert list(found) == ["gan"] and found["gan"]["metrics"] == details["gan"]


def test_a_run_that_is_opened_later_is_complete_at_the_end(environment, description, client, tmp_path):
    folder = tmp_path / "training"
    (tmp_path / "mlflow.db").unlink()
    with open_run(environment, description, delay_seconds=20.0) as run:
        write_lines(folder, range(5))
        run.follow(folder)
        assert run.id == "" and not (tmp_path / "mlflow.db").exists()
        (record,) = delivery_queue.load_all(environment)  # the next command sends it after a kill -9 here
        assert record.folder == str(folder)
    found = client().get_run(run.id)
    assert found.info.status == "FINISHED" and found.data.params["model.kind"] == "hinge"
    assert [point.step for point in client().get_metric_history(run.id, "train/discriminator/loss")] == list(
        range(5)
    )


def test_a_folder_without_a_model_is_refused_at_once(environment, description, tmp_path):
    with pytest.raises(BadInput, match="no trained model"), open_run(environment, description) as run:
        run.register(tmp_path, "gan")


def test_system_metrics_are_logged_and_a_repeated_training_continues_counting(
    environment, client, description, tmp_path, monkeypatch
):
    from pipeline.tracking import system

    monkeypatch.setattr(system, "INTERVAL_SECONDS", 0.0)
    with open_run(environment, description) as run:
        for _ in range(2):  # a repeated training is another process
            sample = system.SystemMetrics()
            for _ in range(3):  # the first call only prepares
                sample(tmp_path)
        run.follow(tmp_path)
    points = client().get_metric_history(run.id, "system/system_memory_usage_megabytes")
    assert [point.step for point in points] == [1, 2, 3, 4] and all(point.value > 0 for point in points)
    assert len(client().get_metric_history(run.id, "system/cpu_utilization_percentage")) == 4


def test_runs_of_one_commit_and_params_are_children_of_one_parent_with_their_status(
    environment, client, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for beta, stage, raised in (
        (1, "train-gan", None),
        (1, "train-vae", ValueError("no")),
        (2, "train-vae", None),
    ):
        (tmp_path / "params.yaml").write_text(f"vae: {{beta: {beta}}}")
        with (
            pytest.raises(ValueError) if raised else nullcontext(),
            open_run(environment, Description(stage, f"{beta}" * 64)),
        ):
            if raised:
                raise raised
    parents = {run.info.run_id: run for run in client().search_runs(["1"], "tags.`darkroom.stage` = 'repro'")}
    children = {parents[run.data.tags["mlflow.parentRunId"]].info.run_name: [] for run in all_runs(client())}
    for run in all_runs(client()):
        children[parents[run.data.tags["mlflow.parentRunId"]].info.run_name].append(
            run.data.tags["darkroom.stage"]
        )
    assert sorted(sorted(stages) for stages in children.values()) == [
        ["train-gan", "train-vae"],
        ["train-vae"],
    ]
    assert sorted(run.info.status for run in parents.values()) == ["FAILED", "FINISHED"]


def test_a_parent_has_all_params_and_is_named_by_those_that_differ_from_the_commit(
    environment, client, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("{vae: {model: {beta: 1.0}, training: {seed: 0}}}")
    for command in (["init", "-q"], ["add", "params.yaml"], [*IDENTITY, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for beta, seed in ((1.0, 0), (2.0, 4)):
        (tmp_path / "params.yaml").write_text(
            f"{{vae: {{model: {{beta: {beta}}}, training: {{seed: {seed}}}}}}}"
        )
        params = {"training": {"seed": seed}, "model": {"beta": beta}}
        with open_run(environment, Description("train-vae", f"{seed}" * 64, params)):
            pass
    commit = all_runs(client())[0].data.tags["mlflow.source.git.commit"]
    assert sorted(run.info.run_name for run in all_runs(client())) == [
        "train-vae, beta=2.0, seed 4",
        "train-vae, seed 0",
    ]
    parents = {
        run.info.run_name: run for run in client().search_runs(["1"], "tags.`darkroom.stage` = 'repro'")
    }
    plain, changed = (parents[name] for name in sorted(parents))
    assert sorted(parents) == [f"repro {commit[:7]}", f"repro {commit[:7]}: vae beta=2.0, vae seed=4"]
    assert plain.data.params == {"vae.model.beta": "1.0", "vae.training.seed": "0"}
    assert changed.data.params == {"vae.model.beta": "2.0", "vae.training.seed": "4"}
    assert "dvc repro\n" in plain.data.tags["mlflow.note.content"]
    assert (
        "dvc exp run -S vae.model.beta=2.0 -S vae.training.seed=4\n"
        in changed.data.tags["mlflow.note.content"]
    )
