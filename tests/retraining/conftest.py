import pytest

from tests.repository import create, shell
from tests.retraining.deliveries import SECTIONS, copied, deliver


@pytest.fixture(scope="session")
def first(tmp_path_factory):
    """A project after its first retraining: 700 pictures, one champion."""
    project = create(tmp_path_factory.mktemp("first") / "project", **SECTIONS)
    deliver(project, 0, 700)
    output = shell(project, "darkroom", "retrain")
    assert "promoted: cnn none -> 1 (the first version)" in output, output
    return project


@pytest.fixture
def project(first, tmp_path):
    """A copy of it."""
    return copied(first, tmp_path / "copy")
