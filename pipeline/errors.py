"""Errors for users: what happened, where, and what to do next."""

import errno
import re
from collections.abc import Iterable

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_BUSY = 75
SPACE = "free some space there, or use a folder on another disk"
ACCESS = "check the owner and the permissions (ls -ld), or run as the user who owns it"
DESCRIPTORS = "allow more open files: ulimit -n 4096; or use fewer workers"
REMEDIES = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EACCES: ACCESS,
    errno.EPERM: ACCESS,
    errno.EROFS: "mount this file system for writing, or use a folder on another one",
    errno.EMFILE: DESCRIPTORS,
    errno.ENFILE: DESCRIPTORS,
    errno.EFBIG: "raise the limit of the size of a file: ulimit -f unlimited",
    errno.ENAMETOOLONG: "use shorter paths: of the project, TMPDIR and DARKROOM_STORAGE",
}
OS_ERROR = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")  # of Python, of safetensors


class DarkroomError(Exception):
    """An error with a remedy. Commands print it without a traceback and end with ``exit_code``.

    ``what`` says what is wrong, ``where`` names the file, key or address, ``remedy`` says what to do next.
    """

    exit_code = EXIT_FAILED

    def __init__(self, what: str, *, where: str = "", remedy: str = "", exit_code: int = 0) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        self.exit_code = exit_code or self.exit_code
        lines = [f"{where}: {what}" if where else what]
        if remedy:
            lines.append(f"  -> {remedy}")
        super().__init__("\n".join(lines))


class BadInput(DarkroomError):
    """Settings, files or arguments that cannot be used."""

    exit_code = EXIT_BAD_INPUT


class TrainingStopped(DarkroomError):
    """A listener ended the training. It has a checkpoint but no result."""


def listed(items: Iterable[object], limit: int = 20) -> str:
    """The first ``limit`` items, separated by commas, and the number of the others."""
    texts = [str(item) for item in items]
    others = [f"and {len(texts) - limit:,} more"] if len(texts) > limit else []
    return ", ".join(texts[:limit] + others)


def remedy_for(error: BaseException) -> str:
    """What to do about an error of the operating system, also one in the text of a library; '' if unknown."""
    if "usable temporary directory" in str(error):
        return "set TMPDIR to a folder in which you can write"
    found = OS_ERROR.search(str(error))
    return REMEDIES.get(int(found[1] or found[2]) if found else 0, "")
