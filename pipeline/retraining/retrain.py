"""One retraining, from new pictures to a promotion or a refusal.

Each step can be repeated, so a killed retraining continues. The project does not change before the decision
is on disk; data and commit are stored before an alias moves.
"""

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import model_files
from pipeline.core.fields import PROCESSED
from pipeline.data.folders import OWN
from pipeline.data.settings import DataSettings
from pipeline.environment import Environment
from pipeline.errors import EXIT_BUSY, BadInput, DarkroomError
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import digest_of, digest_of_tree
from pipeline.params import PARAMS, read_file, read_section
from pipeline.retraining import champion_challenger, drift, incoming, notifications, report
from pipeline.retraining.champion_challenger import Champion
from pipeline.retraining.gates import GateSettings
from pipeline.retraining.incoming import Arrival, Picture
from pipeline.retraining.journal import Journal, RetrainingRun, now
from pipeline.retraining.quality import Quality, check
from pipeline.retraining.settings import RetrainSettings
from pipeline.retraining.workspace import Workspace
from pipeline.settings_check import require_valid_params
from pipeline.tracking import connection, promotion, registry, run_notes

if TYPE_CHECKING:
    from pipeline.tracking.registry import MlflowClient


def retrain(environment: Environment, dry_run: bool = False, readmit: str = "") -> None:
    """Run one retraining, if there is something to do.

    ``dry_run``: only print what would be done. ``readmit``: check quarantined pictures again whose reason or
    hash contains this text. Raises ``DarkroomError`` if a step fails, with exit code 75 if another retraining
    runs. The next call continues.
    """
    journal = Journal(environment.root)
    with journal.lock():
        quarantined = journal.quarantined()
        if readmit:
            before, quarantined = len(quarantined), journal.readmit(readmit, dry_run)
            if count := before - len(quarantined):
                again = "would be" if dry_run else "will be"
                print(f"{count:,} quarantined pictures {again} checked again")
            else:
                print(f"no quarantined picture has a reason or hash that contains '{readmit}'")
        try:
            _Retraining(environment, journal, quarantined, dry_run).run()
        except Exception as error:
            if not dry_run and getattr(error, "exit_code", None) != EXIT_BUSY:
                text = str(error) or type(error).__name__
                notifications.send("failed", text, {"project": environment.root.name})
            raise
        finally:
            shutil.rmtree(journal.downloads, ignore_errors=True)


@dataclass
class _Retraining:
    environment: Environment
    journal: Journal
    quarantined: dict[str, str]  # reasons by key
    dry_run: bool

    def __post_init__(self) -> None:
        require_valid_params()
        self.settings = read_section("retrain", RetrainSettings)
        self.gates = read_section("gates", GateSettings)
        self.deadline = time.monotonic() + 3600 * self.settings.deadline_hours
        self.workspace = Workspace(self.environment)
        self.tree, self.downloads = self.workspace.tree, self.journal.downloads

    @cached_property
    def client(self) -> "MlflowClient":
        return connection.connect(self.environment)[0]

    def run(self) -> None:
        run = self.journal.current()
        started = f"the retraining of {run.began} UTC" if run else ""
        if run and self.dry_run:
            print(f"would continue {started}: {'; '.join(run.reasons)}")
            return
        # Whether there is a decision and everything that is needed to carry it out.
        has_result = run and (run.commit or (run.decision and self.workspace.holds(run.base)))
        decided = run and (run.decision == "refused" or has_result)
        # base() may clear the worktree, which a decided retraining still needs.
        base = run.base if run and decided else self.workspace.base(keep=not self.dry_run)
        if run and not decided and (run.decision or run.base != base or not self.workspace.holds(base)):
            why = "the project has a new commit, or the worktree of that retraining is lost"
            print(f"starting again instead of continuing {started}: {why}")
            self.journal.abandon()
            run = None
        if run:
            print(f"continuing {started}: {'; '.join(run.reasons)}")
        run = run or self._begin(base)
        if run and not run.decision:
            self._train_and_decide(run)
        if run:
            self._carry_out(run)

    def _begin(self, base: str) -> RetrainingRun | None:
        """A new retraining, with its new pictures tracked in the worktree; None without a reason to train."""
        data = self._prepare(base)
        classifier, device = (
            read_section("evaluate", EvaluationSettings).classifier,
            self.environment.torch_device,
        )
        champion, accepted = self._champions([classifier]).get(classifier), self.tree / data.folder
        arrival, quality = Arrival(), Quality()
        if watch := self.settings.watch:
            place = incoming.fetch(watch, self.settings.repository, self.environment.root, self.downloads)
            settle_seconds = self.settings.settle_seconds
            arrival = incoming.look(place, accepted, self.quarantined, settle_seconds, data)
            quality = check(arrival, self.settings.quality, data, champion, device)
        usable, refused = quality.usable, quality.refused
        reasons = [f"{len(usable):,} new pictures"] if usable and not refused else []
        if not (reasons or refused) and self.workspace.is_stale():
            reasons = ["code or settings are newer than the models"]
        is_new = bool(reasons or refused or quality.quarantined)
        key = digest_of([[picture.name, picture.key] for picture in arrival.fresh] + [self._content()])
        past = [run for run in self.journal.past() if run.key == key and is_new and not usable]
        if past or not is_new:
            print(_nothing_new(arrival, past))
            return None
        run = RetrainingRun(
            key=key,
            base=base,
            began=now(),
            reasons=reasons or ["new pictures that cannot be used"],
            fresh=[[picture.name, picture.key] for picture in (quality.kept if refused else usable)],
            quarantined=quality.quarantined,
            quality=[asdict(finding) for finding in quality.findings],
        )
        if not reasons:
            run.decision, run.explanation = "refused", refused or "no new picture can be used yet"
        if usable:
            folder = self.downloads if self.dry_run else self.journal.ended
            page, processed = (
                folder / f"{run.name}-foreign.png",
                self.tree / PROCESSED / champion_challenger.IMAGES,
            )
            run.drift = drift.measure_drift(
                arrival.place, usable, self.settings.drift, processed, champion, device, page
            )
            print(f"  drift: {run.drift['sentence']}")
        if reasons:
            self._warn(data, [*arrival.accepted, *usable] if watch else None)
        if self.dry_run:
            print(
                f"would refuse: {run.explanation}" if run.decision else f"would train: {'; '.join(reasons)}"
            )
            return None
        if usable and reasons:
            incoming.copy(arrival.place, usable, accepted)
            self.workspace.dvc("add", "--quiet", data.folder.rstrip("/"))
        self.journal.save(run)
        return run

    def _prepare(self, base: str) -> DataSettings:
        """Check out ``base`` in the worktree; the section ``data``, which must be the committed one."""
        data, where = read_section("data", DataSettings), f"{PARAMS}: data"
        if self.settings.watch and not (data.source == "folder" and Path(data.folder).parent == OWN):
            what = "retrain.watch is set, but new pictures cannot be added to this data"
            added = "pictures from retrain.watch are added to that folder"
            remedy = f"set data.source: folder and data.folder: {OWN}/<name>; {added}"
            raise BadInput(what, where=where, remedy=remedy)
        self.workspace.prepare(base, data.folder.rstrip("/") if self.settings.watch else "")
        committed = read_section("data", DataSettings, self.tree / PARAMS)
        if names := [key for key, value in data if getattr(committed, key) != value]:
            what = f"is not as in the last commit ({', '.join(names)}), from which a retraining starts"
            remedy = f"git add {PARAMS}; git commit -m 'the data to retrain on'"
            raise BadInput(what, where=where, remedy=remedy)
        return data

    def _champions(self, names: Iterable[str]) -> dict[str, Champion]:
        return champion_challenger.champions(self.client, list(names), self.downloads)

    def _warn(self, data: DataSettings, pictures: list[Picture] | None) -> None:
        """Print, before the training, why the new models will be refused, as far as this is known.

        ``pictures``: those to train on; None if they are not watched.
        """
        names = None if pictures is None else [picture.name for picture in pictures]
        expected, num_test = champion_challenger.expected_data(data, self.tree, names)
        minimum = self.gates.minimum_test_images
        if num_test is not None and num_test < minimum:
            what = f"about {num_test:,} pictures will be test pictures, gates.minimum_test_images is"
            remedy = f"So new models will be refused. Add pictures, or lower the minimum in {PARAMS}."
            print(f"  note: {what} {minimum:,}\n  {remedy}")
        if expected is None:
            return
        sections = set(read_file(self.tree / PARAMS))
        of_images = lambda name: model_files.find(name).dataset == champion_challenger.IMAGES
        serving = self._champions(filter(of_images, sections.intersection(model_files.names())))
        if why := list(filter(None, (champion.incomparable(expected) for champion in serving.values()))):
            lines = [
                *(f"note: {reason}" for reason in why),
                "So new models will be refused, and these champions stay. To use a new model, promote it by",
                "hand after the training: darkroom promote NAME/VERSION --reason '...' (printed at the end)",
            ]
            print("".join(f"  {line}\n" for line in lines), end="")

    def _content(self) -> str:
        """A digest of code, settings, accepted pictures and gates."""
        sections = read_file(self.tree / PARAMS)
        settings = {name: section for name, section in sections.items() if name != "retrain"}
        files = [self.tree / "dvc.yaml", *sorted((self.tree / OWN).glob("*.dvc"))]
        texts = [path.read_text(encoding="utf-8") for path in files]
        code = digest_of_tree([self.tree / "pipeline", self.tree / "stages"], self.tree)
        return digest_of([settings, self.gates.model_dump(), texts, code])

    def _train_and_decide(self, run: RetrainingRun) -> None:
        """Train in the worktree, measure and decide. After ``max_attempts`` failures, ``run`` is refused."""
        seconds = max(1.0, self.deadline - time.monotonic())
        self._attempt(run, lambda: self.workspace.repro(seconds, run.name))
        if run.decision:
            return
        settings = read_section("evaluate", EvaluationSettings, self.tree / PARAMS)
        candidates = champion_challenger.challengers(self.client, self.tree)
        serving = self._champions(candidates)

        def decide() -> None:
            device, new = self.environment.torch_device, len(run.fresh)
            run.verdicts = champion_challenger.compare(
                settings, self.gates, self.tree, device, new, candidates, serving
            )
            run.decision, run.explanation = champion_challenger.decide(run.verdicts, settings.classifier)

        self._attempt(run, decide)
        self.journal.save(run)

    def _attempt(self, run: RetrainingRun, work: Callable[[], None]) -> None:
        """Call ``work`` and count its failures, except for a lock, a signal or the deadline."""
        try:
            work()
        except Exception as error:
            code = getattr(error, "exit_code", DarkroomError.exit_code)
            if code == EXIT_BUSY or code > 128 or time.monotonic() > self.deadline:
                raise
            run.attempts += 1
            if run.attempts >= self.settings.max_attempts:
                run.decision, run.explanation = "refused", f"it failed {run.attempts} times: {error}"
            self.journal.save(run)
            if not run.decision:
                raise

    def _carry_out(self, run: RetrainingRun) -> None:
        """Carry out the decision, report it and close ``run``."""
        if run.decision == "refused":
            reason = f"{run.refusal}: {run.explanation}"[:300]
            self.journal.quarantine({key: f"{name}: {reason}" for name, key in run.fresh})
        else:
            self._promote(run)
        for verdict in run.verdicts:
            if verdict.refused:
                registry.withdraw(self.client, verdict.model, verdict.version)
        self.journal.quarantine(run.quarantined)
        run.ended = run.ended or now()
        page = report.write(run, self.journal.ended)
        tags = {
            "darkroom.decision": run.decision,
            "darkroom.reason": run.explanation,
            "darkroom.commit": run.commit,
        }
        try:
            run_notes.write(self.environment, run.name, report.markdown(run), tags, page)
        except Exception as error:  # only after a refusal: a promotion would have failed earlier
            what = f"the result could not be sent to MLflow ({type(error).__name__}); see the report"
            print(f"warning: {what}")
        print(report.result(run, page))
        facts = {
            "project": self.environment.root.name,
            "models": {verdict.model: verdict.reason for verdict in run.verdicts},
            "drift": run.drift.get("sentence", ""),
            "dvc.lock": run.published,
            "report": str(page),
        }
        notifications.send(run.decision, run.explanation, facts)
        self.journal.close(run)

    def _promote(self, run: RetrainingRun) -> None:
        """Push, commit, move the aliases and publish the commit."""
        if not run.commit:
            if self.settings.push:
                self.workspace.dvc("push", "--quiet")
            run.commit = self.workspace.commit(f"retrain: {'; '.join(run.reasons)}\n\n{run.explanation}")
            self.journal.save(run)
        for verdict in run.verdicts:
            champion = promotion.champion(self.client, verdict.model) if verdict.promoted else None
            if champion and str(champion.version) not in (verdict.before, verdict.version):
                verdict.promoted = False
                verdict.reason = f"version {champion.version} was promoted by hand in the meantime"
            elif verdict.promoted:
                version = self.client.get_model_version(verdict.model, verdict.version)
                promotion.promote(self.environment, version, verdict.reason, verdict.gates, run.name)
        run.published = self.workspace.publish(run.commit, self.settings.commit == "in place")
        print(f"dvc.lock: {run.published}")


def _nothing_new(arrival: Arrival, past: list[RetrainingRun]) -> str:
    counts = {
        "wait for more": len(arrival.fresh),
        "are quarantined: darkroom retrain --readmit TEXT": arrival.quarantined,
    }
    parts = "; ".join(f"{count:,} pictures {what}" for what, count in counts.items() if count)
    decided = [f"; decided on {run.ended} UTC: {run.decision}: {run.explanation}" for run in past[-1:]]
    return "".join(["nothing new", f" ({parts})" if parts else "", *decided])
