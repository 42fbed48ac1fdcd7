"""Errors for users: what happened, where, and what to do next."""

from collections.abc import Iterable

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_BUSY = 75


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
