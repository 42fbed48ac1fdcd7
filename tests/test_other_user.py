"""The pipeline in a path with blanks and non-ASCII letters, run by a user who owns only the project."""

import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import mlflow
import pytest

from tests.repository import create, shell

NOBODY = 65534
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user"
    ),
]


@pytest.fixture
def place():
    """A folder that every user may enter, unlike that of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="dark room é "))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def is_open(path):
    """Whether every user may enter the folders above ``path``; access(2), which MLflow uses, needs that."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)


@pytest.mark.nightly
@pytest.mark.skipif(not is_open(Path(mlflow.__file__)), reason="MLflow is where other users may not enter")
def test_another_user_rebuilds_the_project_in_a_path_with_blanks(place):
    project = create(place / "my project")
    (place / "home").mkdir()
    for path in [place, *place.rglob("*")]:
        os.lchown(path, NOBODY, NOBODY)
    reads = (
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    )  # Python may be in the home of root
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *reads)
    options = {"HOME": str(place / "home"), "TMPDIR": str(place), "USER": "nobody", "LOGNAME": "nobody"}
    output = shell(project, *become, sys.executable, "-m", "dvc", "repro", **options)
    assert "evaluated on" in output
    for name in ("reports/index.html", "mlflow.db", "models/cnn/model.safetensors"):
        assert (project / name).stat().st_uid == NOBODY
    again = shell(project, *become, sys.executable, "-m", "dvc", "repro", **options)
    assert "Running stage" not in again
