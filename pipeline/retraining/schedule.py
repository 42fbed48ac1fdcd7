"""The schedule of ``darkroom retrain``: a block in the user's crontab, or systemd units of the user."""

import glob
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from datetime import time
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline import environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.process import output

UNITS = SERVICE, TIMER, _ = "darkroom-retrain.service", "darkroom-retrain.timer", "darkroom-alert@.service"
TEMPLATES = Environment(
    loader=PackageLoader("pipeline.retraining", "schedules"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
SCRIPT = Path(__file__).with_name("schedules") / "retrain.sh"


@dataclass(frozen=True)
class Schedule:
    """Every day at ``at`` UTC in the project ``root``, with the ``darkroom`` in the folder ``programs``."""

    root: Path
    at: time
    programs: Path = Path(sys.executable).parent

    def __post_init__(self) -> None:
        if not (self.root / "dvc.yaml").is_file():
            remedy = "change to the project's root first"
            raise BadInput("this is no project: there is no dvc.yaml", where=str(self.root), remedy=remedy)
        for path in map(str, (self.root, self.programs, SCRIPT)):
            if not path.isprintable() or path != path.strip() or set(path) & set('\\":'):
                what = "cron or systemd cannot use a folder with this name"
                raise BadInput(what, where=ascii(path), remedy="rename it")

    def units(self) -> dict[Path, str]:
        """The text of each systemd unit, by its path."""
        file = glob.escape(str(self.root / ".darkroom/schedule.env"))  # systemd expands patterns in it
        paths = {"project": str(self.root), "programs": str(self.programs), "environment_file": file}
        values = {"at": self.at, **{name: path.replace("%", "%%") for name, path in paths.items()}}
        return {
            environment.user_units() / name: TEMPLATES.get_template(name).render(values) for name in UNITS
        }

    def merged(self, crontab: str) -> str:
        """``crontab`` with this project's block at its end; every other line is unchanged."""
        others = split(crontab, self.root)[0]
        others += "\n" if others and not others.endswith("\n") else ""
        command = shlex.join(["/bin/sh", str(SCRIPT), str(self.root), str(self.programs)])
        command = command.replace("%", r"\%")  # cron reads % as a line break
        zone = ['CRON_TZ=""', *re.findall(r"(?m)^[ \t]*CRON_TZ[ \t]*=.*$", others)][-1]
        template = TEMPLATES.get_template("darkroom.cron")
        return others + template.render(project=self.root, at=self.at, command=command, time_zone_before=zone)


def split(crontab: str, root: Path) -> tuple[str, str]:
    """``crontab`` without this project's block, and the block. Raises ``BadInput`` if a mark is missing."""
    lines = crontab.splitlines(keepends=True)
    marks = [f"# darkroom retrain in {root}: begin\n", f"# darkroom retrain in {root}: end\n"]
    found = [number for number, line in enumerate(lines) if line in marks]
    if not found:
        return crontab, ""
    if [lines[number] for number in found] != marks:
        what = "a mark of this project's block is missing, or the block is there twice"
        raise BadInput(what, where="crontab", remedy="run crontab -e and delete the rest of this block")
    first, last = found[0], found[1] + 1
    return "".join(lines[:first] + lines[last:]), "".join(lines[first:last])


def read_crontab() -> str:
    """The user's crontab; empty if there is none."""
    try:
        return run("crontab", "-l")
    except DarkroomError as error:
        if re.search("no crontab|no such file", str(error), re.IGNORECASE):
            return ""
        raise


def unit_files(root: Path) -> list[Path]:
    """The existing files of ``UNITS``. Raises ``BadInput`` if they belong to another project."""
    service = environment.user_units() / SERVICE
    text = service.read_text(encoding="utf-8") if service.exists() else ""
    projects = re.findall("(?m)^WorkingDirectory=(.*)$", text)
    if projects not in ([], [str(root).replace("%", "%%")]):
        what = f"the systemd units belong to another project, {projects[0]}"
        remedy = "run `darkroom schedule remove --systemd` there, or use --cron for one of the two projects"
        raise BadInput(what, where=str(service), remedy=remedy)
    return [path for name in UNITS if (path := service.with_name(name)).exists()]


def systemctl(*commands: str) -> str:
    """Run ``systemctl --user`` commands if the user's systemd can be reached.

    It cannot in a container or under su. Returns lines to print: the commands that were run, or that the user
    has to run.
    """
    state, doing = "done", commands
    try:
        run("systemctl", "--user", "show-environment")
    except DarkroomError:
        state, doing = "to do by hand", ()
    for command in doing:
        run("systemctl", "--user", *command.split())
    return "".join(f"{state}: systemctl --user {command}\n" for command in commands)


def run(*command: str, stdin: str = "") -> str:
    """The output of a command. Raises ``DarkroomError`` if it fails, ``BadInput`` if it is not installed."""
    if not shutil.which(command[0]):
        remedy = "install cron or cronie, or use --systemd" if command[0] == "crontab" else "use --cron"
        raise BadInput("this program is not installed", where=command[0], remedy=remedy)
    return output(*command, name=shlex.join(command), stdin=stdin, LC_ALL="C")
