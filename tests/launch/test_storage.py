"""A training whose storage is an address: another machine can resume it."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline.core import metrics_log, model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.data.clips.compose import compose as write_clips
from pipeline.data.clips.settings import ClipSettings
from pipeline.data.scenes import write_scenes
from pipeline.data.scenes.settings import SceneSettings
from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import digest_of, read_json, sha256
from pipeline.launch import ray_train, worker
from pipeline.launch.storage import Mirror
from pipeline.launch.tracked import tracked
from pipeline.launch.training import Training, train
from pipeline.tracking import runs
from pipeline.tracking.integrity import check_trainings
from tests.project import Project


def write(folder, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_jsonl", ".jsonl").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_pushed_files_are_pulled_elsewhere_and_deleted_checkpoints_are_deleted_there(tmp_path):
    here, there, elsewhere = tmp_path / "here", f"file://{tmp_path}/there", tmp_path / "elsewhere"
    write(here, checkpoints__a="1", checkpoints__a_json="{}", samples__p="picture", run_json="of the driver")
    write(here / "checkpoints", **{".half": "not whole"})
    mirror = Mirror(here, there)
    mirror.push()
    (here / "checkpoints/a").unlink()
    write(here, checkpoints__b="2", checkpoints__b_json="{}")
    mirror.push()
    Mirror(elsewhere, there).pull()
    assert names(elsewhere) == {"checkpoints/a.json", "checkpoints/b", "checkpoints/b.json", "samples/p"}
    assert (elsewhere / "checkpoints/b").read_text() == "2"


def test_a_file_that_marks_others_as_complete_is_pushed_after_them(tmp_path, monkeypatch):
    write(
        tmp_path / "here",
        finished_json="{}",
        model__model_json="{}",
        model__weights="w",
        checkpoints__a_json="{}",
        checkpoints__a="1",
    )
    mirror, sent = Mirror(tmp_path / "here", f"file://{tmp_path}/there"), []
    monkeypatch.setattr(
        type(mirror._filesystem),
        "pipe_file",
        lambda self, path, data: sent.append(path.rpartition("/there/")[2]),
    )
    mirror.push()
    assert sent[-1] == "finished.json" and sent.index("checkpoints/a") < sent.index("checkpoints/a.json")
    assert sent.index("model/weights") < sent.index("model/model.json")


def test_a_log_that_grows_is_uploaded_with_each_checkpoint_and_else_after_it_grew_by_a_tenth(tmp_path):
    log, remote = tmp_path / "here/metrics.jsonl", tmp_path / "there/metrics.jsonl"
    mirror, num_bytes = Mirror(tmp_path / "here", f"file://{tmp_path}/there"), 0
    for number in range(200):
        write(tmp_path / "here", metrics_jsonl="x" * 50 * (number + 1))
        before = remote.stat().st_mtime_ns if remote.exists() else 0
        mirror.push(whole=mirror._has_new_checkpoint())
        num_bytes += log.stat().st_size * (remote.stat().st_mtime_ns != before)
        assert log.stat().st_size < 1.1 * remote.stat().st_size
    assert num_bytes < 15 * log.stat().st_size  # the sum of all versions is a hundred times its size
    write(tmp_path / "here", metrics_jsonl=log.read_text() + "y", checkpoints__a_json="{}")
    mirror.push(whole=mirror._has_new_checkpoint())
    assert remote.read_text() == log.read_text()


def test_logged_steps_are_not_replaced_by_those_of_another_machine(tmp_path):
    line = lambda step, time: json.dumps({"step": step, "time": time, "metrics": {"train/loss": 1.0}}) + "\n"
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir(), theirs.mkdir()
    (mine / "metrics.jsonl").write_text(line(1, 10) + line(2, 20))
    (theirs / "metrics.jsonl").write_text(line(1, 10) + line(2, 99) + line(3, 100) + '{"step": 4, "ti')
    Mirror(theirs, f"file://{tmp_path}/there").push()
    Mirror(mine, f"file://{tmp_path}/there").pull()
    assert [(one["step"], one["time"]) for one in metrics_log.read(mine / "metrics.jsonl")] == [
        (1, 10),
        (2, 20),
        (3, 100),
    ]


def test_an_address_that_cannot_be_used_or_does_not_answer_is_reported(tmp_path):
    with pytest.raises(BadInput, match="DARKROOM_STORAGE"):
        Mirror(tmp_path, "nonsense://bucket")
    write(tmp_path / "here", a="1")
    (tmp_path / "there").write_text("a file, not a folder")
    with pytest.raises(DarkroomError, match="does not answer"):
        Mirror(tmp_path / "here", f"file://{tmp_path}/there").push()


def test_a_copy_of_data_that_was_not_used_for_a_week_is_removed_when_a_new_one_is_made(
    tmp_path, processed_digits, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    address, digest = f"file://{tmp_path}/store", digest_of(read_json(processed_digits / "manifest.json"))
    Mirror(processed_digits, address).push()
    job = {"data": "/nowhere", "digest": digest, "data_address": address}
    copies = worker._cache_folder() / "data"
    for name, days in (("unused", 8), ("used", 6)):
        write(copies / name, manifest_json="{}")
        os.utime(copies / name, (time.time() - days * 86_400,) * 2)
    write(copies, **{"unused.lock": ""})
    os.utime(copies / "unused.lock", (0, 0))
    assert worker._open_data(job).digest == digest
    assert {path.name for path in copies.iterdir()} == {"used", digest, f"{digest}.lock"}
    os.utime(copies / digest, (0, 0))
    worker._open_data(job)  # uses the copy
    assert time.time() - (copies / digest).stat().st_mtime < 60


def test_a_damaged_copy_of_data_is_replaced(tmp_path, processed_digits, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    digest = digest_of(read_json(processed_digits / "manifest.json"))
    files = {path: path.relative_to(processed_digits).as_posix() for path in processed_digits.rglob("*.*")}
    refs = {name: path.read_bytes() for path, name in files.items()}
    job = {"data": "/nowhere", "digest": digest, "data_refs": refs}
    shard = worker._open_data(job).folder / "train/image-00000.npy"
    expected = shard.read_bytes()
    shard.write_bytes(expected[:-1] + bytes([expected[-1] ^ 1]))
    assert worker._open_data(job).digest == digest and shard.read_bytes() == expected


@pytest.fixture(scope="module")
def composed(tmp_path_factory, processed_digits):
    """The folder of each data set, by the name of a model that learns from it."""
    folder = tmp_path_factory.mktemp("composed")
    few = {"num_train": 20, "num_validation": 4, "num_test": 4}
    write_clips(ClipSettings(**few, num_frames=4), images=processed_digits, target=folder / "clips")
    write_scenes(SceneSettings(**few), processed_digits, folder / "scenes")
    return {"ae": processed_digits, "rcnn": folder / "clips", "unet": folder / "scenes"}


@pytest.mark.parametrize("limit", [ray_train.MAX_SENT_BYTES, 0], ids=["through Ray", "through the storage"])
@pytest.mark.parametrize(
    ("name", "fields"), [("ae", {"image", "label"}), ("rcnn", {"clip"}), ("unet", {"image", "mask"})]
)
def test_a_machine_that_does_not_see_the_data_gets_a_copy_of_it(
    tmp_path, composed, monkeypatch, name, fields, limit
):
    other = {"host": "other", "storage": "visible", "data": "sent"}
    monkeypatch.setattr(ray_train, "check_cluster", lambda request: ([other], []))
    monkeypatch.setattr(ray_train, "format_table", str)
    monkeypatch.setattr(ray_train, "MAX_SENT_BYTES", limit)
    monkeypatch.setattr("ray.put", bytes)  # what a worker fetches for the reference
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kind, data = model_files.find(name), Dataset.open(composed[name])
    training = Training(name, TrainingSettings(batch_size=16), kind.Config(), data)
    where = Environment(tmp_path, storage=tmp_path / "storage", remote=f"file://{tmp_path}/remote")
    job = {"data": "/nowhere", "digest": data.digest, **ray_train._prepare_cluster(training, where)}
    copy = worker._open_data(job)
    assert copy.folder.is_relative_to(tmp_path) and copy.digest == data.digest and copy.spec == data.spec
    for split in ("train", "validation"):
        first, second = (getattr(one, split).rows(np.arange(4)) for one in (copy, data))
        assert first.keys() == second.keys() >= fields
        assert all((values == second[field]).all() for field, values in first.items())


def test_what_ray_writes_at_the_storage_address_is_removed_after_the_training(tmp_path, processed_digits):
    config = model_files.find("ae").Config(width=8)
    data = Dataset.open(processed_digits)
    training = Training("ae", TrainingSettings(num_steps=2, batch_size=16), config, data)
    storage, remote = tmp_path / "storage", f"file://{tmp_path}/remote"
    where = Environment(tmp_path, storage=storage, remote=remote, threads=1, device="cpu")
    killed = tmp_path / "remote/ray" / f"{training.folder(storage).name}-1"
    other = tmp_path / "remote/ray/ae-0123456789abcdef-1"
    write(killed, left="by a killed training"), write(other, used="by another training")
    train(training, where, tmp_path / "model", tmp_path / "history", [])
    assert list((tmp_path / "remote/ray").iterdir()) == [other]
    assert (tmp_path / "remote/trainings").is_dir()
    assert model_files.read_card(tmp_path / "model")["fit"] == "crop"  # of the data


def test_a_training_that_another_machine_finished_is_no_damaged_one(tmp_path, processed_digits, monkeypatch):
    monkeypatch.setattr(runs.Run, "_deliver", lambda *given: True)  # without MLflow
    config, data = model_files.find("ae").Config(width=8), Dataset.open(processed_digits)
    training = Training("ae", TrainingSettings(num_steps=2, batch_size=16), config, data)
    where = Environment(tmp_path, storage=tmp_path / "storage", remote=f"file://{tmp_path}/remote", threads=1)
    folder = training.folder(where.storage)
    write(tmp_path / "there/model", **{model_files.WEIGHTS: "w"})
    finished = {"sha256": sha256(tmp_path / "there/model" / model_files.WEIGHTS), "times": {}}
    write(tmp_path / "there", finished_json=json.dumps(finished))
    Mirror(tmp_path / "there", f"{where.remote}/trainings/{folder.name}").push()
    with tracked(training, where):
        pass
    assert (folder / "run.json").is_file() and check_trainings(where.storage)[0] == []


@pytest.mark.nightly
def test_a_training_killed_on_one_machine_goes_on_on_another_from_s3(tmp_path, processed_digits, bucket):
    whole, cut = Project(tmp_path / "whole", processed_digits), Project(tmp_path / "cut", processed_digits)
    assert whole.run("stages.train", "vae")[0] == 0
    there = {**bucket[1], "DARKROOM_STORAGE": "s3://darkroom/store"}
    killed = cut.start("stages.train", "vae", **there)
    cut.kill_at(killed, "vae", 31)
    shutil.rmtree(cut.folder / ".darkroom")  # another machine has only the bucket and the data
    code, output = cut.run("stages.train", "vae", **there)
    assert code == 0, output
    weights = [sha256(project.folder / "models/vae/model.safetensors") for project in (whole, cut)]
    assert weights[0] == weights[1]
    steps = [
        [line["step"] for line in metrics_log.read(project.folder / "history/vae/metrics.jsonl")]
        for project in (whole, cut)
    ]
    assert steps[0] == steps[1]
    shutil.rmtree(cut.folder / ".darkroom")
    code, output = cut.run("stages.train", "vae", **there)
    assert code == 0 and "already finished" in output  # a third machine downloads the result


@pytest.mark.slow
def test_dvc_pushes_to_s3_and_pulls_from_it(tmp_path, bucket):
    def dvc(*command: str) -> None:
        here = {**os.environ, **bucket[1], "DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command],
            cwd=tmp_path,
            env=here,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    for command in (["init", "--no-scm", "-q"], ["config", "core.site_cache_dir", str(tmp_path / "site")]):
        dvc(*command)
    dvc("remote", "add", "-d", "store", "s3://darkroom/cache")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/images-00000.npy").write_bytes(os.urandom(1000))
    digest = sha256(tmp_path / "shards/images-00000.npy")
    dvc("add", "-q", "shards")
    dvc("push", "-q")
    shutil.rmtree(tmp_path / ".dvc/cache")
    shutil.rmtree(tmp_path / "shards")
    dvc("pull", "-q")
    assert sha256(tmp_path / "shards/images-00000.npy") == digest
