"""The real cron and systemd."""

import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.retraining.schedule.conftest import called, expected


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
