"""The `darkroom` command, called in this process."""

from click.testing import CliRunner

from pipeline.cli import commands
from pipeline.errors import DarkroomError


def darkroom(*arguments, stdin=None):
    """(exit code, standard output, error) of the console script."""
    result = CliRunner().invoke(commands, [str(argument) for argument in arguments], input=stdin)
    if isinstance(result.exception, DarkroomError):
        assert len(str(result.exception).splitlines()) <= 4
        return result.exception.exit_code, result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def done(*arguments, stdin=None):
    code, output, error = darkroom(*arguments, stdin=stdin)
    assert (code, error) == (0, "")
    return output
