"""Random sequences of what happens to a project, checked against a model: a dictionary of hashes.

``python -m tests.chaos --kills 0 --sequences 50 --seed 1``. The training is short, and real processes do each
action. What the project holds must be what the model says, or `darkroom verify` has to name it.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from pipeline.files import hashes, sha256
from tests.chaos import forks, small_project
from tests.chaos.flips import KINDS, environment_of, flip
from tests.chaos.points import Moment

STAGES = ("download", "preprocess", "train-cnn")
OUTPUTS = ("data/raw", "data/processed", "models")  # whose bits depend on params alone
SHORT = {"num_steps": 6, "log_every": 2, "validate_every": 6, "sample_every": 6, "checkpoint_every": 2}
DROPOUT, MOST_CHANGES, SECONDS, TOGETHER = (0.2, 0.1, 0.3), 400, 300.0, 10
FLIPPED = sorted(KINDS.keys() - {"mlflow.db", "metrics", "plots", "reports"})


class Sequence(RuleBasedStateMachine):
    """A project that is changed, killed, damaged, repaired, retrained and rolled back."""

    folder: ClassVar[Path]
    counts: ClassVar[Counter[str]] = Counter()  # of the actions that were done
    bits: ClassVar[dict[float, dict[str, str]]] = {}  # the model: SHA-256 of the outputs, by the params

    def __init__(self) -> None:
        super().__init__()
        self.project = self.folder / "project"
        shutil.rmtree(self.project, ignore_errors=True)
        shutil.copytree(self.folder / "first", self.project, symlinks=True)
        self.dropout, self.version = DROPOUT[0], 0
        self.damaged: dict[Path, str] = {}  # the SHA-256 of files with a flipped bit
        self.whole: dict[Path, str] = {}  # that of the same files before
        self.champions = ["1"]
        self.pushed, self.pushed_dropout = _text(self.project / "dvc.lock"), DROPOUT[0]

    @rule(dropout=st.sampled_from(DROPOUT))
    def change_params(self, dropout: float) -> None:
        self._count("change_params")
        self.dropout = dropout
        _set_dropout(self.project, dropout)

    @rule()
    def upgrade_code(self) -> None:
        """To code that makes the same bits: the training runs again, or its result is used."""
        self._count("upgrade_code")
        self.version += 1
        (self.project / "version.txt").write_text(str(self.version))

    @rule()
    def repro(self) -> None:
        self._count("repro")
        code, text = self._run(lambda: forks.run_darkroom("repro"))
        assert "Traceback" not in text, text
        if code:  # only damage may stop it, and is named
            assert self._still_damaged() and self._unknown(self._problems()) == [], text
        else:
            self._check_outputs()

    @rule(number=st.integers(1, MOST_CHANGES))
    def kill(self, number: int) -> None:
        self._count("kill")
        self._run(lambda: forks.run_darkroom("repro"), Moment(self.project, self.folder / "log", number))

    @rule(number=st.integers(1, MOST_CHANGES))
    def fill_disk(self, number: int) -> None:
        self._count("fill_disk")
        moment = Moment(self.project, self.folder / "log", number, full=True)
        _, text = self._run(lambda: forks.run_darkroom("repro"), moment)
        assert "Traceback" not in text, text

    @rule(kind=st.sampled_from(FLIPPED), which=st.integers(0, 10**9), bit=st.integers(0, 10**9))
    def flip_bit(self, kind: str, which: int, bit: int) -> None:
        places = sorted(self.project.glob(KINDS[kind]))
        files = [path for path in places if path.is_file() and path.stat().st_size]
        if files:
            self._count(f"flip {kind}")
            file = files[which % len(files)]
            if (before := sha256(file)) != self.damaged.get(file):
                self.whole[file] = before
            flip(file, bit % (8 * file.stat().st_size))
            self.damaged[file] = sha256(file)
            if self.damaged[file] == self.whole[file]:  # the same bit twice
                del self.damaged[file]
            problems = self._problems()
            assert self._unknown(problems) == [], (file, problems)

    @precondition(lambda self: self.damaged)
    @rule()
    def repair(self) -> None:
        self._count("repair")
        self._repair()

    @rule()
    def gc(self) -> None:
        self._count("gc")
        code, text = self._run(lambda: forks.run_dvc("gc", "--workspace", "--force"))
        assert code == 0 or self._still_damaged(), text

    @precondition(lambda self: not self.damaged)
    @rule()
    def push(self) -> None:
        self._count("push")
        self.repro()
        code, text = self._run(lambda: forks.run_dvc("push"))
        assert code == 0, text
        self.pushed, self.pushed_dropout = _text(self.project / "dvc.lock"), self.dropout

    @precondition(lambda self: self.pushed_dropout == self.dropout)
    @precondition(lambda self: self.pushed == _text(self.project / "dvc.lock"))
    @rule()
    def lose_and_pull(self) -> None:
        self._count("lose_and_pull")
        for name in (".dvc/cache/files", *OUTPUTS):
            shutil.rmtree(self.project / name, ignore_errors=True)
        code, text = self._run(lambda: forks.run_dvc("pull", "--force"))
        assert code == 0, text
        self._check_outputs()

    @precondition(lambda self: not self.damaged)
    @rule(dropout=st.sampled_from(DROPOUT), number=st.none() | st.integers(1, 2 * MOST_CHANGES))
    def retrain(self, dropout: float, number: int | None) -> None:
        """In its worktree, from a commit of all there is; published in place, promoted. Or it is killed."""
        self._count("retrain, killed" if number else "retrain")
        self.repro()
        self.change_params(dropout)
        _git(self.project, "add", "-A")
        _git(self.project, "commit", "-q", "--allow-empty", "-m", "retrain")
        moment = Moment(self.project, self.folder / "log", number) if number else None
        code, text = self._run(lambda: _retrain(self.project), moment)
        champion = _champion(self.project)
        if champion != self.champions[-1]:
            self.champions.append(champion)
        assert code in (0, None), text
        if code == 0:
            self._check_outputs()

    @precondition(lambda self: len(self.champions) > 1)
    @rule()
    def rollback(self) -> None:
        self._count("rollback")
        code, text = self._run(lambda: forks.run_darkroom("rollback", "cnn", "--reason", "a test"))
        assert code == 0, text
        self.champions.pop()
        assert _champion(self.project) == self.champions[-1]

    def teardown(self) -> None:
        if not (self.project / "dvc.yaml").is_file():
            return
        self._repair()
        assert _champion(self.project) == self.champions[-1]

    def _repair(self) -> None:
        """What cannot be restored is still named; the rest is as if nothing had happened."""
        if self.damaged:
            code, text = self._run(lambda: forks.run_darkroom("verify", "--repair"))
            assert code in (0, 1) and "Traceback" not in text, text
        code, text = self._run(lambda: forks.run_darkroom("repro"))
        assert code == 0, text
        assert self._held() == self._expected(), text
        assert self._unknown(self._problems()) == []
        self.damaged = {file: self.damaged[file] for file in self._still_damaged()}

    def _check_outputs(self) -> None:
        """The outputs have the bits of the model; or damage is the reason, and is named."""
        held, expected = self._held(), self._expected()
        if held != expected:
            wrong = {name for name in held | expected if held.get(name) != expected.get(name)}
            named = " ".join(self._problems())
            assert self.damaged and all(name in named for name in wrong), wrong
        assert _champion(self.project) == self.champions[-1]

    def _expected(self) -> dict[str, str]:
        """The bits for the params: those of the first run that made them, while nothing was damaged.

        Until there is such a run, they are what the project holds: there is nothing to compare with.
        """
        if self.dropout not in self.bits and not self.damaged:
            self.bits[self.dropout] = self._held()
        return self.bits.get(self.dropout, self._held())

    def _held(self) -> dict[str, str]:
        found = {name: hashes(self.project / name) for name in OUTPUTS}
        return {f"{out}/{name}": digest for out, files in found.items() for name, digest in files.items()}

    def _still_damaged(self) -> list[Path]:
        return [file for file, digest in self.damaged.items() if file.is_file() and sha256(file) == digest]

    def _problems(self) -> list[str]:
        """What `darkroom verify` names."""
        answer = self.folder / "answer"
        answer.unlink(missing_ok=True)
        code, text = self._run(lambda: _verify(self.project, answer))
        assert code == 0, text
        return json.loads(answer.read_text())

    def _unknown(self, problems: list[str]) -> list[str]:
        """The files that are still damaged, but not named."""
        names = [str(file.relative_to(self.project)) for file in self._still_damaged()]
        return [name for name in names if not any(name in problem for problem in problems)]

    def _count(self, action: str) -> None:
        self.counts[action] += 1

    def _run(self, function: Callable[[], Any], moment: Moment | None = None) -> tuple[int | None, str]:
        """Call ``function`` in a process of its own; its exit code, or None if it was killed, and output."""
        output, log = self.folder / "output", self.folder / "log"
        output.write_text("")
        if moment is None:
            log.write_text("")

        def command() -> None:
            if moment:
                moment.install()
            function()

        pid = forks.start(command, self.project, output, [moment.file] if moment else [])
        code = forks.wait(pid, log, SECONDS)
        forks.kill_all()
        if moment:
            os.close(moment.file)
        assert code is not None or moment, "it takes too long"
        return code, output.read_text()


def _set_dropout(project: Path, dropout: float) -> None:
    params = json.loads((project / "params.yaml").read_text())
    params["cnn"]["model"]["dropout"] = dropout
    (project / "params.yaml").write_text(json.dumps(params))


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _git(project: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=project, check=True, timeout=60, capture_output=True)


def _verify(project: Path, answer: Path) -> None:
    from pipeline.tracking.trace import verify

    answer.write_text(json.dumps([str(problem) for problem in verify(environment_of(project))[0]]))


def _retrain(project: Path) -> None:
    """Train in the worktree of retrainings, publish in place, and promote what is new."""
    from pipeline.retraining import champion_challenger
    from pipeline.retraining.workspace import Workspace
    from pipeline.tracking import connection, promotion

    environment = environment_of(project)
    workspace = Workspace(environment)
    workspace.prepare(workspace.base(), "")
    workspace.repro(SECONDS, "retraining-1")
    commit = workspace.commit("retrained")
    client, _ = connection.connect(environment)
    for version in champion_challenger.challengers(client, workspace.tree).values():
        if str(version.version) != str(promotion.champion(client, version.name).version):
            promotion.promote(environment, version, "a test", [])
    workspace.publish(commit, True)


def _champion(project: Path) -> str:
    import sqlite3

    query = "select version from registered_model_aliases where alias = 'champion'"
    with sqlite3.connect(f"file:{project}/mlflow.db?mode=ro", uri=True) as database:
        return str(database.execute(query).fetchone()[0])


def run(number: int, actions: int, first: int, deadline: float) -> tuple[int, Counter[str]]:
    """Run sequences until there are ``number`` or the time is over: their number, that of each action.

    ``first``: the seed of the first ``TOGETHER`` sequences; the next ones have the next seed.
    """
    Sequence.folder = Path(tempfile.mkdtemp(prefix="states-")).resolve()
    _make_first(Sequence.folder)
    done = 0
    while done < number and time.monotonic() < deadline:
        at_once = min(TOGETHER, number - done)
        print(f"{at_once} sequences, seed {first + done // TOGETHER}", flush=True)
        run_state_machine_as_test(
            seed(first + done // TOGETHER)(Sequence),
            settings=settings(
                max_examples=at_once,
                stateful_step_count=actions,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
        done += at_once
    shutil.rmtree(Sequence.folder)
    return done, Sequence.counts


def _make_first(folder: Path) -> None:
    """The project before each sequence, ``folder / "first"``: made, pushed and committed."""
    project, first = folder / "project", folder / "first"
    small_project.create(project, STAGES, SHORT)
    plan = json.loads((project / "dvc.yaml").read_text())
    plan["stages"]["train-cnn"]["deps"].append("version.txt")
    (project / "dvc.yaml").write_text(json.dumps(plan))
    (project / "version.txt").write_text("0")
    project.rename(first)
    sequence = Sequence()
    for function in (lambda: forks.run_darkroom("repro"), lambda: forks.run_dvc("push")):
        code, text = sequence._run(function)
        assert code == 0, text
    sequence._check_outputs()
    _git(project, "add", "-A")
    _git(project, "commit", "-qm", "made")
    shutil.rmtree(first)
    shutil.copytree(project, first, symlinks=True)
