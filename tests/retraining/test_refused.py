"""`darkroom retrain` refuses a worse model, and one of other classes."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from pipeline.retraining.journal import Journal
from tests.project import PARAMS
from tests.repository import commit, create, shell
from tests.retraining.deliveries import SECTIONS, STEPS, deliver, look

pytestmark = pytest.mark.slow


@pytest.mark.nightly
def test_shuffled_labels_are_refused_and_quarantined(project):
    from sklearn.datasets import load_digits

    before = look(project)
    deliver(project, 700, 1000, np.random.default_rng(0).permutation(load_digits().target))
    output = shell(project, "darkroom", "retrain")
    after = look(project)
    assert (
        "refused: " in output and {**after, "quarantined": 0} == before and after["quarantined"] >= 300 - 60
    ), output
    assert "are quarantined" in shell(project, "darkroom", "retrain")
    assert "refused: " in shell(project, "darkroom", "retrain", "--readmit", "contradicts")
    deliver(project, 1000, 1400)
    assert "promoted: " in shell(project, "darkroom", "retrain")
    assert look(project)["version"] == 2 and len(list((project / "data/own/digits").rglob("*.png"))) <= 1160


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_champion_of_other_classes_is_announced_and_the_printed_commands_promote_by_hand(tmp_path):
    short = {**STEPS, "num_steps": 50, "sample_every": 50, "checkpoint_every": 50}
    digits = {
        "data": PARAMS["data"],
        "gates": {"minimum_test_images": 100},
        "retrain": {},
    }
    project = create(
        tmp_path / "project", **{**SECTIONS, **digits, "cnn": {**SECTIONS["cnn"], "training": short}}
    )
    shell(project, "darkroom", "repro")
    parity = np.array(["even", "odd"])[load_labels() % 2]
    deliver(project, 0, 300, parity)
    params = json.loads((project / "params.yaml").read_text())
    (project / "params.yaml").write_text(
        json.dumps({**params, "data": SECTIONS["data"], "retrain": SECTIONS["retrain"]})
    )
    assert "git add params.yaml; git commit" in shell(project, "darkroom", "retrain", code=2)
    commit(project, "our own pictures")

    note = (
        "the champion cnn/1 knows 10 classes (0, 1, 2, 3, 4, ...) of 1 x 8 x 8 pixels, "
        "the new data has 2 classes (even, odd) of 1 x"
    )
    dry = shell(project, "darkroom", "retrain", "--dry-run")
    assert note in dry and "these champions stay" in dry and "would train: 300 new pictures" in dry, dry
    assert "about 60 pictures will be test pictures, gates.minimum_test_images is 100" in dry
    output = shell(project, "darkroom", "retrain")
    assert output.index(note) < output.index("Running stage") and "refused: cnn stays 1" in output, output
    assert serving(project) == 1 and len(Journal(project).quarantined()) == 300

    error = shell(project, "darkroom", "promote", "cnn", code=2)
    assert (
        "cnn@challenger: no version of cnn has the alias 'challenger'" in error
        and "cnn/2, cnn/1 (the champion)" in error
    )
    promote, readmit = [
        shlex.split(line, comments=True) for line in output.splitlines() if line.startswith("  darkroom ")
    ]
    assert promote == ["darkroom", "promote", "cnn/2", "--reason", "..."] and readmit[:3] == [
        "darkroom",
        "retrain",
        "--readmit",
    ]
    shell(project, *promote)
    assert serving(project) == 2

    dry = shell(project, *readmit, "--dry-run")
    assert (
        "300 quarantined pictures would be checked again" in dry
        and "would train: 300 new pictures" in dry
        and "note: the champion" not in dry
    )
    assert len(Journal(project).quarantined()) == 300 and not (project / "data/own/digits.dvc").exists()
    assert "promoted: the trained versions are the champions already" in shell(project, *readmit)
    after = look(project)
    assert (after["version"], after["quarantined"]) == (2, 0) and len(
        list((project / "data/own/digits").rglob("*.png"))
    ) == 300


def serving(project: Path) -> int:
    """The champion's version of the classifier."""
    from mlflow import MlflowClient

    return int(
        MlflowClient(f"sqlite:///{project}/mlflow.db").get_model_version_by_alias("cnn", "champion").version
    )


def load_labels() -> np.ndarray:
    """The classes of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    return load_digits().target
