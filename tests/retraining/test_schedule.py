"""`darkroom schedule`, in a folder whose name has a blank, % and more, and what cron and systemd run."""

import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from datetime import time as hour
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import environment
from pipeline.cli import commands
from pipeline.errors import BadInput
from pipeline.retraining import schedule
from pipeline.retraining.schedule import Schedule
from tests.command import darkroom, done

NAME = "10 % of [a] it's $HOME"
BARE = {"HOME": "/", "PATH": "/usr/bin:/bin"}  # the only variables from cron and systemd
OTHERS = b"MAILTO=me@example\n# caf\xe9\n\n  */5 * * * *\techo 'a  b' \\% \r\n"
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


class TestTheCrontab:
    def test_other_lines_do_not_change_and_removing_restores_the_file(self, project, crontab):
        crontab.write_bytes(OTHERS)
        shown = done("schedule", "install", "--cron", "--at", "23:05")
        once = crontab.read_bytes()
        assert (
            once.startswith(OTHERS)
            and once[len(OTHERS) :].decode() in shown
            and b"\n5 23 * * * /bin/sh " in once
        )
        done("schedule", "install", "--cron", "--at", "23:05")
        assert crontab.read_bytes() == once
        done("schedule", "install", "--cron", "--at", "04:00")
        assert crontab.read_bytes() == once.replace(b"\n5 23 *", b"\n0 4 *") and "\n0 4 * * *" in done(
            "schedule", "show"
        )
        assert done("schedule", "remove", "--cron") == "removed\n" and crontab.read_bytes() == OTHERS
        assert "no such schedule" in done("schedule", "remove", "--cron") and "no schedule" in done(
            "schedule", "show"
        )

    def test_a_missing_crontab_is_created_but_not_by_a_dry_run(self, project, crontab):
        assert "30 2 * * *" in done("schedule", "install", "--cron", "--dry-run") and not crontab.exists()
        done("schedule", "install", "--cron")
        assert crontab.read_text().count("\n30 2 * * * ") == 1

    def test_two_projects_have_separate_blocks(self, project, crontab, wanted):
        other = project.parent / "other"
        other.mkdir()
        (other / "dvc.yaml").touch()
        first = wanted.merged("")
        both = Schedule(other, hour(3)).merged(first)
        assert (
            both.startswith(first)
            and schedule.split(both, project)[1] == first
            and schedule.split(both, other)[0] == first
        )

    @pytest.mark.parametrize(
        ("before", "after"), [("", 'CRON_TZ=""'), ("CRON_TZ=Asia/Tokyo\n", "CRON_TZ=Asia/Tokyo")]
    )
    def test_utc_holds_for_this_line_alone(self, wanted, before, after):
        lines = wanted.merged(before).splitlines()
        at = lines.index("CRON_TZ=UTC")
        assert lines[at + 1].startswith("30 2 * * *") and lines[at + 2] == after
        assert wanted.merged(wanted.merged(before)) == wanted.merged(before)

    @pytest.mark.parametrize("lost", ["begin", "end"])
    def test_a_block_that_lost_a_mark_is_refused_and_nothing_is_written(self, project, crontab, lost):
        done("schedule", "install", "--cron")
        text = re.sub(rf"(?m)^#.*: {lost}\n", "", crontab.read_text()) + "0 0 * * * mine\n"
        crontab.write_text(text)
        for command in ("install", "remove"):
            code, _, error = darkroom("schedule", command, "--cron")
            assert (
                code == 2
                and "a mark of this project's block is missing" in error
                and crontab.read_text() == text
            )

    def test_a_crontab_that_cannot_be_read_is_not_taken_for_none(self, project, crontab):
        crontab.mkdir()  # cat fails
        code, _, error = darkroom("schedule", "install", "--cron")
        assert code == 1 and "crontab -l" in error and crontab.is_dir()

    def test_a_dry_run_needs_neither_cron_nor_systemd(self, project, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        assert "\n30 2 * * * /bin/sh " in done("schedule", "install", "--cron", "--dry-run")
        assert "OnCalendar=*-*-* 02:30:00 UTC" in done("schedule", "install", "--systemd", "--dry-run")
        assert not environment.user_units().exists()

    def test_without_the_program_it_says_what_to_install(self, project, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        code, _, error = darkroom("schedule", "install", "--cron")
        assert code == 2 and "crontab: this program is not installed" in error and "--systemd" in error


class TestWhatCronRuns:
    def run(self, wanted, **more):
        """Run the line of the block as cron does: (exit code, the output that cron would mail)."""
        (line,) = re.findall(r"(?m)^30 2 \* \* \* (.*)$", wanted.merged(""))
        assert not re.search(r"(?<!\\)%", line)  # cron would cut the line there
        command = ["/bin/sh", "-c", line.replace(r"\%", "%")]
        ended = subprocess.run(
            command, env=BARE | more, cwd="/", capture_output=True, text=True, timeout=30, check=False
        )
        return ended.returncode, ended.stdout + ended.stderr

    def test_it_runs_in_the_project_with_its_programs_and_variables_and_mails_nothing(self, project, wanted):
        assert self.run(wanted) == (0, "") and called(project) == expected(project)
        assert (
            self.run(wanted) == (0, "")
            and (project / ".darkroom/retrain.log").read_text() == "printed by darkroom\n" * 2
        )

    def test_another_one_that_runs_is_no_failure_to_mail(self, project, wanted):
        assert self.run(wanted, CODE="75") == (75, "")

    def test_a_failure_keeps_its_exit_code_and_is_mailed_with_the_end_of_the_log(self, project, wanted):
        code, mail = self.run(wanted, CODE="3")
        assert (
            code == 3
            and f"darkroom retrain in {project} on " in mail
            and "ended with exit code 3\nprinted by darkroom\n" in mail
        )

    def test_an_alert_command_replaces_the_mail(self, project, wanted):
        with open(project / ".darkroom/schedule.env", "a") as file:
            file.write("DARKROOM_ALERT='cat >alert; echo by mail'\nCODE=1\n")
        assert self.run(wanted) == (1, "by mail\n") and "exit code 1" in (project / "alert").read_text()

    def test_a_program_or_a_project_that_is_gone_is_mailed(self, project, wanted):
        (project.parent / "pro %grams/darkroom").unlink()
        code, mail = self.run(wanted)
        assert code == 127 and "exit code 127" in mail
        shutil.rmtree(project)
        code, mail = self.run(wanted)
        assert code == 1 and "exit code 1" in mail

    def test_a_long_log_is_renamed_once(self, project, wanted):
        log = project / ".darkroom/retrain.log"
        log.write_bytes(b"x" * 10_000_001)
        self.run(wanted)
        assert (
            log.read_text() == "printed by darkroom\n"
            and log.with_name("retrain.log.1").stat().st_size == 10_000_001
        )


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


@pytest.mark.nightly
class TestTheRealOnes:
    """The real cron and systemd in their own namespaces, so that nothing of this machine is changed."""

    COMMAND = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--mount-proc")

    def run(self, project, script, file, seconds, **variables):
        """Run a shell script as root of new namespaces until ``file`` has a line, then kill its processes."""
        if (
            os.getuid() != 0
            or subprocess.run(
                [*self.COMMAND, "true"], capture_output=True, timeout=30, check=False
            ).returncode
        ):
            pytest.skip("namespaces need root")
        with open(project / ".darkroom/schedule.env", "a") as kept:
            kept.write(
                f"PATH='{project.parent}/pro %grams:/usr/bin:/bin'\nCODE=3\nDARKROOM_ALERT='cat >alert'\n"
            )
        given = {
            **os.environ,
            "TZ": "UTC",
            "DARKROOM": str(Path(sys.executable).with_name("darkroom")),
            **variables,
        }
        process = subprocess.Popen([*self.COMMAND, "sh", "-euc", script], env=given, start_new_session=True)
        deadline = time.monotonic() + seconds
        try:
            while not (file.exists() and file.read_text().endswith("\n")) and time.monotonic() < deadline:
                assert process.poll() is None, "the script ended"
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait(30)
        assert file.exists(), f"nothing within {seconds} s"

    def test_a_cron_daemon_runs_the_installed_line(self, project, tmp_path):
        spool = Path("/var/spool/cron/crontabs")
        if not (shutil.which("cron") and shutil.which("crontab") and spool.is_dir()):
            pytest.skip("Debian's cron is not installed")
        before = {path: path.read_bytes() for path in spool.iterdir()} if os.getuid() == 0 else {}
        script = f"""
        mount -t tmpfs -o mode=1730 tmpfs {spool}
        mount -t tmpfs tmpfs /run
        mount -t tmpfs tmpfs /etc/cron.d
        mount --bind /dev/null /etc/crontab
        "$DARKROOM" schedule install --cron --at "$AT" >/dev/null
        exec cron -f
        """
        at = datetime.now(UTC) + timedelta(seconds=75)  # the next minute that it surely sees
        self.run(project, script, project / "alert", 150, AT=f"{at:%H:%M}")
        assert called(project) == expected(project)
        assert "ended with exit code 3\nprinted by darkroom\n" in (project / "alert").read_text()
        assert {path: path.read_bytes() for path in spool.iterdir()} == before

    def test_the_timer_of_systemd_starts_the_service_and_its_failure_is_reported(self, project, tmp_path):
        manager = Path("/lib/systemd/systemd")
        if not (manager.exists() and shutil.which("systemctl")):
            pytest.skip("systemd is not installed")
        soon = tmp_path / "config/systemd/user/darkroom-retrain.timer.d/soon.conf"
        soon.parent.mkdir(parents=True)
        soon.write_text("[Timer]\nOnActiveSec=1s\nAccuracySec=1ms\nRandomizedDelaySec=0\n")
        script = f"""
        mount -t tmpfs tmpfs /run
        mkdir -p /run/systemd/system /run/user/0
        mount -t tmpfs tmpfs /sys/fs/cgroup
        mount -t cgroup2 none /sys/fs/cgroup
        {manager} --user --log-target=null &
        until systemctl --user show-environment >/dev/null 2>&1; do sleep 0.2; done
        "$DARKROOM" schedule install --systemd >"$HOME/output"
        systemctl --user list-timers --all --no-pager >"$HOME/timers"
        wait
        """
        home = tmp_path / "home"
        home.mkdir()
        self.run(
            project,
            script,
            project / "alert",
            90,
            HOME=str(home),
            XDG_DATA_HOME=str(home),
            XDG_RUNTIME_DIR="/run/user/0",
        )
        assert called(project) == expected(project)
        assert (project / "alert").read_text().startswith("darkroom-retrain.service on ")
        assert "failed: exit-code 3\n" in (project / "alert").read_text()
        assert "done: systemctl --user enable --now" in (home / "output").read_text()
        assert "darkroom-retrain.timer" in (home / "timers").read_text()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    ("group", "names"),
    [((), ["doctor", "history", "retrain", "schedule"]), (("schedule",), ["install", "remove", "show"])],
)
def test_the_help_shows_the_summary_of_each_command_whole(group, names, width):
    shown = CliRunner().invoke(commands, [*group, "--help"], terminal_width=width).output
    lines = {line.split()[0]: line for line in shown.partition("Commands:")[2].splitlines() if line.strip()}
    for name in names:
        assert not lines[name].rstrip().endswith("..."), lines[name]
