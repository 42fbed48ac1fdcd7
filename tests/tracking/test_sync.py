"""A dead server delays a training little, and what ended processes did not deliver is sent later."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.tracking import connection, delivery, delivery_queue, runs
from pipeline.tracking.runs import Description, open_run
from tests.tracking.conftest import DEAD, all_runs, child, write_lines, write_model, write_picture


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
    assert time.monotonic() - begun < 9
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
        assert time.monotonic() - begun < 9  # one request with a limit of 5 s, not one for each call


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


def test_the_folder_of_an_undelivered_training_is_kept(environment, description, tmp_path):
    from pipeline.launch.training import FINISHED, KEEP_FINISHED, remove_old_trainings

    trainings = [environment.storage / "trainings" / f"gan-{number}" for number in range(KEEP_FINISHED + 2)]
    for number, folder in enumerate(trainings):
        write_lines(folder, range(2))
        (folder / FINISHED).write_text("{}")
        os.utime(folder / FINISHED, (number, number))
    with open_run(replace(environment, tracking_uri=DEAD), description) as run:
        run.follow(trainings[0])
    assert delivery_queue.undelivered_folders(environment) == {trainings[0]}
    remove_old_trainings(environment, "gan", delivery_queue.undelivered_folders(environment))
    assert [folder.name for folder in trainings if folder.exists()] == ["gan-0", "gan-2", "gan-3", "gan-4"]


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
        recent = [
            client().create_run("1", started, {**tags, name: str(runs.now())})
            for name in ("darkroom.last_heartbeat", "darkroom.heard")  # the latter is the former name
        ]
    runs.end_dead_runs(client(), "1")
    assert (
        client().get_run(other.info.run_id).info.status == status
        and {client().get_run(each.info.run_id).info.status for each in recent} == {"RUNNING"}
        and client().get_run(run.id).info.status == "FINISHED"
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
        run._follow_at = float("-inf")
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
    assert time.monotonic() - begun < 9
