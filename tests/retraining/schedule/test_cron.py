"""`darkroom schedule --cron`, and what cron runs."""

import re
import shutil
import subprocess
from datetime import time as hour

import pytest

from pipeline import environment
from pipeline.retraining import schedule
from pipeline.retraining.schedule import Schedule
from tests.command import darkroom, done
from tests.retraining.schedule.conftest import called, expected

BARE = {"HOME": "/", "PATH": "/usr/bin:/bin"}  # the only variables from cron and systemd
OTHERS = b"MAILTO=me@example\n# caf\xe9\n\n  */5 * * * *\techo 'a  b' \\% \r\n"


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
