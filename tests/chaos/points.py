"""Stop a process at a chosen change of the project's files.

An audit hook of Python sees each call that opens, renames or removes a file, in every library. It is only
installed in the processes that the harness starts, so that the product needs no code for it.
"""

import errno
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# The events that change files, and which of their arguments are paths and folders that these are relative to.
CHANGES = {
    "os.rename": (1, 3),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "os.mkdir": (0, 2),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.truncate": (0, None),
}
# What differs from run to run: hashes, numbers, and the random parts of temporary names.
RANDOM = re.compile(
    r"(?<=/\.)[\w-]{16,}(?=\.tmp)|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<=\.)[a-z0-9_]{8}(?=\.|/|$)|(?<=tmp)[a-z0-9_]{8}"
    r"|[0-9a-f]{6,}|\d+|[0-9A-Za-z]{20,}"
)

process_name = ["darkroom"]  # then dvc, then that of a stage


class Points:
    """Logs each change of ``root`` in ``log``, or stops the process at the chosen one.

    A change is ``<process> <event> <path>``, with * for what differs from run to run. ``target`` is a change,
    and ``number`` counts from 0 within one process. ``opened`` stands for the moment after a file was opened
    for writing, and so is empty.
    """

    def __init__(self, root: Path, log: Path, target: str = "", number: int = 0) -> None:
        self.root, self.target, self.number = f"{root}/", target, number
        self.file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.seen = Counter[str]()
        self.busy = False

    def install(self) -> None:
        """Observe this process and those that it forks. A hook cannot be removed."""
        sys.addaudithook(self._observe)

    def _observe(self, event: str, arguments: tuple) -> None:
        if self.busy or (event != "open" and event not in CHANGES):
            return
        self.busy = True  # the hook opens files itself
        try:
            if event == "open" and arguments[2] & WRITING:
                self._reach("open", arguments[0], None)
                if self._is_next("opened", arguments[0]):
                    os.close(os.open(arguments[0], arguments[2], 0o644))
                self._reach("opened", arguments[0], None)
            elif event != "open":
                path, folder = CHANGES[event]
                self._reach(event, arguments[path], arguments[folder] if folder else None)
        finally:
            self.busy = False

    def _name(self, event: str, path: object, folder: int | None = None) -> str:
        if not isinstance(path, str | bytes | os.PathLike):
            return ""
        text = os.fsdecode(path)
        if folder is not None and folder >= 0 and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
        text = os.path.join(os.getcwd(), text)
        if not text.startswith(self.root):
            return ""
        return f"{process_name[0]} {event} {RANDOM.sub('*', text.removeprefix(self.root))}"

    def _is_next(self, event: str, path: object) -> bool:
        name = self._name(event, path)
        return name == self.target != "" and self.seen[name] == self.number

    def _reach(self, event: str, path: object, folder: int | None) -> None:
        name = self._name(event, path, folder)
        if not name:
            return
        if name == self.target and self.seen[name] == self.number:
            os.write(self.file, b"stopped\n")
            os.kill(os.getpid(), signal.SIGSTOP)
        self.seen[name] += 1
        if not self.target:
            os.write(self.file, f"{name}\n".encode())


class Moment(Points):
    """Stops the processes at the change of this ``number`` in all of them together.

    ``full``: it and each later call that writes fails instead, as on a full disk.
    """

    def __init__(self, root: Path, log: Path, number: int, full: bool = False) -> None:
        log.write_text("")
        super().__init__(root, log, number=number)
        self.full = full

    def _reach(self, event: str, path: object, folder: int | None) -> None:
        if not self._name(event, path, folder):
            return
        os.write(self.file, b".")
        if os.fstat(self.file).st_size < self.number:
            return
        if self.full and event in ("open", "os.mkdir", "os.link", "os.symlink"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if not self.full:
            os.write(self.file, b"stopped\n")
            os.kill(os.getpid(), signal.SIGSTOP)
