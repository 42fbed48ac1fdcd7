"""The DVC that has started a stage, seen from the stage (Linux; elsewhere nothing is found)."""

import os
from contextlib import suppress
from pathlib import Path


def find(stage: str) -> tuple[int, int, bool]:
    """The ids of DVC's child and of DVC, and whether that is DVC indeed.

    The child is this process, or a shell or launcher between the two: it has the variable ``DVC_STAGE`` with
    the name ``stage`` as well. DVC, also as a library, has the session of what it starts.
    """
    child, parent, words = os.getpid(), os.getppid(), b""
    variable = f"\0DVC_STAGE={stage}\0".encode()
    with suppress(OSError):  # the variables can be read by their own user only
        while parent > 1 and variable in b"\0" + Path(f"/proc/{parent}/environ").read_bytes():
            # This may be DVC itself, if its caller has set the variable, too.
            words += Path(f"/proc/{parent}/cmdline").read_bytes()
            child, parent = parent, parent_of(parent)
        words += Path(f"/proc/{parent}/cmdline").read_bytes()
        return child, parent, os.getsid(parent) == os.getsid(child) or b"dvc" in words
    return child, parent, True


def has_ended(child: int, parent: int) -> bool:
    """Whether ``child`` has ended or lost its ``parent``. False if that cannot be read now."""
    try:
        return parent_of(child) != parent
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """The id of the parent of ``pid``. Raises ``OSError`` if there is no such process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
