"""Pictures without class folders: the generators and autoencoders are trained and measured all the same."""

import shutil

import pytest
import yaml

from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings
from pipeline.environment import Environment
from pipeline.files import read_json
from tests.data.layouts import picture, saved
from tests.project import MODELS, PARAMS, ROOT, TRAINING, Project

pytestmark = pytest.mark.nightly
SHORT = {**TRAINING, "num_steps": 10, "validate_every": 10, "sample_every": 10}


def test_one_class_is_not_classified_and_everything_else_is_measured(tmp_path, processed_digits):
    project = Project(tmp_path / "project", processed_digits)
    shutil.rmtree(project.folder / "data")
    (project.folder / "own").mkdir()
    for number in range(100):
        (project.folder / f"own/{number}.png").write_bytes(saved(picture(number), "PNG"))
    settings = DataSettings(source="folder", folder="own", image_size=8)
    raw = project.folder / "data/raw"
    download(settings, Environment(root=project.folder, storage=project.folder / ".darkroom"), raw)
    preprocess(settings, Environment(root=project.folder), raw, project.folder / "data/processed/images")
    project.params |= {name: {**PARAMS[name], "training": SHORT} for name in MODELS}
    project.params["data"] = {**PARAMS["data"], "source": "folder", "folder": "own"}
    project.write()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    own = {
        name: stage for name, stage in stages.items() if name.removeprefix("train-") in (*MODELS, "evaluate")
    }
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": own}))
    for name in MODELS:
        code, output = project.run("stages.train", name)
        assert code == 0, output
        assert ("the data has one class, so there is nothing to learn" in output) == (name == "cnn")
    code, output = project.run("stages.evaluate")
    assert code == 0 and "the data has one class: nothing is classified" in output, output
    found = read_json(project.folder / "metrics/evaluation.json")
    assert found.keys() == {"ae", "gan", "vae"} and "fid" in found["gan"] and "psnr" in found["ae"]
    details = read_json(project.folder / "metrics/details.json")
    assert details["cnn"] == {} and "label_agreement" not in details["gan"]
    assert "whose weights are random" in (project.folder / "reports/index.html").read_text()
