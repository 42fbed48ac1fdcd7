"""What DVC and the registry do not verify: checkpoints, dvc.lock, the run cache, the database; --repair."""

import shutil
import sqlite3
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from filelock import Timeout

from pipeline.cli.tracking import _check_signatures
from pipeline.cli.tracking import verify as command
from pipeline.core.checkpoint import CheckpointStore
from pipeline.environment import Environment
from pipeline.files import HASHES, sha256, write_hashes
from pipeline.process import exclusive
from pipeline.tracking import integrity, run_notes
from pipeline.tracking.connection import FILES, artifacts_folder, record_artifacts
from pipeline.tracking.lineage import md5_of
from pipeline.tracking.mlflow_index import MlflowIndex
from pipeline.tracking.runs import open_run
from pipeline.tracking.trace import verify
from tests.tracking.traced_project import environment_of, flip


def problems_of(project):
    return [(problem.path, problem.state) for problem in verify(environment_of(project))[0]]


def test_a_damaged_checkpoint_is_named_and_other_files_of_an_unfinished_training_are_counted(clone):
    folder = clone / "storage/trainings/cnn-0123456789abcdef"
    CheckpointStore(folder / "checkpoints").save(20, {"weight": torch.ones(9)})
    (folder / "metrics.jsonl").write_text("{}\n")
    (path,) = folder.glob("checkpoints/*.safetensors")
    _, counts = verify(environment_of(clone))
    assert problems_of(clone) == []
    assert counts["files in .darkroom/trainings without a recorded hash, unchecked"] == 1
    for damaged in (path, path.with_suffix(".json")):
        flip(damaged)
        assert problems_of(clone) == [(str(path), "differs")]
        flip(damaged)


@pytest.mark.parametrize("name", ["samples/step-1.png", "finished.json", "sha256.json"])
def test_a_damaged_file_of_a_finished_training_is_named(clone, name):
    folder = clone / "storage/trainings/cnn-0123456789abcdef"
    (folder / "samples").mkdir(parents=True)
    for file in ("samples/step-1.png", "finished.json"):
        (folder / file).write_text(file)
    write_hashes(folder)
    assert problems_of(clone) == []
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace(text[-9], "b" if text[-9] != "b" else "c", 1))
    assert problems_of(clone) == [(str(folder / name), "differs")]


@pytest.mark.parametrize(
    "whole, damaged, state",
    [
        ("nfiles: 2", "nfiles: 3", "differs"),
        ("size: ", "size: 1", "differs"),
        ("make.py train", "make.py tsain", "stale"),
        ("path: given", "path: givel", "stale"),
    ],
)
def test_what_dvc_lock_says_otherwise_than_files_and_dvc_yaml_is_named(clone, whole, damaged, state):
    lock = clone / "dvc.lock"
    text = lock.read_text()
    assert whole in text
    lock.write_text(text.replace(whole, damaged, 1))
    assert any(path.startswith("dvc.lock: ") and found == state for path, found in problems_of(clone))


def test_a_damaged_hash_in_dvc_lock_is_not_taken_for_a_damaged_file(clone, monkeypatch):
    md5, lock = md5_of(clone / "models/cnn"), clone / "dvc.lock"
    text = lock.read_text()
    lock.write_text(text.replace(md5, ("0" if md5[0] != "0" else "1") + md5[1:]))
    found = verify(environment_of(clone))[0]
    assert found[0].path == "dvc.lock: models/cnn" and all(each.path.startswith("dvc.lock") for each in found)
    repaired(clone, monkeypatch)
    assert lock.read_text() == text


def test_a_flipped_bit_in_the_run_cache_is_named(origin, tmp_path):
    project = shutil.copytree(origin, tmp_path / "project")
    entry = next((project / ".dvc/cache/runs").glob("*/*/*"))
    flip(entry)
    name = str(entry.relative_to(project))
    assert (name, "differs") in [pair for pair in problems_of(project) if "runs" in pair[0]]


def test_a_changed_database_is_named_and_a_damaged_one_is_told_from_it(tmp_path):
    database = tmp_path / "mlflow.db"
    with sqlite3.connect(database) as connection:
        connection.execute("create table runs (name text)")
        connection.executemany("insert into runs values (?)", [("a" * 500,)] * 50)
    integrity.record_database(database)
    assert list(integrity.check_database(database)) == []
    record = tmp_path / "mlflow.db.sha256"
    record.write_bytes(bytes([record.read_bytes()[0] ^ 128]) + record.read_bytes()[1:])
    assert [problem.state for problem in integrity.check_database(database)] == ["stale"]
    data = bytearray(database.read_bytes())
    data[data.index(b"a" * 500)] ^= 1
    database.write_bytes(data)
    assert [problem.state for problem in integrity.check_database(database)] == ["stale"]
    database.write_bytes(data[:4096] + bytes(4096) + data[8192:])
    assert [problem.state for problem in integrity.check_database(database)] == ["differs"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Timeout("mlflow.db.lock")])
def test_a_full_disk_at_the_end_of_a_command_is_no_error(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(integrity, "write_text", fail)
    integrity.record_database(tmp_path / "mlflow.db")


def test_a_check_of_signatures_neither_makes_nor_records_a_database(environment, monkeypatch):
    recorded = []
    monkeypatch.setattr("pipeline.tracking.connection.connect", recorded.append)
    monkeypatch.setattr("pipeline.cli.tracking.read_environment", lambda: environment)
    database = environment.root / "mlflow.db"
    assert _check_signatures(environment.root / "key") == [] and database.is_file()
    database.unlink()
    assert _check_signatures(environment.root / "key") == [] and not database.exists() and not recorded


def test_a_running_training_is_not_checked(tmp_path, monkeypatch):
    folder = tmp_path / "trainings/cnn-0123456789abcdef/checkpoints"
    folder.mkdir(parents=True)
    metadata = folder / "step-1.json"
    metadata.write_text("{}")
    with exclusive(folder.parent.with_suffix(".lock"), "held"):
        assert integrity.check_trainings(tmp_path) == ([], 0)
    assert [problem.found for problem in integrity.check_trainings(tmp_path)[0]] == [""]
    monkeypatch.setattr(integrity, "read_json", lambda path: path.unlink() or {"sha256": "1"})
    assert integrity.check_trainings(tmp_path) == ([], 2)  # it was removed meanwhile


def test_repair_leaves_a_training_that_has_started_or_was_corrected_since_the_check(clone):
    folder = clone / "storage/trainings/cnn-0123456789abcdef"
    store = CheckpointStore(folder / "checkpoints")
    store.save(20, {"weight": torch.ones(9)})
    (path,) = folder.glob("checkpoints/*.safetensors")
    flip(path)
    problems, _ = verify(environment_of(clone))
    repair = lambda: list(integrity.run_remedies(clone, problems, clone / "storage"))
    with exclusive(folder.with_suffix(".lock"), "held"):
        assert repair() == [f"warning: {folder.name} is being trained"] and path.is_file()
    store.save(20, {"weight": torch.ones(9)})
    assert repair() == [f"{path}: changed since the check"] and path.is_file()
    flip(path)
    assert repair()[0].startswith("ran: mkdir") and not path.exists()


def test_files_of_a_running_run_are_not_compared_with_the_hashes_of_an_earlier_end(tmp_path):
    info = SimpleNamespace(artifact_uri=str(tmp_path), status="RUNNING")
    run = SimpleNamespace(info=info, data=SimpleNamespace(tags={FILES: "0" * 64}))
    index = MlflowIndex(Environment(root=tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert index.check_run(run) is None
    info.status = "FINISHED"
    assert index.check_run(run).state == "differs"


@pytest.fixture
def recorded(environment, client, description, tmp_path):
    """Whether the files of a run are as recorded (a function), its id and its folder with two files."""
    for name in ("page.html", "table.csv"):
        (tmp_path / name).write_text(name)
    with open_run(environment, description) as run:
        for name in ("page.html", "table.csv"):
            run.log_artifact(tmp_path / name)
    found = lambda: client().get_run(run.id)
    return lambda: MlflowIndex(environment).check_run(found()), run.id, artifacts_folder(found())


def test_a_kill_between_the_hashes_of_a_runs_files_and_their_tag_leaves_the_run_as_recorded(
    client, recorded, monkeypatch
):
    check, run_id, folder = recorded
    assert check() is None
    (folder / "page.html").write_text("newer")
    tags, killed, before, calls = client(), client(), sha256(folder / HASHES), []

    def set_tag(run, key, value):
        calls.append(value)
        if len(calls) == 2:
            raise KeyboardInterrupt
        tags.set_tag(run, key, value)

    monkeypatch.setattr(killed, "set_tag", set_tag)
    with pytest.raises(KeyboardInterrupt):
        record_artifacts(killed, run_id, ["page.html"])
    assert sha256(folder / HASHES) != before and check() is None
    flip(folder / "page.html")
    assert check().path == str(folder / "page.html")
    flip(folder / "page.html")
    record_artifacts(client(), run_id, [])
    assert client().get_run(run_id).data.tags[FILES] == sha256(folder / HASHES) and check() is None


def test_damage_of_a_runs_files_is_not_recorded_as_right(client, environment, recorded, tmp_path):
    check, run_id, folder = recorded
    flip(folder / "table.csv")
    (folder / "page.html").write_text("newer")
    record_artifacts(client(), run_id, ["page.html"])
    assert check().path == str(folder / "table.csv")
    flip(folder / "table.csv")
    assert check() is None
    text, digest = (folder / HASHES).read_text(), sha256(folder / "table.csv")
    for damaged in (text.replace(digest, ("0" if digest[0] != "0" else "1") + digest[1:]), "[1]", "{"):
        (folder / HASHES).write_text(damaged)
        record_artifacts(client(), run_id, ["page.html"])
        assert check().path == str(folder / HASHES)


def test_hashes_of_a_run_without_their_tag_which_fit_all_other_files_become_those_recorded(client, recorded):
    check, run_id, folder = recorded
    (folder / "page.html").write_text("newer")
    write_hashes(folder)  # an earlier version of Darkroom was killed after this
    assert check().path == str(folder / HASHES)
    record_artifacts(client(), run_id, [])
    assert check() is None


def test_a_file_sent_again_before_a_kill_is_as_recorded_after_a_next_attempt_that_fails(
    environment, description, recorded, tmp_path
):
    check, _, folder = recorded
    (tmp_path / "page.html").write_text("newer")
    open_run(environment, description).log_artifact(tmp_path / "page.html")
    (folder / "page.html").write_text("new")  # it is killed while it copies the file
    with pytest.raises(ValueError), open_run(environment, description):
        raise ValueError
    assert check() is None and (folder / "page.html").read_text() == "newer"


def test_what_a_delivery_or_a_note_writes_again_is_recorded_and_the_rest_stays_as_it_was(
    client, environment, description, recorded, tmp_path
):
    check, run_id, folder = recorded
    (tmp_path / "page.html").write_text("newer")
    flip(folder / "table.csv")
    (tmp_path / "pictures/more").mkdir(parents=True)
    for content in ("one", "two"):
        (tmp_path / "pictures/more/a.txt").write_text(content)
        with open_run(environment, description) as run:
            run.log_artifact(tmp_path / "page.html")
            run.log_artifact(tmp_path / "pictures")
    assert run.id == run_id and (folder / "more/a.txt").read_text() == "two"
    assert check().path == str(folder / "table.csv")
    flip(folder / "table.csv")
    assert check() is None
    parent = client().get_run(run_id).data.tags["mlflow.parentRunId"]
    group = client().get_run(parent).data.tags["darkroom.group"]
    for text in ("a", "b"):
        (tmp_path / "page.html").write_text(text)
        run_notes.write(environment, group, text, {}, tmp_path / "page.html")
        assert MlflowIndex(environment).check_run(client().get_run(parent)) is None


def repaired(project, monkeypatch, exit_code=0):
    monkeypatch.chdir(project)
    monkeypatch.setenv("DARKROOM_STORAGE", str(project / "storage"))
    done = CliRunner().invoke(command, ["--repair"])
    assert done.exit_code == exit_code, done.output
    return done.output


def test_repair_moves_what_it_cannot_restore_and_says_so(clone, monkeypatch):
    (clone / ".dvc/config").write_text(f"[core]\n    site_cache_dir = {clone}/.dvc/site\n")
    past = clone / ".dvc/cache/files/md5/ab" / ("c" * 30)
    past.parent.mkdir(exist_ok=True)
    past.write_text("an earlier version, damaged")
    folder = clone / "storage/trainings/cnn-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    (folder / "sample.png").write_text("picture")
    write_hashes(folder)
    (folder / "sample.png").write_text("pictura")
    for name in ("new", "raw/new"):  # not recorded
        (clone / "data/raw" / name).parent.mkdir(exist_ok=True)
        (clone / "data/raw" / name).write_text(name)
    lines = repaired(clone, monkeypatch, exit_code=1).splitlines()
    names = [str(path.relative_to(clone)) for path in (past, clone / "data/raw/new")]
    assert all(f"{name}: not restored, moved to .darkroom/damaged" in lines for name in names)
    (last,) = [line for line in lines if "cache objects" in line]
    assert last.endswith("not restored, moved to .darkroom/damaged")
    kept = [path.read_text() for path in (clone / ".darkroom/damaged").rglob("*") if path.is_file()]
    assert {"an earlier version, damaged", "weights", "pictura", "new", "raw/new"} <= {*kept}
    again = CliRunner().invoke(command)
    assert again.exit_code == 0 and f"{len(kept)} files in .darkroom/damaged without" in again.output


def test_repair_restores_what_dvcs_cache_or_remote_has_and_leaves_the_rest(clone, monkeypatch):
    for name in ("models/cnn/model.safetensors", "data/raw/digits.gz"):
        flip(clone / name)
    copy = clone / ".dvc/cache/files/md5" / md5_of(clone / "reports/index.html")[:2]
    flip(next(copy.iterdir()))
    assert len(problems_of(clone)) == 3
    assert "ran: " in repaired(clone, monkeypatch) and problems_of(clone) == []


def test_without_a_remote_a_damaged_model_comes_from_a_training_or_stays(clone, monkeypatch):
    (clone / ".dvc/config").write_text(f"[core]\n    site_cache_dir = {clone}/.dvc/site\n")
    shutil.copytree(clone / "models/cnn", clone / "good")
    model, md5 = clone / "models/cnn/model.safetensors", md5_of(clone / "good/model.safetensors")
    flip(model)
    (clone / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    problems, _ = verify(environment_of(clone))
    assert list(integrity.run_remedies(clone, problems, clone / "storage")) == [] and model.is_file()
    (clone / "storage/trainings/cnn-1").mkdir(parents=True)
    (clone / "good").rename(clone / "storage/trainings/cnn-1/model")
    repaired(clone, monkeypatch)
    assert md5_of(model) == md5
