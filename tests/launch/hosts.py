"""Simulate several hosts on one machine with Linux namespaces (needs root).

Each host has its own addresses, processes, host name and disk, and a network connection that can be cut. A
host is an init process in new namespaces; when it ends, so do its processes, mounts and network, and it ends
with the process that created it. The machine's network is not changed, and the hosts cannot reach it.

A host sees the machine's disk read-only. It sees the project without data and results. What it writes to the
project, /tmp and /dev/shm is not visible to other hosts.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.project import ROOT, as_from_a_terminal

NETWORK, SHARED = "10.77.0", Path("/tmp/shared")
RESULTS = (
    ".darkroom",
    ".dvc/cache",
    "data/processed",
    "data/raw",
    "history",
    "mlartifacts",
    "mlflow.db",
    "models",
    "reports",
)
NAMESPACES = ("--mount", "--net", "--uts", "--ipc", "--pid")
UNSHARE = ["unshare", *NAMESPACES, "--fork", "--mount-proc", "--kill-child"]
END_SECONDS = 30
# Ignoring SIGCHLD reaps orphans. The process ends when the other end of its stdin is closed, also by a crash.
INIT = """import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print('ready', flush=True)
sys.stdin.read()"""
DISK = """set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$1"
mount -t tmpfs tmpfs /dev/shm
if [ -n "$4" ]; then mount --bind "$4" "$3/shared"; fi
case "$1" in /tmp/*) mkdir -p "$3${1#/tmp}"; mount --rbind "$1" "$3${1#/tmp}";; esac
mount --rbind "$3" /tmp
mount -o remount,bind,ro /
hostname "$5"
shift 5
exec "$@"
"""


class Host:
    """One host. ``folder`` on the machine is its /tmp; ``address`` is its only one besides loopback."""

    def __init__(self, name: str, address: str, folder: Path, shared: Path | None):
        self.name, self.address, self.folder = name, address, folder
        project = folder.with_name(f"{folder.name}.project")
        for path in (folder / "shared", project / "upper", project / "work"):
            path.mkdir(parents=True)
        for result in RESULTS:  # in an overlay such a device hides the file below
            (project / "upper" / result).parent.mkdir(exist_ok=True)
            os.mknod(project / "upper" / result, stat.S_IFCHR)
        self.init, self.pid = _init(
            "sh", "-c", DISK, "disk", str(ROOT), str(project), str(folder), str(shared or ""), name
        )
        self.started: list[subprocess.Popen[str]] = []

    def start(self, command, cwd=ROOT, **environment):
        """Start a command on this host, in a new process group, without the tests' environment variables."""
        known = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "HOME": "/tmp",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            ["nsenter", f"--target={self.pid}", *NAMESPACES, "env", f"--chdir={cwd}", *map(str, command)],
            env=known | environment,
            start_new_session=True,
            preexec_fn=as_from_a_terminal,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, command, timeout=60.0, cwd=ROOT, **environment):
        """Run a command on this host; return its exit code and output."""
        process = self.start(command, cwd, **environment)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output

    def processes(self):
        """The processes of this host without its init, with the machine's process ids."""
        own, found = os.readlink(f"/proc/{self.pid}/ns/pid"), []
        for process in psutil.process_iter():
            try:
                if process.pid != self.pid and os.readlink(f"/proc/{process.pid}/ns/pid") == own:
                    found.append(process)
            except OSError:  # it has ended
                continue
        return found

    def close(self):
        """End the host and all its processes."""
        _end(self.init)
        for process in self.started:
            process.wait(timeout=END_SECONDS)
            process.stdout.close()


class Hosts:
    """A context with ``count`` hosts in ``folder``.

    All see the folder ``shared``, if given, as /tmp/shared.
    """

    def __init__(self, count: int, folder: Path, shared: Path | None = None):
        self.count, self.folder, self.shared = count, folder, shared
        self.hosts: list[Host] = []

    def __enter__(self):
        _skip_unless_permitted()
        with ExitStack() as ends:
            switch, self.switch = _init()
            ends.callback(_end, switch)
            _ip(self.switch, "link add bridge type bridge", "link set bridge up")
            for number in range(self.count):
                host = Host(
                    f"host-{number}", f"{NETWORK}.{number + 1}", self.folder / f"host-{number}", self.shared
                )
                ends.callback(host.close)
                self.hosts.append(host)
                port = f"port{number}"
                _ip(
                    self.switch,
                    f"link add {port} type veth peer name eth0 netns {host.pid}",
                    f"link set {port} master bridge up",
                )
                _ip(host.pid, "link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up")
            self.ends = ends.pop_all()
        return self

    def __exit__(self, *error):
        self.ends.close()

    def __getitem__(self, number) -> Host:
        return self.hosts[number]

    def cut(self, number):
        """Disconnect a host from the network. Its processes continue."""
        _ip(self.switch, f"link set port{number} down")

    def reconnect(self, number):
        """Connect a host again."""
        _ip(self.switch, f"link set port{number} up")

    def kill(self, number):
        """Kill every process of a host. The host can start new ones."""
        deadline = time.monotonic() + END_SECONDS
        while processes := self.hosts[number].processes():
            assert time.monotonic() < deadline, processes
            for process in processes:
                process.kill()
            psutil.wait_procs(processes, timeout=1)


def _init(*before: str):
    """Start an init in new namespaces through the command ``before``; return its parent and its pid."""
    command = [*UNSHARE, *before, sys.executable, "-c", INIT]
    outer = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with outer.stdout:
        assert (line := outer.stdout.readline()) == "ready\n", line + outer.stdout.read()
    return outer, psutil.Process(outer.pid).children()[0].pid


def _end(init):
    init.stdin.close()
    try:
        init.wait(timeout=END_SECONDS)  # until the kernel has ended the last process in the namespaces
    finally:
        init.kill()


def _ip(pid, *commands):
    """Run ``ip`` commands in the network namespace of a process."""
    enter = ["nsenter", f"--target={pid}", "--net", "ip", "-batch", "-"]
    done = subprocess.run(
        enter, input="\n".join(commands), capture_output=True, text=True, timeout=END_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr


def _skip_unless_permitted():
    missing = [program for program in ("ip", "unshare", "nsenter") if not shutil.which(program)]
    if missing:
        pytest.skip(f"hosts need {', '.join(missing)} (Linux: iproute2, util-linux)")
    tried = subprocess.run(
        [*UNSHARE, "true"], capture_output=True, text=True, timeout=END_SECONDS, check=False
    )
    if tried.returncode:
        pytest.skip(f"hosts need root and namespaces: {tried.stderr.strip()}")
