"""A project with models that have their initial weights, as the current folder."""

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.task import DataSpec
from tests.arrays import batch_of
from tests.cli.pictures import GREY, NAMES
from tests.project import MODELS, PARAMS

COLOUR = DataSpec.labelled_images(3, 12, 10)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """A folder of models: the four for grey pictures of 8 x 8, and 'colour', a classifier of 3 x 12 x 12."""
    folder = tmp_path_factory.mktemp("shelf") / "models"
    for name in MODELS:
        task = model_files.build(name, PARAMS[name]["model"], GREY, seed=1).requires_grad_(False)
        images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        task.on_train_end([batch_of(images, torch.arange(40) % 10)])
        model_files.write(task, folder / name, {"class_names": NAMES})
    model_files.write(
        model_files.build("cnn", PARAMS["cnn"]["model"], COLOUR, seed=1),
        folder / "colour",
        {"class_names": NAMES},
    )
    return folder


@pytest.fixture(autouse=True)
def place(shelf, tmp_path, monkeypatch):
    """A project with models only, as the current folder."""
    (tmp_path / "models").symlink_to(shelf)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(tmp_path)
    return tmp_path
