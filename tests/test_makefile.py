"""`make install` with fake Python, pip and DVC: when it installs, and where; `make ui`; `make audit`."""

import os
import re
import shutil
import socket
import subprocess
import sys
from datetime import datetime
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


@pytest.fixture
def audit(tmp_path):
    """A function: `make audit` with a fake pip-audit and this advisories.txt; exit code, output, error."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/audit/bin").mkdir(parents=True)
    tool = tmp_path / ".venv/audit/bin/pip-audit"
    tool.write_text('#!/bin/sh\necho "pip-audit $*"\nexit ${FOUND:-0}\n')
    tool.chmod(0o755)
    for name in ("requirements.lock", "requirements.hashes", "pyproject.toml", ".venv/.ready"):
        (tmp_path / name).write_text(str(tmp_path) if name == ".venv/.ready" else "")

    def run(advisories, **variables):
        (tmp_path / "advisories.txt").write_text(advisories)
        environment = {**os.environ, "MAKEFLAGS": "", **variables}
        command = ["make", "--silent", "-C", str(tmp_path), "audit"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return run


def test_accepted_advisories_are_passed_on_to_pip_audit_and_others_fail(audit):
    code, output, _ = audit("# a comment\n\nCVE-1 2999-01-31 why\nGHSA-2 2999-12-31 another reason\n")
    assert code == 0 and "-r requirements.hashes --ignore-vuln CVE-1 --ignore-vuln GHSA-2\n" in output
    code, output, _ = audit("")
    assert code == 0 and "--strict --disable-pip --require-hashes -r requirements.hashes\n" in output
    assert audit("", FOUND="1")[0] != 0  # an advisory that is not accepted


def test_an_advisory_that_was_accepted_until_a_past_day_fails_before_pip_audit_runs(audit):
    today = f"{datetime.now():%Y-%m-%d}"
    assert audit(f"CVE-1 {today} why\n")[0] == 0
    code, output, error = audit("CVE-1 2999-01-31 why\nCVE-2 2020-05-31 another reason\n")
    assert code != 0 and "pip-audit" not in output
    assert "error: advisories.txt: CVE-2 was accepted until 2020-05-31" in error


def test_the_shipped_advisories_have_a_date_that_make_audit_can_compare_and_a_reason():
    lines = [line for line in (ROOT / "advisories.txt").read_text().splitlines() if line[0] != "#"]
    assert lines and all(re.fullmatch(r"\S+-\S+ \d{4}-\d\d-\d\d \S.+", line) for line in lines)
