"""Run the trials of a search. A search that was killed continues with the trials that it had begun."""

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.core import metrics_log
from pipeline.core.metrics_log import MetricsLog
from pipeline.divergence import Diverged
from pipeline.environment import Environment
from pipeline.errors import BadInput, TrainingStopped
from pipeline.files import remove
from pipeline.launch.plan import plan_resources
from pipeline.launch.tracked import tracked
from pipeline.launch.training import Training
from pipeline.launch.worker import FINISHED
from pipeline.process import in_thread
from pipeline.search import generation
from pipeline.search import page as pages
from pipeline.search import study as studies
from pipeline.search.ranking import Ranking
from pipeline.search.search import Search
from pipeline.search.space import params_of
from pipeline.search.study import CURVES, FAILURE, OWN, SECONDS, SETTINGS, VALUES, Curve
from pipeline.tracking import delivery_queue, runs
from pipeline.tracking.rerun import leaves


@dataclass(frozen=True)
class Budget:
    """``trials``: in all, with those of earlier commands; ``seconds``: of this command. None: no limit."""

    trials: int | None = None
    seconds: float | None = None


def run(search: Search, budget: Budget, page: Path, parallel: int = 1) -> Ranking:
    """Run trials until the budget is used up, ``parallel`` of them at the same time on Ray.

    A trial that was running when an earlier command ended is continued first. At the end the ``page`` is
    written and logged. Raises ``DarkroomError`` if no trial has a result.
    """
    deadline = time.monotonic() + (budget.seconds or float("inf"))
    with ExitStack() as stack:
        environment = search.environment
        if parallel > 1:
            workers = environment.workers if environment.workers != "auto" else 1
            plan = stack.enter_context(plan_resources(replace(environment, workers=workers * parallel)))
            environment = replace(environment, workers=workers, threads=plan.threads)
        parent = stack.enter_context(runs.open_run(environment, search.description()))
        begun = [trial for trial in search.study.get_trials() if trial.state == TrialState.RUNNING]
        work = _Work(search, environment, budget.trials, deadline, begun, parent)
        threads = [in_thread(work.run) for _ in range(parallel - 1)]
        try:
            work.run()
        finally:
            wait(threads)  # after an error they end at their next checkpoint
        for thread in threads:
            thread.result()
        ranking = Ranking.of(search)
        pages.write(ranking, page)
        parent.log_artifact(page)
    return ranking


def curve_of(folder: Path, metric: str) -> Curve:
    """The values of ``metric`` by step of the training in ``folder``."""
    lines = metrics_log.read(folder / "metrics.jsonl")
    return [(line["step"], line["metrics"][metric]) for line in lines if metric in line["metrics"]]


def _whole_curve(training: Training, folder: Path, metric: str) -> Curve:
    """The curve of a finished training. With ``keep: best`` the value of that step is also the last one."""
    curve, settings = curve_of(folder, metric), training.settings
    if settings.keep == "best":
        choose = min if settings.monitor_mode == "min" else max
        best, _ = choose(curve_of(folder, settings.monitor), key=lambda pair: pair[1])
        curve += [pair for pair in curve if pair[0] == best]
    return curve


class _Judge:
    """A listener that ends a training which is worse than earlier trials, or when the search is over.

    What is pruned depends on the values by step alone, not on the speed of the machine: a training that ended
    before it could be stopped still counts as pruned.
    """

    def __init__(self, trial: Trial | None, metric: str, num_steps: int, is_over: Callable[[], bool]) -> None:
        self.trial, self.metric, self.num_steps, self.is_over = trial, metric, num_steps, is_over
        steps = [] if trial is None else trial.study.get_trials()[trial.number].intermediate_values
        self.reported = max(steps, default=0)
        self.pruned = bool(trial and 0 < self.reported < num_steps and trial.should_prune())

    def __call__(self, folder: Path) -> bool:
        self.follow(curve_of(folder, self.metric))
        return self.pruned or self.is_over()

    def follow(self, curve: Curve) -> None:
        """Report new values until the trial is pruned."""
        for step, value in curve if self.trial else ():
            if self.trial and step > self.reported and not self.pruned:
                self.trial.report(value, step)
                self.reported = step
                self.pruned = step < self.num_steps and self.trial.should_prune()


class _Work:
    """What the threads of one command share."""

    def __init__(
        self,
        search: Search,
        environment: Environment,
        num_trials: int | None,
        deadline: float,
        begun: list[FrozenTrial],
        parent: runs.Run,
    ) -> None:
        self.search, self.environment, self.num_trials = search, environment, num_trials
        self.deadline, self.begun, self.parent = deadline, begun, parent
        self.folder = studies.path_of(environment, search.name).with_name(search.study.study_name)
        for left in self.folder.glob(".run.json.*"):  # by a search that was killed; this one holds the lock
            remove(left)
        self.log = MetricsLog(self.folder / "metrics.jsonl")
        self.failed = False

    def run(self) -> None:
        """Run trials until there is nothing to do."""
        try:
            while (trial := self._next()) is not None:
                if trial.state == TrialState.RUNNING:
                    self._run(trial)
                self._report(trial.number)
        except TrainingStopped:  # the search is over; the next command continues it
            return
        except BaseException:
            self.failed = True  # it ends the other threads
            raise

    def _is_over(self) -> bool:
        return self.failed or time.monotonic() > self.deadline

    def _next(self) -> FrozenTrial | None:
        with self.search.lock:
            if self._is_over():
                return None
            if self.begun:
                return self.begun.pop(0)
            count = len(studies.first_trials(self.search.study))
            return self.search.next_trial() if self.num_trials is None or count < self.num_trials else None

    def _run(self, frozen: FrozenTrial) -> None:
        search, began = self.search, time.monotonic()
        trial = Trial(search.study, frozen._trial_id)
        settings = frozen.user_attrs[SETTINGS]
        project = leaves(params_of(search.search, search.params, settings))
        values, curves = list[float](), dict[str, Curve]()
        ended, failure = TrialState.COMPLETE, ""
        try:
            for number, training in enumerate(search.trainings(settings)):
                judged = trial if number == 0 else None  # the first seed decides
                judge = _Judge(judged, search.search.metric, training.settings.num_steps, self._is_over)
                curve = self._curve(training, judge, trial, project)
                if judge.pruned:
                    ended = TrialState.PRUNED
                    break
                curves[training.fingerprint] = curve
                values.append(search.value(training, curve))
        except Diverged as error:
            ended, failure = TrialState.PRUNED, error.what
        except BadInput as error:
            ended, failure = TrialState.FAIL, f"{error.where}: {error.what}"
        with search.lock:
            search.known |= curves
            trial.set_user_attr(CURVES, curves)
            trial.set_user_attr(VALUES, values)
            trial.set_user_attr(SECONDS, frozen.user_attrs.get(SECONDS, 0.0) + time.monotonic() - began)
            mean = sum(values) / len(values) if ended == TrialState.COMPLETE else None
            search.tell(frozen, ended, mean, failure)

    def _curve(self, training: Training, judge: _Judge, trial: Trial, project: Mapping[str, Any]) -> Curve:
        """The curve of a training, which is run unless it is known. A pruned one is shorter."""
        search, folder = self.search, training.folder(self.environment.storage)
        if (known := search.known.get(training.fingerprint)) is not None:
            judge.follow(known)
            return known
        if not (folder / FINISHED).exists():
            trial.set_user_attr(OWN, [*trial.user_attrs.get(OWN, []), folder.name])
        described = {
            "project": project,
            "parent": (f"search-{search.name}", search.id),
            "tags": {"search": search.study.study_name, "trial": trial.number},
        }
        try:
            with tracked(training, self.environment, listeners=(judge,), described=described) as (outcome, _):
                if judge.metric == generation.METRIC:
                    measured = generation.distance(outcome.folder / "model", search.data.validation)
                    curve = [(training.settings.num_steps, measured)]
                else:
                    curve = _whole_curve(training, outcome.folder, judge.metric)
        except TrainingStopped:
            if not judge.pruned:
                raise
            return curve_of(folder, judge.metric)
        judge.follow(curve)  # a training that was already finished has not called it
        return curve

    def _report(self, number: int) -> None:
        """Print the result of a trial, log it to MLflow, and remove what is no longer needed."""
        search = self.search
        with search.lock:
            trials = studies.first_trials(search.study)
            trial = search.study.get_trials(deepcopy=False)[number]
            complete = [each for each in trials if each.state == TrialState.COMPLETE]
            text = trial.user_attrs.get(FAILURE) or trial.state.name.lower()
            if trial.state == TrialState.COMPLETE:
                best, count = search.study.best_trial, len(complete)
                text = (
                    f"{search.search.metric} {trial.value:.5g}, best {best.value:.5g} of trial {best.number}"
                )
                self.log.add(count, {"search/value": trial.values[0], "search/best": best.values[0]})
            self.parent.follow(self.folder)
            chosen = ", ".join(f"{key}={value}" for key, value in trial.user_attrs[SETTINGS].items())
            click.echo(f"trial {number} ({chosen}): {text}")
            self._remove_checkpoints(trials)

    def _remove_checkpoints(self, trials: list[FrozenTrial]) -> None:
        """Remove the folders of the trainings of ended trials, except those of the best."""
        storage = self.environment.storage / "trainings"
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        kept = {folder.name for folder in delivery_queue.undelivered_folders(self.environment)}
        if complete:
            kept |= set(self.search.study.best_trial.user_attrs.get(OWN, []))
        for trial in trials:
            if trial.state.is_finished():
                for name in set(trial.user_attrs.get(OWN, [])) - kept:
                    shutil.rmtree(storage / name, ignore_errors=True)
