"""Bad input in the stages: a short message with file or key and remedy, and no file changes."""

import json
import os
import shutil
import signal
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipeline.data import sources
from pipeline.errors import BadInput
from pipeline.files import sha256
from tests.project import PARAMS, TRAINING, Project

OFFLINE = {
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "NO_PROXY": "",
    "no_proxy": "",
}  # no server listens there


@pytest.fixture
def project(tmp_path, processed_digits):
    """Digits, raw and processed, and a model and a history of an earlier training."""
    project = Project(tmp_path / "project", processed_digits)
    data = next(folder for folder in processed_digits.parents if folder.name == "data")
    shutil.copytree(data / "raw", project.folder / "data/raw")
    for path in ("models/cnn/model.json", "history/cnn/metrics.jsonl"):
        (project.folder / path).parent.mkdir(parents=True)
        (project.folder / path).write_text("of earlier")
    return project


def contents(project):
    """The hash of every file of the project, except those of .darkroom and of MLflow."""
    files = [path for path in project.folder.rglob("*") if path.is_file()]
    names = {path.relative_to(project.folder).as_posix(): path for path in files}
    return {
        name: sha256(path)
        for name, path in names.items()
        if not name.startswith((".darkroom/", "mlflow.db", "mlartifacts/"))
    }


def refused(project, *stage, code=2, **more):
    """The message of a stage that refuses its input and changes no file of a user or another stage."""
    before = contents(project)
    found, output = project.run(*stage, **more)
    assert found == code, output
    assert "Traceback" not in output and len(output.splitlines()) <= 5 and "  -> " in output, output
    assert contents(project) == before
    assert not list((project.folder / "data").glob(".*"))
    return output


def set_data(project, **values):
    project.params["data"] = {**PARAMS["data"], **values}
    project.write()


def set_folder(project, folder="pictures", **values):
    set_data(project, source="folder", folder=folder, **values)


def fill(project, **classes):
    """Folders of small pictures, with this many of each class."""
    for name, count in classes.items():
        folder = project.folder / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([len(name), number]).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return project.folder / "pictures"


@pytest.mark.parametrize(
    ("values", "where", "remedy"),
    [
        ({"sorce": "digits"}, "params.yaml: data.sorce: no such setting", "did you mean 'source'?"),
        ({"image_size": "8"}, "params.yaml: data.image_size: ", "correct the value"),
        ({"validation_fraction": 0.9}, "params.yaml: data.validation_fraction: ", "correct the value"),
        ({"source": "mnst"}, "params.yaml: data.source: there is no source 'mnst'", "did you mean 'mnist'?"),
    ],
    ids=["misspelt", "mistyped", "out of range", "unknown source"],
)
def test_a_wrong_setting_is_refused_before_anything_is_fetched(project, values, where, remedy):
    set_data(project, **values)
    output = refused(project, "stages.download")
    assert where in output and remedy in output


STAGES = [("stages.download",), ("stages.preprocess",), ("stages.train", "cnn"), ("stages.evaluate",)]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: "-".join(stage))
def test_a_fault_in_the_section_of_another_stage_stops_each_stage_at_its_start(project, stage):
    project.params["evaluate"] = {**PARAMS["evaluate"], "classifier": "cn"}
    project.write()
    output = refused(project, *stage)
    assert (
        "params.yaml: evaluate.classifier: there is no model 'cn'" in output
        and "did you mean 'cnn'?" in output
    )


def test_a_stage_names_all_wrong_settings_at_once(project):
    project.params |= {"gats": {}, "gan": {"model": {"widht": 8}}}
    project.write()
    output = refused(project, "stages.train", "cnn")
    assert "error: params.yaml: 2 settings cannot be used\n" in output
    assert "  gan.model.widht: no such setting (did you mean 'width'?)\n" in output
    assert "  gats: no such section (did you mean 'gates'?)\n" in output


def test_the_command_repro_refuses_wrong_settings_before_it_starts_a_stage(project):
    project.params["evaluate"] = {**PARAMS["evaluate"], "classifier": "cn"}
    project.write()
    (project.folder / ".dvc").mkdir()
    (project.folder / "dvc.yaml").write_text("stages: {}")
    assert "there is no model 'cn'" in refused(project, "tests.darkroom", "repro")


def test_a_stage_of_the_command_repro_checks_only_settings_that_have_changed_since(project, monkeypatch):
    from pipeline import repro, settings_check
    from pipeline.cli.repro import repro as command
    from pipeline.tracking import runs

    def stage(*given):
        """What a stage does at its start."""
        with monkeypatch.context() as without_models:
            without_models.setattr(settings_check, "_models", None)
            settings_check.require_valid_params()
            project.params |= {"gats": {}}
            project.write()
            with pytest.raises(TypeError):  # it loads the models
                settings_check.require_valid_params()
        started.append(True)

    started = []
    (project.folder / ".dvc").mkdir()
    (project.folder / "dvc.yaml").write_text("stages: {}")
    monkeypatch.setenv("DARKROOM_CHECKED_PARAMS", "")  # restored at the end of the test
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(repro, "repro", stage)
    monkeypatch.setattr(runs, "sync", lambda environment: None)
    command.main([], standalone_mode=False)
    assert started
    with pytest.raises(BadInput, match="gats: no such section"):
        command.main([], standalone_mode=False)


def test_a_model_file_that_cannot_be_imported_fails_its_own_stage_only(project, tmp_path, monkeypatch):
    import pipeline.models
    from pipeline import settings_check

    (tmp_path / "unfinished.py").write_text("def (")
    monkeypatch.setattr(pipeline.models, "__path__", [*pipeline.models.__path__, str(tmp_path)])
    project.params["unfinished"] = {"model": {}}
    project.write()
    valid, faults = settings_check.find_faults(project.folder / "params.yaml")
    assert not faults and {"cnn", "unfinished", "evaluate"} <= set(valid)


def test_settings_that_cannot_be_read_or_are_not_there_are_refused(project):
    (project.folder / "params.yaml").write_text("data:\n  source: [digits\n")
    assert "params.yaml, line" in refused(project, "stages.download")
    (project.folder / "params.yaml").unlink()
    assert "run from the project's root" in refused(project, "stages.preprocess")


def test_a_variable_that_cannot_be_used_is_refused_by_name(project):
    assert "DARKROOM_WORKERS: 'many'" in refused(project, "stages.preprocess", DARKROOM_WORKERS="many")


def test_an_altered_file_of_a_mirror_is_not_taken(project, tmp_path):
    file = sources.find("mnist").files[0]
    (tmp_path / "mirror/mnist").mkdir(parents=True)
    with open(tmp_path / "mirror/mnist" / file.name, "wb") as altered:
        altered.truncate(file.num_bytes)
    set_data(project, source="mnist")
    output = refused(project, "stages.download", code=1, DARKROOM_MIRROR=str(tmp_path / "mirror"), **OFFLINE)
    assert f"{tmp_path}/mirror/mnist/{file.name} has the SHA-256" in output and "DARKROOM_MIRROR" in output
    assert not [path for path in (project.folder / ".darkroom/downloads").rglob("*") if path.is_file()]


def test_a_truncated_archive_is_refused(project):
    folder = fill(project, cat=6, mouse=6)
    with zipfile.ZipFile(project.folder / "pictures.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    data = (project.folder / "pictures.zip").read_bytes()
    (project.folder / "pictures.zip").write_bytes(data[: len(data) // 2])
    set_folder(project, "pictures.zip")
    output = refused(project, "stages.download")
    assert "pictures.zip: is not a valid zip file" in output and "download the archive again" in output


@pytest.mark.parametrize(
    ("classes", "what", "remedy"),
    [
        (
            {"cat": 6, "mouse": 6, "void": 0},
            "contains class folders without images: 'void'",
            "fill or remove them",
        ),
        ({"cat": 6, "Cat": 6}, "contains classes that differ only in case: 'Cat', 'cat'", "rename or merge"),
        ({"cat": 0}, "contains no images", "create a folder for each class"),
        ({}, "no such folder or archive", "correct data.folder"),
    ],
    ids=["an empty class", "a class twice", "no pictures", "no folder"],
)
def test_a_folder_from_which_nothing_can_be_learned_is_refused(project, classes, what, remedy):
    fill(project, **classes)
    set_folder(project)
    output = refused(project, "stages.download")
    assert f"{project.folder}/pictures: {what}" in output and remedy in output


def test_a_broken_picture_is_named_by_preprocessing(project):
    folder = fill(project, cat=6, mouse=6)
    whole = (folder / "mouse/3.png").read_bytes()
    (folder / "mouse/3.png").write_bytes(whole[: len(whole) // 2])
    set_folder(project)
    code, output = project.run("stages.download")
    assert code == 0, output
    output = refused(project, "stages.preprocess")
    assert "cannot be decoded: mouse/3.png (" in output and "max_bad_fraction" in output
    set_folder(project, max_bad_fraction=0.1)
    code, output = project.run("stages.preprocess")
    assert code == 0 and "broken images left out: 1" in output


def test_a_class_of_few_pictures_is_named_by_preprocessing(project):
    fill(project, cat=6, mouse=2)
    set_folder(project)
    assert project.run("stages.download")[0] == 0
    assert "5 are needed: 'mouse' has 2" in refused(project, "stages.preprocess")


def test_raw_data_that_was_altered_or_is_another_source_is_not_prepared(project):
    raw = project.folder / "data/raw/digits.csv.gz"
    flip(raw)
    output = refused(project, "stages.preprocess")
    assert (
        "data/raw: files are missing or have changed since they were downloaded: digits.csv.gz" in output
        and "dvc repro --force download" in output
    )
    set_data(project, source="mnist")
    assert "contains 'digits', but params.yaml selects 'mnist'" in refused(project, "stages.preprocess")
    shutil.rmtree(raw.parent)
    assert "data/raw/source.json: is missing" in refused(project, "stages.preprocess")


def test_a_folder_without_write_permission_is_named_without_a_traceback(project):
    shutil.rmtree(project.folder / "data")
    (project.folder / "data").write_text("a file in its place")
    before = contents(project)
    code, output = project.run("stages.download")
    assert (
        code == 1 and "error: data" in output and "Traceback" not in output and len(output.splitlines()) <= 5
    )
    assert contents(project) == before


def test_a_shard_with_one_flipped_bit_is_not_trained_on(project):
    flip(project.folder / "data/processed/images/train/image-00000.npy")
    before = sha256(project.folder / "mlflow.db")
    output = refused(project, "stages.train", "cnn")
    assert (
        "data/processed/images/train/image-00000.npy: is missing or differs" in output
        and "dvc repro --force preprocess" in output
    )
    assert not project.trainings("cnn") and sha256(project.folder / "mlflow.db") == before


def test_a_wrong_model_or_setting_is_refused_before_the_data_is_read(project):
    project.params["gan"]["model"] = {"width": 0}
    project.write()
    output = refused(project, "stages.train", "gan")
    assert "params.yaml: gan.model.width: " in output and "correct the value" in output
    assert "resnet: no such model" in refused(project, "stages.train", "resnet")


@pytest.fixture(scope="module")
def busy(tmp_path_factory, processed_digits):
    """A training that was started twice: output and changes of the second, run status then and at the end."""
    project = Project(tmp_path_factory.mktemp("busy") / "project", processed_digits)
    project.params["ae"] = {**project.params["ae"], "training": {**TRAINING, "num_steps": 100_000}}
    project.write()
    first = project.start("stages.train", "ae")
    found = {}
    try:
        deadline = time.monotonic() + 120
        while not project.steps("ae"):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        before = contents(project)
        found["code"], found["output"] = project.run("stages.train", "ae")
        found["unchanged"] = contents(project) == before
        while not found.get("during"):  # its run is created in the background
            assert first.poll() is None and time.monotonic() < deadline
            found["during"] = statuses(project)
        found["step"] = project.steps("ae")[-1]
        deadline = time.monotonic() + 60
        while project.steps("ae")[-1] == found["step"]:
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(first.pid, signal.SIGTERM)
        output, _ = first.communicate(timeout=60)
    assert first.returncode == 143, output
    found["after"] = statuses(project)
    return found


@pytest.mark.slow
def test_a_second_training_of_a_model_fails_as_busy_and_the_first_continues(busy):
    output = busy["output"]
    assert (
        busy["code"] == 75
        and "another process runs this training" in output
        and "  -> wait for it, or stop it" in output
    )
    assert "Traceback" not in output and len(output.splitlines()) <= 5
    assert busy["unchanged"]


@pytest.mark.slow
def test_a_second_training_that_was_refused_does_not_end_the_run_of_the_first(busy):
    assert (busy["during"], busy["after"]) == (["RUNNING"], ["KILLED"])


def statuses(project):
    """The statuses of the project's runs in the tracking database."""
    code, output = project.run("tests.statuses")
    assert code == 0, output
    return json.loads(output.splitlines()[-1])


def flip(path):
    """Change the last bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
