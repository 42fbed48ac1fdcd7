"""Errors for users: what happened, where, and what to do next."""

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
