"""One run for one training: each metric once, the right status, and little delay from a dead server."""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.tracking import connection, delivery, delivery_queue, registry, runs
from pipeline.tracking.runs import Description, open_run
from tests.tracking.conftest import write_lines, write_model, write_picture

ROOT = Path(__file__).parents[2]
DEAD = "http://user:hunter2@127.0.0.1:9"
CHILD = """
import os, signal, sys
from pathlib import Path
from pipeline.environment import Environment, prepare
prepare()
from pipeline.tracking.runs import Description, open_run
root = Path(sys.argv[1])
artifacts = str(root / "mlartifacts")
environment = Environment(root=root, storage=root / "storage", tracking_uri=sys.argv[2], artifacts=artifacts)
with open_run(environment, Description(sys.argv[3], "f" * 64, {"seed": 1})) as run:
    run.follow(root / "training")
    if sys.argv[4] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def child(environment: Environment, stage: str = "train-gan", end: str = "kill") -> subprocess.Popen:
    arguments = [sys.executable, "-c", CHILD, str(environment.root), environment.tracking_uri, stage, end]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def all_runs(client) -> list:
    """All runs except the parents."""
    found = client.search_runs([client.get_experiment_by_name("darkroom").experiment_id])
    return [run for run in found if run.data.tags["darkroom.stage"] != "repro"]


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


def test_a_run_whose_process_was_killed_is_ended_by_the_next_run(environment, client, description, tmp_path):
    write_lines(tmp_path / "training", range(3))
    child(environment, "train-vae").wait()
    with open_run(environment, description):
        pass
    assert {run.data.tags["darkroom.stage"]: run.info.status for run in all_runs(client())} == {
        "train-gan": "FINISHED",
        "train-vae": "KILLED",
    }


def test_a_killed_run_is_ended_without_its_local_record(environment, client, tmp_path):
    child(environment).wait()
    for record in (environment.storage / "tracking").glob("*.json"):
        record.unlink()
    runs.sync(environment)
    assert [run.info.status for run in all_runs(client())] == ["KILLED"]


def test_a_dead_server_causes_little_delay_and_loses_nothing(
    environment, client, description, tmp_path, capsys
):
    folder, model = tmp_path / "training", write_model(tmp_path / "models" / "gan", "gan")
    away = replace(environment, tracking_uri=DEAD)
    begun = time.monotonic()
    with open_run(away, description) as run:
        for step in range(0, 50, 10):
            write_lines(folder, range(step, step + 10))
            write_picture(folder, step)
            run.follow(folder)
        assert run.register(model, "gan") == ""
        assert run.id == ""
    assert time.monotonic() - begun < 5.5
    warning = capsys.readouterr().err
    assert warning.count("warning:") == 1 and "offline" in warning and "MLFLOW_TRACKING_URI" in warning
    assert "hunter2" not in warning
    (kept,) = (environment.storage / "tracking").glob("*.json")
    assert "hunter2" not in kept.read_text()
    # the server is available again, at the address of the record
    kept.write_text(
        json.dumps(json.loads(kept.read_text()) | {"address": delivery_queue.address(environment)})
    )
    assert runs.sync(environment) == (1, 0)
    (sent,) = all_runs(client())
    assert sent.info.status == "FINISHED" and sent.data.params["training.seed"] == "7"
    assert len(client().get_metric_history(sent.info.run_id, "validation/accuracy")) == 50
    assert len(client().list_artifacts(sent.info.run_id, "images")) == 10
    assert client().get_model_version_by_alias("gan", "champion").run_id == sent.info.run_id


def test_a_training_killed_while_the_server_is_dead_is_sent_later(environment, client, tmp_path):
    write_lines(tmp_path / "training", range(5))
    child(replace(environment, tracking_uri=DEAD)).wait()
    (kept,) = (environment.storage / "tracking").glob("*.json")
    kept.write_text(
        json.dumps(json.loads(kept.read_text()) | {"address": delivery_queue.address(environment)})
    )
    assert runs.sync(environment) == (1, 0)
    (sent,) = all_runs(client())
    assert sent.info.status == "KILLED"
    assert len(client().get_metric_history(sent.info.run_id, "validation/accuracy")) == 5


def test_a_server_that_does_not_answer_causes_little_delay(environment, description, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        away = replace(environment, tracking_uri=f"http://127.0.0.1:{listener.getsockname()[1]}")
        begun = time.monotonic()
        with open_run(away, description) as run:
            for _ in range(5):
                write_lines(tmp_path / "training", range(1))
                run.follow(tmp_path / "training")
        assert time.monotonic() - begun < 5.5


def test_kept_weights_that_were_replaced_are_not_registered(environment, client, description, tmp_path):
    model = write_model(tmp_path / "gan", "gan")
    with open_run(replace(environment, tracking_uri=DEAD), description) as run:
        run.register(model, "gan")
    write_model(model, "gan", seed=1)
    (kept,) = (environment.storage / "tracking").glob("*.json")
    kept.write_text(
        json.dumps(json.loads(kept.read_text()) | {"address": delivery_queue.address(environment)})
    )
    assert runs.sync(environment) == (1, 0)
    assert client().search_model_versions("name = 'gan'") == []
    assert all_runs(client())[0].data.tags["darkroom.version"].startswith("none")


def test_several_processes_can_create_the_database_at_the_same_time(environment, client):
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


def test_values_that_are_not_finite_are_dropped_and_named(environment, client, description, tmp_path):
    with open_run(environment, description) as run:
        write_lines(tmp_path, range(4, 6), broken=float("nan"), endless=float("inf"))
        run.follow(tmp_path)
    found = client().get_run(run.id)
    assert set(found.data.metrics) == {"train/discriminator/loss", "validation/accuracy"}
    assert found.data.tags["darkroom.not_finite"] == "broken from step 4, endless from step 4"


def test_an_incomplete_line_is_sent_when_it_is_complete(environment, client, description, tmp_path):
    line = json.dumps({"step": 1, "time": 5, "metrics": {"a": 1.0}}) + "\n"
    with open_run(environment, description) as run:
        (tmp_path / "metrics.jsonl").write_text(line + line[:9])
        run.follow(tmp_path)
        (tmp_path / "metrics.jsonl").write_text(line + line.replace('"step": 1', '"step": 2'))
        run.follow(tmp_path)
    assert [point.step for point in client().get_metric_history(run.id, "a")] == [1, 2]


def test_a_run_has_the_tags_of_its_origin(environment, client, description):
    with open_run(environment, description) as run:
        pass
    found = client().get_run(run.id)
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, json.loads(data.dataset.source)) == (
        "digits",
        "d" * 36,
        {"uri": "data/processed"},
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
    digest = model_files.read_card(tmp_path / "gan")["sha256"]
    (tmp_path / "report.html").write_text("<p>")
    for _ in range(2):
        with open_run(environment, Description("evaluate", "e" * 64)) as run:
            run.log_results({"gan": {"fid": 3.5}, "vae": {"fid": 4.0}}, {"gan": digest}, {"gan": "p" * 64})
            run.log_artifact(tmp_path / "report.html", "report")
    found = client().get_run(run.id)
    assert found.data.metrics == {"test/gan/fid": 3.5, "test/vae/fid": 4.0}
    assert client().get_run(found.data.tags["mlflow.parentRunId"]).data.metrics == found.data.metrics
    version = client().get_model_version("gan", "1")
    assert "| fid | 3.5 |" in version.description and registry.results(version) == {"p" * 64: {"fid": 3.5}}
    assert [point.value for point in client().get_metric_history(trained.id, "test_fid")] == [3.5]
    assert [entry.path for entry in client().list_artifacts(run.id, "report")] == ["report/report.html"]


def test_a_run_that_is_not_opened_at_once_is_complete_at_the_end(environment, description, client, tmp_path):
    folder = tmp_path / "training"
    with open_run(environment, description, at_once=False) as run:
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


def test_the_folder_of_an_undelivered_training_is_kept(environment, description, tmp_path):
    from pipeline.launch.training import FINISHED, KEEP_FINISHED, forget_older

    trainings = [environment.storage / "trainings" / f"gan-{number}" for number in range(KEEP_FINISHED + 2)]
    for number, folder in enumerate(trainings):
        write_lines(folder, range(2))
        (folder / FINISHED).write_text("{}")
        os.utime(folder / FINISHED, (number, number))
    with open_run(replace(environment, tracking_uri=DEAD), description) as run:
        run.follow(trainings[0])
    assert delivery_queue.undelivered_folders(environment) == {trainings[0]}
    forget_older(environment, "gan", delivery_queue.undelivered_folders(environment))
    assert [folder.name for folder in trainings if folder.exists()] == ["gan-0", "gan-2", "gan-3", "gan-4"]


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
    assert len(client().get_metric_history(run.id, runs.HEARTBEAT)) == 4


@pytest.mark.parametrize(("hours", "status"), [(1, "RUNNING"), (25, "KILLED")])
def test_a_run_of_another_host_counts_as_dead_after_a_day_without_heartbeat(
    environment, client, description, hours, status
):
    with open_run(environment, description) as run:
        started = runs.now() - hours * 3600 * 1000
        tags = {
            "darkroom.stage": "train-vae",
            "darkroom.host": "elsewhere",
            "darkroom.pid": "1",
            "darkroom.process_started": "1.0",
        }
        other = client().create_run("1", started, tags)
    runs.end_dead_runs(client(), "1")
    assert (
        client().get_run(other.info.run_id).info.status == status
        and client().get_run(run.id).info.status == "FINISHED"
    )


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
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    (tmp_path / "params.yaml").write_text("{vae: {model: {beta: 1.0}, training: {seed: 0}}}")
    for command in (["init", "-q"], ["add", "params.yaml"], [*identity, "commit", "-q", "-m", "one"]):
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


def test_an_old_record_does_not_change_a_run_that_was_finished_elsewhere(
    environment, client, description, tmp_path
):
    write_lines(tmp_path / "training", range(8))
    child(environment).wait()  # killed, with a record left behind
    away = replace(environment, storage=tmp_path / "other storage")
    later = tmp_path / "later"
    later.mkdir()
    lines = [
        json.dumps({"step": step, "time": step + 99, "metrics": {"validation/accuracy": 0.5}})
        for step in range(10)
    ]
    (later / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with open_run(away, Description("train-gan", "f" * 64, {"seed": 1})) as run:
        run.follow(later)
        run._followed_at = float("-inf")
        with open(later / "metrics.jsonl", "a") as file:
            file.write(lines[-1].replace('"step": 9', '"step": 10') + "\n")
        run.follow(later)
    assert runs.sync(environment) == (1, 0)
    (only,) = all_runs(client())
    assert only.info.status == "FINISHED"
    assert sorted(point.step for point in client().get_metric_history(run.id, "validation/accuracy")) == list(
        range(11)
    )


def test_a_deleted_run_does_not_stop_the_delivery_of_others(environment, client, description, tmp_path):
    for stage in ("train-gan", "train-vae"):
        child(environment, stage).wait()
    gone = next(run for run in all_runs(client()) if run.data.tags["darkroom.stage"] == "train-gan")
    client().delete_run(gone.info.run_id)
    assert runs.sync(environment) == (2, 0)
    assert sorted(run.data.tags["darkroom.stage"] for run in all_runs(client())) == ["train-gan", "train-vae"]
    assert {run.info.status for run in all_runs(client())} == {"KILLED"}


def test_artifacts_are_copied_when_they_are_logged(environment, client, tmp_path):
    (tmp_path / "report.html").write_text("first")
    with open_run(replace(environment, tracking_uri=DEAD), Description("evaluate", "e" * 64)) as run:
        run.log_artifact(tmp_path / "report.html")
    (tmp_path / "report.html").write_text("second")
    (kept,) = (environment.storage / "tracking").glob("*.json")
    kept.write_text(
        json.dumps(json.loads(kept.read_text()) | {"address": delivery_queue.address(environment)})
    )
    assert runs.sync(environment) == (1, 0)
    (tmp_path / "own").mkdir()
    path = client().download_artifacts(
        all_runs(client())[0].info.run_id, "report.html", str(tmp_path / "own")
    )
    assert Path(path).read_text() == "first"
    assert not [entry for entry in (environment.storage / "tracking").iterdir() if entry.name != "sync.lock"]


def test_a_server_that_stops_answering_after_the_start_causes_little_delay(
    environment, description, tmp_path, monkeypatch
):
    model = write_model(tmp_path / "gan", "gan")
    away = replace(environment, tracking_uri="http://127.0.0.1:1")
    monkeypatch.setattr(connection, "connect", lambda environment: (None, "1"))
    monkeypatch.setattr(delivery, "deliver", lambda *_, announce, **__: None if announce else time.sleep(60))
    monkeypatch.setattr(runs, "sync", lambda *_: (0, 0))
    begun = time.monotonic()
    with open_run(away, description) as run:
        run.register(model, "gan")
    assert time.monotonic() - begun < 5.5
