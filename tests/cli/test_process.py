"""The console script itself, and its help."""

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from pipeline import cli
from pipeline.core import model_files
from tests.cli.pictures import answers, expected, picture
from tests.project import ROOT


class TestHelp:
    def every(self):
        """(name, command) of each command and sub-command."""
        for name, command in cli.commands.commands.items():
            yield name, command
            if isinstance(command, click.Group):
                yield from ((f"{name} {child}", command.commands[child]) for child in command.commands)

    @pytest.mark.parametrize("width", [80, 120])
    def test_no_summary_is_cut_off(self, width):
        for arguments in ([], ["schedule"]):
            result = CliRunner().invoke(cli.commands, [*arguments, "--help"], terminal_width=width)
            shown = result.output.split("Commands:")[1]
            assert not [line for line in shown.splitlines() if line.rstrip().endswith("...")]

    def test_every_command_has_a_summary_and_every_option_a_help_text(self):
        for name, command in self.every():
            assert command.help, name
            assert not [
                one.name for one in command.params if isinstance(one, click.Option) and not one.help
            ], name

    def test_promote_says_that_a_reason_overrules_the_gates(self):
        shown = " ".join(CliRunner().invoke(cli.commands, ["promote", "--help"]).output.split())
        assert "A reason overrules the gates" in shown


class TestProcess:
    """The console script itself."""

    def start(self, *arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        code = "from pipeline.cli import main; main()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True, **pipes)

    def test_a_list_on_standard_input_is_classified(self):
        picture("größe.png", 1)
        process = self.start("classify", "-")
        output, error = process.communicate("größe.png\n", timeout=60)
        assert (process.returncode, error) == (0, "") and answers(output) == {"größe.png": expected(1)}

    def test_a_refusal_is_two_lines_on_standard_error_and_exit_code_2(self):
        process = self.start("classify", "nowhere.png")
        output, error = process.communicate(timeout=60)
        assert (process.returncode, output) == (
            2,
            "",
        ) and error == "error: nowhere.png: no such file or folder\n  -> check the path\n"

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [((), 2), (("--version",), 0), (("nonsense",), 2)],
        ids=["none", "version", "unknown"],
    )
    def test_click_keeps_its_exit_codes(self, arguments, code):
        process = self.start(*arguments)
        output, error = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in error and (output or error)

    def test_an_interrupt_gives_130(self, monkeypatch):
        def interrupted(folder):
            raise KeyboardInterrupt

        monkeypatch.setattr(model_files, "load", interrupted)
        monkeypatch.setattr(sys, "argv", ["darkroom", "classify", "a.png"])
        with pytest.raises(SystemExit) as ended:
            cli._run()
        assert ended.value.code == 130
