"""`make install` with fake Python, pip and DVC: when it installs, and where; `make ui`."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_walls import ROOT

TOOL = '#!/bin/sh\necho "$(basename "$0") $*" >> calls.log\n'
PYTHON = """#!/bin/sh
echo "python $*" >> calls.log
if [ "$2" = venv ]; then
    mkdir -p .venv/bin; cp tool .venv/bin/pip; cp tool .venv/bin/dvc; cp python .venv/bin/python
fi
"""


@pytest.fixture
def project(tmp_path):
    """A folder with the Makefile and the fake programs; its name has a blank and a non-ASCII letter."""
    folder = tmp_path / "dark room é"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "requirements.hashes", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for name, text in (("tool", TOOL), ("python", PYTHON)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def install(folder):
    """What `make install` called."""
    (folder / "calls.log").write_text("")
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache"), "MAKEFLAGS": ""}
    command = ["make", "install", "PYTHON=./python"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return (folder / "calls.log").read_text()


def test_packages_are_installed_once(project):
    assert "pip install" in install(project)
    assert install(project) == ""


def test_two_processes_install_all_pinned_packages_with_their_hashes(project):
    calls = install(project)
    pinned = []
    for half in (project / ".venv/hashes-0", project / ".venv/hashes-1"):
        assert f"-r .venv/{half.name}" in calls
        pinned += re.findall(r"^[^ #].*(?:\n    .*)*", half.read_text(), re.MULTILINE)
    text = (ROOT / "requirements.hashes").read_text()
    assert sorted(pinned) == sorted(re.findall(r"^[^ #].*(?:\n    .*)*", text, re.MULTILINE)) != []


def test_changed_requirements_are_installed_into_the_same_environment(project):
    install(project)
    (project / ".venv/kept").touch()
    os.utime(project / ".venv/.ready", (0, 0))
    assert "pip install" in install(project) and (project / ".venv/kept").exists()


def test_in_a_moved_project_the_environment_is_made_again(project):
    """Its programs name the former path."""
    install(project)
    (project / ".venv/of the former place").touch()
    moved = project.rename(project.with_name("moved"))
    assert "venv" in install(moved) and not (moved / ".venv/of the former place").exists()
    assert install(moved) == ""


def test_dvcs_own_cache_is_private_and_its_path_is_one_that_dvc_can_write(project):
    assert f"config --local core.site_cache_dir {project.parent}/cache/darkroom/dvc" in install(project)
    assert (project.parent / "cache/darkroom/dvc").stat().st_mode & 0o777 == 0o700


def test_a_port_that_is_taken_is_named_before_make_ui_starts_anything(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    for name in ("requirements.lock", "requirements.hashes", "pyproject.toml", ".venv/.ready"):
        (tmp_path / name).write_text(str(tmp_path) if name == ".venv/.ready" else "")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = ["make", "-C", str(tmp_path), "ui", f"PORT={port}"]
        done = subprocess.run(
            command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60
        )
    assert done.returncode != 0 and f"port {port}" in done.stderr and "make ui PORT=" in done.stderr
    assert "MLflow on" not in done.stdout and not (tmp_path / "mlflow.db").exists()


def test_make_repro_calls_the_command_that_repairs_dvcs_files(project):
    """Plain `dvc repro` would fail for ever on an empty dvc.lock or rwlock."""
    command = ["make", "--dry-run", "--always-make", "repro"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines.index("darkroom doctor --brief") < lines.index("darkroom repro") and "dvc repro" not in lines
