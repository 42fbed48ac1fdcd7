"""The schedule of ``darkroom retrain``: a marked block in the user's crontab, or the user's own systemd
units."""

import glob
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import time
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline import environment
from pipeline.errors import BadInput, DarkroomError

UNITS = SERVICE, TIMER, _ = "darkroom-retrain.service", "darkroom-retrain.timer", "darkroom-alert@.service"
TEMPLATES = Environment(
    loader=PackageLoader("pipeline.retraining", "schedules"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
SCRIPT = Path(__file__).with_name("schedules") / "retrain.sh"


@dataclass(frozen=True)
class Schedule:
    """Every day at ``at`` UTC in the project ``root``, by the ``darkroom`` in the folder ``programs``."""

    root: Path
    at: time
    programs: Path = Path(sys.executable).parent

    def __post_init__(self) -> None:
        if not (self.root / "dvc.yaml").is_file():
            raise BadInput(
                "this is no project: there is no dvc.yaml",
                where=str(self.root),
                remedy="change to the project's root first",
            )
        for path in map(str, (self.root, self.programs, SCRIPT)):
            if not path.isprintable() or path != path.strip() or set(path) & set('\\":'):
                raise BadInput(
                    "cron or systemd cannot use a folder of this name", where=ascii(path), remedy="rename it"
                )

    def units(self) -> dict[Path, str]:
        """The text of each systemd unit, by its path."""
        file = glob.escape(str(self.root / ".darkroom/schedule.env"))  # systemd takes it as a pattern
        paths = {"project": str(self.root), "programs": str(self.programs), "environment_file": file}
        doubled = {name: path.replace("%", "%%") for name, path in paths.items()}
        return {
            environment.user_units() / name: TEMPLATES.get_template(name).render(doubled, at=self.at)
            for name in UNITS
        }

    def merged(self, crontab: str) -> str:
        """``crontab`` with this project's block at its end; every other line is unchanged."""
        others = split(crontab, self.root)[0]
        others += "\n" if others and not others.endswith("\n") else ""
        command = shlex.join(["/bin/sh", str(SCRIPT), str(self.root), str(self.programs)]).replace(
            "%", r"\%"
        )  # else a line break
        zone = ['CRON_TZ=""', *re.findall(r"(?m)^[ \t]*CRON_TZ[ \t]*=.*$", others)][-1]
        template = TEMPLATES.get_template("darkroom.cron")
        return others + template.render(project=self.root, at=self.at, command=command, time_zone_before=zone)


def split(crontab: str, root: Path) -> tuple[str, str]:
    """``crontab`` without the block of this project, and the block. Raises ``BadInput`` if a mark of it is
    missing."""
    lines = crontab.splitlines(keepends=True)
    marks = [f"# darkroom retrain in {root}: begin\n", f"# darkroom retrain in {root}: end\n"]
    found = [number for number, line in enumerate(lines) if line in marks]
    if not found:
        return crontab, ""
    if [lines[number] for number in found] != marks:
        remedy = "run crontab -e and delete the rest of this block"
        raise BadInput(
            "a mark of this project's block is missing, or the block is there twice",
            where="crontab",
            remedy=remedy,
        )
    first, last = found[0], found[1] + 1
    return "".join(lines[:first] + lines[last:]), "".join(lines[first:last])


def read_crontab() -> str:
    """The user's crontab; empty if there is none."""
    return tell("crontab", "-l", forgiven="no crontab|no such file")


def unit_files(root: Path) -> list[Path]:
    """The existing files of ``UNITS``. Raises ``BadInput`` if they belong to another project."""
    folder, own = environment.user_units(), str(root).replace("%", "%%")
    service = folder / SERVICE
    there = (
        re.findall("(?m)^WorkingDirectory=(.*)$", service.read_text(encoding="utf-8"))
        if service.exists()
        else []
    )
    if there not in ([], [own]):
        remedy = "run `darkroom schedule remove --systemd` there, or use --cron for one of the two projects"
        raise BadInput(
            f"the systemd units belong to another project, {there[0]}", where=str(service), remedy=remedy
        )
    return [folder / name for name in UNITS if (folder / name).exists()]


def systemctl(*commands: str) -> str:
    """Run ``systemctl --user`` commands. Returns the lines to print: what was done, or what to do by hand if
    the user's systemd cannot be reached, as in a container or under su."""
    reachable = bool(tell("systemctl", "--user", "show-environment", forgiven=""))
    for command in commands if reachable else ():
        tell("systemctl", "--user", *command.split())
    return "".join(
        f"{'done' if reachable else 'to do by hand'}: systemctl --user {command}\n" for command in commands
    )


def tell(*command: str, given: str = "", forgiven: str = "(?!)") -> str:
    """What a program answers to ``given``; empty where it fails with an error that matches ``forgiven``.
    Others are raised."""
    whole, variables = (
        given.encode(errors="surrogateescape"),
        environment.for_child({"LC_ALL": "C"}),
    )  # a crontab may hold any bytes
    try:
        done = subprocess.run(
            command, input=whole, env=variables, capture_output=True, timeout=60, check=False
        )
    except FileNotFoundError:
        remedy = "install cron or cronie, or use --systemd" if command[0] == "crontab" else "use --cron"
        raise BadInput("this program is not installed", where=command[0], remedy=remedy) from None
    except subprocess.TimeoutExpired as error:
        raise DarkroomError(
            "no answer within a minute", where=shlex.join(command), remedy="try again"
        ) from error
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode and not re.search(forgiven, said, re.IGNORECASE):
        raise DarkroomError(
            said or f"exit code {done.returncode}",
            where=shlex.join(command),
            remedy="correct this and repeat the command",
        )
    return "" if done.returncode else done.stdout.decode(errors="surrogateescape")
