"""A project in a folder whose name has a blank, % and more, and fake programs."""

from datetime import time as hour

import pytest

from pipeline.retraining.schedule import Schedule

NAME = "10 % of [a] it's $HOME"
STAND_IN = """#!/bin/sh
echo "printed by darkroom"
printf '%s\\n' "$PWD" "$*" "$SECRET" "$(command -v darkroom)" >called
exit "${CODE:-0}"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project, and a folder with a fake darkroom that records its calls."""
    root = tmp_path / NAME
    (root / ".darkroom").mkdir(parents=True)
    (root / "dvc.yaml").touch()
    (root / ".darkroom/schedule.env").write_text("SECRET='two words # $HOME'\n")
    (tmp_path / "pro %grams").mkdir()
    (tmp_path / "pro %grams/darkroom").write_text(STAND_IN)
    (tmp_path / "pro %grams/darkroom").chmod(0o755)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def wanted(project):
    return Schedule(project, hour(2, 30), project.parent / "pro %grams")


def called(project):
    """Folder, arguments, a variable of the environment file and the program, as the fake recorded them."""
    lines = (project / "called").read_text().splitlines()
    (project / "called").unlink()
    return lines


def expected(project):
    return [str(project), "retrain", "two words # $HOME", str(project.parent / "pro %grams/darkroom")]


@pytest.fixture
def crontab(tmp_path, monkeypatch):
    """A fake crontab program. Like the real one, it refuses a file without a line break at its end."""
    kept, folder = tmp_path / "kept", tmp_path / "fake"
    folder.mkdir()
    (folder / "crontab").write_text(
        f"""#!/bin/sh
case $1 in
-l) [ -e '{kept}' ] || {{ echo "no crontab for me" >&2; exit 1; }}
    [ -r '{kept}' ] && cat '{kept}' || exit 1 ;;
-) cat >'{kept}.new'; [ -z "$(tail -c 1 '{kept}.new')" ] || exit 1; mv '{kept}.new' '{kept}' ;;
*) exit 1 ;;
esac
"""
    )
    (folder / "crontab").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return kept
