"""`darkroom schedule --systemd`, and what systemd runs."""

import os
import re
import shutil
import subprocess
from datetime import time as hour
from pathlib import Path

import pytest

from pipeline import environment
from pipeline.errors import BadInput
from pipeline.retraining import schedule
from pipeline.retraining.schedule import Schedule
from tests.command import darkroom, done
from tests.retraining.schedule.conftest import called, expected


def value(text, name):
    """A setting of a unit as systemd reads it. It has no specifier but %%."""
    (found,) = re.findall(rf"(?m)^{name}=(.*)$", text)
    assert "%" not in found.replace("%%", "") or "%n" in found
    return found.replace("%%", "%")


class TestTheUnits:
    def test_systemd_finds_no_fault_with_them(self, project, wanted, tmp_path):
        if not shutil.which("systemd-analyze"):
            pytest.skip("systemd-analyze is not installed")
        (tmp_path / "run").mkdir(mode=0o700)
        for path, text in wanted.units().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        folder = path.parent
        names = [folder / name.replace("@", "@darkroom-retrain.service") for name in schedule.UNITS]
        command = ["systemd-analyze", "--user", "--man=no", "verify", *names]
        variables = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")}

        def faults():
            return subprocess.run(
                command, env=variables, capture_output=True, text=True, timeout=60, check=False
            ).stderr

        assert faults() == ""
        names[0].write_text(names[0].read_text().replace("KillMode=mixed", "KillMode=mixt"))
        assert "kill mode" in faults()

    def test_the_timer_means_every_day_at_that_minute_in_utc(self, wanted):
        if not shutil.which("systemd-analyze"):
            pytest.skip("systemd-analyze is not installed")
        when = value(list(wanted.units().values())[1], "OnCalendar")
        shown = subprocess.run(
            ["systemd-analyze", "calendar", when], capture_output=True, text=True, timeout=30, check=True
        ).stdout
        assert "Normalized form: *-*-* 02:30:00 UTC" in shown

    @pytest.mark.parametrize("code", [0, 3])
    def test_the_service_runs_in_the_project_with_its_programs_and_variables(self, project, wanted, code):
        service = next(iter(wanted.units().values()))
        (name, path) = value(service, "Environment").strip('"').split("=", 1)
        file = value(service, "EnvironmentFile").removeprefix("-")
        given = [
            f"{name}={path}",
            f"CODE={code}",
            re.sub("='(.*)'", r"=\1", self.only(file).read_text().strip()),
        ]
        command = ["env", "-i", *given, "/bin/sh", "-c", "exec " + value(service, "ExecStart")]
        ended = subprocess.run(
            command, cwd=value(service, "WorkingDirectory"), capture_output=True, timeout=30, check=False
        )
        assert ended.returncode == code and called(project) == expected(project)

    @staticmethod
    def only(pattern):
        """The only file that matches a pattern of systemd."""
        (found,) = Path("/").glob(pattern.lstrip("/"))
        return found

    def test_the_alert_goes_to_the_command_or_the_journal(self, project, wanted, tmp_path):
        alert = list(wanted.units().values())[2]
        (line,) = re.findall(r"(?ms)^ExecStart=(.*?)(?<!\\)$", alert)
        line = (
            line.replace("\\\n", " ")
            .replace("%i", "darkroom-retrain.service")
            .replace("%H", "here")
            .replace("$$", "$")
        )
        for name in ("journalctl", "systemd-cat"):
            (tmp_path / name).write_text(
                f'#!/bin/sh\necho "{name} $*" >>"{tmp_path}/calls"\n'
                f'[ {name} = journalctl ] || cat >>"{tmp_path}/calls"\n'
            )
            (tmp_path / name).chmod(0o755)
        variables = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "MONITOR_SERVICE_RESULT": "exit-code",
            "MONITOR_EXIT_STATUS": "1",
        }
        for more in ({}, {"DARKROOM_ALERT": "cat >alert"}):
            subprocess.run(["/bin/sh", "-c", line], env=variables | more, cwd=project, timeout=30, check=True)
        assert (project / "alert").read_text() == "darkroom-retrain.service on here failed: exit-code 1\n"
        calls = (tmp_path / "calls").read_text()
        assert (
            "systemd-cat --priority err" in calls
            and calls.count("journalctl --user --unit darkroom-retrain.service") == 2
        )

    @pytest.mark.parametrize("reachable", [True, False])
    def test_systemctl_is_called_if_systemd_can_be_reached_else_the_commands_are_printed(
        self, project, tmp_path, monkeypatch, reachable
    ):
        program = tmp_path / "systemctl"
        program.write_text(
            f'#!/bin/sh\necho "$*" >>"{tmp_path}/calls"\n'
            f'[ "$2" != show-environment ] || {{ echo A=b; exit {0 if reachable else 1}; }}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        folder = tmp_path / "config/systemd/user"
        assert "OnCalendar" in done("schedule", "install", "--dry-run") and not folder.exists()
        shown = done("schedule", "install", "--systemd")
        assert sorted(path.name for path in folder.iterdir()) == sorted(schedule.UNITS)
        line = "systemctl --user enable --now darkroom-retrain.timer"
        assert f"{'done' if reachable else 'to do by hand'}: {line}" in shown
        assert ("--user enable --now darkroom-retrain.timer" in (tmp_path / "calls").read_text()) == reachable
        assert "02:30:00 UTC" in done("schedule", "show")
        (folder / "timers.target.wants").mkdir()
        (folder / "timers.target.wants/darkroom-retrain.timer").symlink_to(folder / "darkroom-retrain.timer")
        assert done("schedule", "remove", "--systemd").endswith("removed\n")
        assert not [path for path in folder.rglob("*") if not path.is_dir()]

    def test_those_of_another_project_are_neither_replaced_nor_removed(self, project, tmp_path, monkeypatch):
        other = Schedule(project, hour(2, 30)).units()
        for path, text in other.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("10 %% of", "20 %% of"))
        before = {path: path.read_bytes() for path in other}
        for command in ("install", "remove"):
            code, _, error = darkroom("schedule", command, "--systemd")
            assert (
                code == 2
                and "another project" in error
                and {path: path.read_bytes() for path in other} == before
            )

    def test_without_systemd_nothing_is_written(self, project, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        code, _, error = darkroom("schedule", "install")
        assert code == 2 and "--cron" in error and not (tmp_path / "config").exists()


@pytest.mark.parametrize("name", ["a\nb", "a\\b", 'a"b', "a:b", " ".join(["a", ""]), "\udce9"])
def test_a_folder_name_that_cron_or_systemd_cannot_use_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "dvc.yaml").touch()
    with pytest.raises(BadInput, match="cannot use"):
        Schedule(tmp_path / name, hour(2, 30))


def test_a_folder_without_a_project_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = darkroom("schedule", "install", "--dry-run")
    assert code == 2 and "no project" in error


def test_the_units_of_a_user_are_in_the_folder_that_systemd_reads(monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert environment.user_units() == Path("/home/me/.config/systemd/user")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/configuration")
    assert environment.user_units() == Path("/configuration/systemd/user")
