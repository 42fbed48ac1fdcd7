"""One retraining, from new pictures to a promotion or a refusal, in steps that can each be repeated: a killed one is gone on with.

Nothing of the project changes before the decision is on disk; then the data and the commit are made safe before an alias moves.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

from pipeline.data.settings import DataSettings
from pipeline.environment import Environment
from pipeline.errors import EXIT_BUSY, BadInput, DarkroomError
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import digest_of, digest_of_tree
from pipeline.params import PARAMS, read_file, read_section
from pipeline.retraining import contest, incoming, notice, report, survey
from pipeline.retraining.gates import GateSettings
from pipeline.retraining.journal import Journal, Occasion, now
from pipeline.retraining.settings import RetrainSettings
from pipeline.retraining.workspace import Workspace
from pipeline.tracking import outbox, promotion, story

OWN = Path("data/own")  # where DVC's stage 'download' watches
UNJUDGED = ("gates", "retrain")  # sections of params.yaml that change no model
PASSING = (EXIT_BUSY, 128 + 2, 128 + 15)  # exit codes that say nothing against a training


def retrain(environment: Environment, dry_run: bool = False) -> Occasion | None:
    """Do what there is to do; the occasion that ended, or None where there was nothing. ``dry_run``: only say what would be done.

    Raises ``DarkroomError``: 75 where another one runs, else for what failed; the next call goes on from there.
    """
    journal = Journal(environment.root)
    with journal.alone():
        retraining = _Retraining(environment, journal)
        try:
            return retraining.run(dry_run)
        except Exception as error:
            if not dry_run and getattr(error, "exit_code", None) != EXIT_BUSY:
                notice.send("failed", str(error) or type(error).__name__, {"project": environment.root.name})
            raise


class _Retraining:
    def __init__(self, environment: Environment, journal: Journal) -> None:
        self.environment, self.journal, self.workspace = environment, journal, Workspace(environment)
        self.settings, self.gates = read_section("retrain", RetrainSettings), read_section("gates", GateSettings)
        self.deadline = time.monotonic() + 3600 * self.settings.deadline_hours
        self.tree = self.workspace.tree

    def run(self, dry_run: bool) -> Occasion | None:
        occasion = self.journal.current()
        if occasion and not occasion.decision and not (occasion.base == self.workspace.base() and self.workspace.holds(occasion.base)):
            print("begun anew: the project has another commit since", flush=True)
            self.journal.abandon()
            occasion = None
        if occasion:
            print(f"going on with the retraining of {occasion.began} UTC: {'; '.join(occasion.reasons)}", flush=True)
        else:
            occasion = self._begin(dry_run)
        if occasion is None or dry_run:
            return None
        if not occasion.decision:
            self._make(occasion)
        if not occasion.decision:
            self._decide(occasion)
        self._carry_out(occasion)
        return occasion

    def _begin(self, dry_run: bool) -> Occasion | None:
        """An occasion with what has arrived, its data under DVC in the worktree; None where there is no reason to train."""
        base, data = self.workspace.base(), self._data()
        self.workspace.prepare(base, data.folder)
        if (committed := read_section("data", DataSettings, self.tree / PARAMS)) != data:
            said = f"is {data.folder or data.source} here and {committed.folder or committed.source} in the commit, or prepared otherwise"
            raise BadInput(said, where=f"{PARAMS}: data", remedy="commit it: a retraining starts from commits")
        classifier = read_section("evaluate", EvaluationSettings).classifier
        champion = contest.champions(self.environment, [classifier], self.journal.folder / "champions").get(classifier)
        known = champion.folder if champion else None
        with tempfile.TemporaryDirectory(dir=self.journal.folder) as beside:
            accepted = self.tree / data.folder
            found = survey.look(self.environment, self.settings, data, accepted, self.journal.aside(), known, Path(beside))
            found.tell()
            reasons = [f"{len(found.usable):,} new pictures"] if found.usable and not found.refused else []
            if not (reasons or found.refused) and self.workspace.is_stale():
                reasons = ["code or settings are newer than the models"]
            if not (reasons or found.refused or found.quarantined):
                waiting = found.arrival.fresh if found.arrival else []
                print("nothing new" + (f" ({len(waiting):,} new pictures wait for more)" if waiting else ""), flush=True)
                return None
            key = digest_of([found.digest, self._made_of()])
            if past := [one for one in self.journal.past() if one.key == key]:
                print(f"nothing new: decided on {past[-1].ended} UTC: {past[-1].decision}: {past[-1].explanation}", flush=True)
                return None
            occasion = Occasion(key, base, now(), reasons or ["new pictures that cannot be used"])
            occasion.quality = [dataclasses.asdict(finding) for finding in found.checked.findings] if found.checked else []
            occasion.quarantined = dict(found.quarantined)
            occasion.fresh = [[picture.name, picture.sha256] for picture in found.usable]
            if not reasons:
                occasion.decision, occasion.explanation = "refused", found.refused or "no new picture can be used yet"
            if found.arrival and found.usable:
                page = self.journal.folder / f"occasions/{occasion.name}-foreign.png"
                place, processed = found.arrival.place, self.tree / "data/processed"
                occasion.drift = survey.measure_drift(
                    self.environment, self.settings.drift, place, found.usable, processed, known, Path(beside, "p.png") if dry_run else page
                )
                print(f"  drift: {occasion.drift['said']}", flush=True)
                if not dry_run and reasons:
                    incoming.copy(place, found.usable, accepted)
                    self.workspace.track(data.folder)
            if dry_run:
                print(f"would {'refuse: ' + occasion.explanation if occasion.decision else 'train: ' + '; '.join(reasons)}", flush=True)
                return None
            self.journal.save(occasion)
            return occasion

    def _data(self) -> DataSettings:
        data = read_section("data", DataSettings)
        if self.settings.watch and not (data.source == "folder" and Path(data.folder).parent == OWN):
            remedy = f"source: folder and folder: {OWN}/<name>, where accepted pictures are kept; new ones come from retrain.watch"
            raise BadInput("cannot take in new pictures", where=f"{PARAMS}: data", remedy=remedy)
        return data

    def _made_of(self) -> str:
        """Code and settings of the candidate, as far as they change a model."""
        settings = {name: section for name, section in read_file(self.tree / PARAMS).items() if name not in UNJUDGED}
        return digest_of([settings, digest_of_tree([self.tree / "pipeline", self.tree / "stages"], self.tree)])

    def _make(self, occasion: Occasion) -> None:
        """Train and measure in the worktree. A training that fails for good ends the occasion."""
        try:
            self.workspace.repro(max(1.0, self.deadline - time.monotonic()), occasion.name)
        except DarkroomError as error:
            if error.exit_code not in PASSING and time.monotonic() < self.deadline:
                occasion.attempts += 1
                if occasion.attempts >= self.settings.max_attempts:
                    occasion.decision, occasion.explanation = "refused", f"it failed {occasion.attempts} times: {error.what}"
                self.journal.save(occasion)
            if not occasion.decision:
                raise

    def _decide(self, occasion: Occasion) -> None:
        """Write the verdicts down before anything follows from them."""
        settings = read_section("evaluate", EvaluationSettings, self.tree / PARAMS)
        occasion.verdicts = contest.hold(
            self.environment, settings, self.gates, self.tree, len(occasion.fresh), self.journal.folder / "champions"
        )
        occasion.decision, occasion.explanation = contest.sum_up(occasion.verdicts, settings.classifier)
        self.journal.save(occasion)

    def _carry_out(self, occasion: Occasion) -> None:
        """What the decision entails. Each step finds what an earlier attempt has done."""
        refused = occasion.decision == "refused"
        if not refused:
            if self.settings.push:
                self.workspace.push()
            occasion.commit = occasion.commit or self.workspace.commit(f"retrain: {'; '.join(occasion.reasons)}\n\n{occasion.explanation}")
            self.journal.save(occasion)
            client, _ = outbox.connect(self.environment)
            for verdict in occasion.verdicts:
                if verdict.promoted:
                    version = client.get_model_version(verdict.model, verdict.version)
                    promotion.promote(self.environment, version, verdict.reason, verdict.gates, occasion.name)
            print(f"dvc.lock: {self.workspace.publish(occasion.commit, self.settings.commit == 'in place')}", flush=True)
        else:
            contest.withdraw(self.environment, occasion.verdicts)
        held = {sha256: f"{name}: its retraining of {occasion.began} UTC was refused" for name, sha256 in occasion.fresh} if refused else {}
        self.journal.set_aside({**held, **occasion.quarantined})
        occasion.ended = occasion.ended or now()
        page = report.write(occasion, self.journal.folder / "occasions")
        tags = {"darkroom.decision": occasion.decision, "darkroom.reason": occasion.explanation, "darkroom.commit": occasion.commit}
        try:
            story.tell(self.environment, occasion.name, report.text(occasion), tags, page)
        except Exception as error:  # a refusal stands without it; a promotion would not have come this far
            print(f"warning: MLflow was not told of it ({type(error).__name__}); the report is there", flush=True)
        print(f"{occasion.decision}: {occasion.explanation}\nreport: {page}", flush=True)
        facts = {"project": self.environment.root.name, "models": {verdict.model: verdict.reason for verdict in occasion.verdicts}}
        notice.send(occasion.decision, occasion.explanation, {**facts, "drift": occasion.drift.get("said", ""), "report": str(page)})
        self.journal.close(occasion)
