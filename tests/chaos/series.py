"""A series of kills. Each case starts from the project as it was before a stage.

A case is killed once or several times. Then the same command has to end with 0, without a repair by hand, and
with the result of a run that nothing disturbed.
"""

import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import commands, forks, small_project
from tests.chaos.points import Points

LIMIT_SECONDS, MAX_KILLS = 600.0, 4


@dataclass
class Measured:
    """A run of one stage that nothing disturbed."""

    seconds: float
    points: dict[str, int]  # how often each change of a file occurs
    result: dict[str, Any]


@dataclass
class Case:
    """What one case found. ``faults`` is empty if nothing was lost."""

    stage: str  # or search, or retrain
    number: int
    kind: str  # clock or point
    moment: str = ""
    kills: int = 0
    damaged: list[str] = field(default_factory=list)  # DVC's files, by the kill
    stuck: list[str] = field(default_factory=list)  # the error of the same command
    redone: int = 0  # steps of a training
    faults: list[str] = field(default_factory=list)


class Series:
    """Cases in ``folder``, for `darkroom` or, with ``plain``, for `dvc repro`."""

    def __init__(self, folder: Path, seed: int, plain: bool) -> None:
        self.folder, self.seed, self.plain = folder, seed, plain
        self.project, self.log, self.output = (folder / name for name in ("project", "points", "output"))
        self.measured: dict[str, Measured] = {}

    def measure(self, stages: tuple[str, ...]) -> None:
        """Run the stages one after the other, and keep the project as it was before each of them.

        A search and a retraining have projects of their own.
        """
        for name in commands.OTHERS:
            if name in stages:
                commands.OTHERS[name].create(self.project, self._run_well)
                self._measure(name)
                shutil.rmtree(self.project)
        stages = tuple(name for name in stages if name not in commands.OTHERS)
        if stages:
            small_project.create(self.project)
        for stage in small_project.STAGES[: small_project.STAGES.index(stages[-1]) + 1] if stages else ():
            if stage in stages:
                self._measure(stage)
            else:
                self._run_well("repro", stage)

    def _measure(self, name: str) -> None:
        shutil.copytree(self.project, self._before(name), symlinks=True)
        began = os.times().elapsed
        self._run_well(*commands.find(name).arguments, points=Points(self.project, self.log))
        seconds, points = os.times().elapsed - began, Counter(self.log.read_text().splitlines())
        self.measured[name] = Measured(seconds, points, commands.find(name).result(self.project))

    def _run_well(self, *arguments: str, points: Points | None = None) -> None:
        assert self._run(arguments, LIMIT_SECONDS, points) == 0, self.output.read_text()

    def case(self, stage: str, number: int) -> Case:
        """Kill ``stage``: the even numbers at a random time, the odd ones at a change of a file."""
        measured, choice = self.measured[stage], random.Random(f"{self.seed} {stage} {number}")
        arguments = commands.find(stage).arguments
        case = Case(stage, number, "point" if number % 2 else "clock")
        seconds, points = LIMIT_SECONDS, None
        if case.kind == "clock":
            seconds = choice.uniform(0, measured.seconds)
            case.moment = f"after {seconds:.2f} s"
        else:
            names = sorted(measured.points)
            random.Random(f"{self.seed} {stage}").shuffle(names)
            name = names[number // 2 % len(names)]
            which = choice.randrange(measured.points[name])
            points, case.moment = Points(self.project, self.log, name, which), f"{name}, {which + 1}."
        shutil.rmtree(self.project, ignore_errors=True)
        shutil.copytree(self._before(stage), self.project, symlinks=True)
        code = self._run(arguments, seconds, points)
        self._inspect_after_kill(case, code)
        while code is None and case.kills < MAX_KILLS and choice.random() < 0.6:  # while it recovers
            code = self._run(arguments, choice.uniform(0, measured.seconds))
            self._inspect_after_kill(case, code)
        if case.kills:
            self._finish(case)
        return case

    def _inspect_after_kill(self, case: Case, code: int | None) -> None:
        if code is not None:  # it ended before it was killed
            if code:
                self._note_stuck(case)
            return
        command = commands.find(case.stage)
        case.kills += 1
        case.redone = max(case.redone, command.steps_again(self.project))
        case.damaged += small_project.damaged_dvc_files(self.project)
        case.faults += [f"lost: {name}" for name in command.lost(self._before(case.stage), self.project)]

    def _note_stuck(self, case: Case) -> None:
        lines = [line for line in self.output.read_text().splitlines() if line.strip()]
        case.stuck.append(next((line for line in lines if "ERROR" in line or "error:" in line), lines[-1]))
        if "Traceback" in self.output.read_text():
            case.faults.append("traceback")

    def _finish(self, case: Case) -> None:
        """Repeat the same command, and compare with the run that nothing disturbed."""
        command = commands.find(case.stage)
        code = self._run(command.arguments, LIMIT_SECONDS)
        if code:
            self._note_stuck(case)
            if self.plain:  # what has to be done by hand
                code = self._run(command.arguments, LIMIT_SECONDS, plain=False)
        if code is None or code:
            case.faults.append(f"ended with {code}: {self.output.read_text()[-2000:]}")
            return
        expected, found = self.measured[case.stage].result, command.result(self.project)
        others = [part for part in expected["bits"] if expected["bits"][part] != found["bits"][part]]
        case.faults += [f"other bits: {part}" for part in others]
        if expected["mlflow"] != found["mlflow"]:
            case.faults.append(f"MLflow has {found['mlflow']}, not {expected['mlflow']}")
        if left := sorted({*found["files"]} - {*expected["files"]}):
            case.faults.append(f"left: {', '.join(left)}")
        if missing := sorted({*expected["files"]} - {*found["files"]}):
            case.faults.append(f"missing: {', '.join(missing)}")
        if case.redone > command.interval:
            case.faults.append(f"{case.redone} steps done again")
        case.faults += small_project.damaged_outputs(self.project)

    def _before(self, stage: str) -> Path:
        return self.folder / f"before-{stage}"

    def _run(
        self,
        arguments: tuple[str, ...],
        seconds: float,
        points: Points | None = None,
        plain: bool | None = None,
    ) -> int | None:
        """Run `darkroom` with ``arguments``, and kill it after ``seconds`` or at its point.

        Its exit code; None if it was killed.
        """
        for file in (self.log, self.output):
            file.write_text("")

        def command() -> None:
            if points:
                points.install()
            if self.plain if plain is None else plain:
                forks.run_dvc(*arguments)
            else:
                forks.run_darkroom(*arguments)

        keep = [points.file] if points else []
        pid = forks.start(command, folder=self.project, output=self.output, keep=keep)
        code = forks.wait(pid, self.log, seconds)
        if forks.kill_all() and code is not None:
            raise AssertionError(f"{' '.join(arguments)} has left processes")
        if points:
            os.close(points.file)
        return code
