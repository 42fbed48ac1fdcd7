"""One retraining, from new pictures to a promotion or a refusal.

Each step can be repeated, so a killed retraining continues. The project does not change before the decision
is on disk.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core import model_files
from pipeline.data.settings import DataSettings
from pipeline.environment import Environment
from pipeline.errors import EXIT_BUSY, BadInput, DarkroomError
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import digest_of, digest_of_tree
from pipeline.params import PARAMS, read_file, read_section
from pipeline.retraining import champion_challenger, incoming, intake_report, notifications, outcome
from pipeline.retraining.gates import GateSettings
from pipeline.retraining.intake_report import IntakeReport
from pipeline.retraining.journal import Journal, RetrainingRun, now
from pipeline.retraining.settings import RetrainSettings
from pipeline.retraining.workspace import Workspace
from pipeline.settings_check import require_valid_params

OWN = Path("data/own")  # the dependency of the DVC stage 'download'


def retrain(environment: Environment, dry_run: bool = False, readmit: str = "") -> RetrainingRun | None:
    """Run one retraining and return it; None if there is nothing to do.

    ``dry_run``: only print what would be done. ``readmit``: check quarantined pictures again whose reason or
    hash contains this text. Raises ``DarkroomError`` if a step fails, with exit code 75 if another retraining
    runs. The next call continues.
    """
    journal = Journal(environment.root)
    with journal.lock():
        quarantined = journal.quarantined()
        if readmit:
            kept = journal.quarantined_without(readmit)
            count, again = len(quarantined) - len(kept), "would be" if dry_run else "will be"
            if count:
                print(f"{count:,} quarantined pictures {again} checked again", flush=True)
            else:
                print(f"no quarantined picture has a reason or hash that contains '{readmit}'", flush=True)
            quarantined = kept
            if not dry_run:
                journal.readmit(readmit)
        try:
            return _Retraining(environment, journal, quarantined).run(dry_run)
        except Exception as error:
            if not dry_run and getattr(error, "exit_code", None) != EXIT_BUSY:
                text, facts = str(error) or type(error).__name__, {"project": environment.root.name}
                notifications.send("failed", text, facts)
            raise


class _Retraining:
    def __init__(self, environment: Environment, journal: Journal, quarantined: dict[str, str]) -> None:
        require_valid_params()
        self.environment, self.journal, self.quarantined = environment, journal, quarantined
        self.workspace = Workspace(environment)
        self.settings = read_section("retrain", RetrainSettings)
        self.gates = read_section("gates", GateSettings)
        self.deadline = time.monotonic() + 3600 * self.settings.deadline_hours
        self.tree, self.champion_cache = self.workspace.tree, journal.folder / "champions"

    def run(self, dry_run: bool) -> RetrainingRun | None:
        run = self.journal.current()
        started = f"the retraining of {run.began} UTC" if run else ""
        if run and dry_run:
            print(f"would continue {started}: {'; '.join(run.reasons)}", flush=True)
            return None
        decided = run is not None and self._is_decided(run)
        # base() may clear the worktree, which a decided retraining still needs.
        base = run.base if run and decided else self.workspace.base(keep=not dry_run)
        if run and not decided and (run.decision or run.base != base or not self.workspace.holds(base)):
            why = "the project has a new commit, or the worktree of that retraining is lost"
            print(f"starting again instead of continuing {started}: {why}", flush=True)
            self.journal.abandon()
            run = None
        if run:
            print(f"continuing {started}: {'; '.join(run.reasons)}", flush=True)
        else:
            run = self._begin(base, dry_run)
        if run is None:
            return None
        if not run.decision:
            self._train_and_decide(run)
        outcome.carry_out(self.environment, self.journal, self.workspace, self.settings, run)
        return run

    def _is_decided(self, run: RetrainingRun) -> bool:
        """Whether there is a decision and everything that is needed to carry it out."""
        has_result = bool(run.commit or (run.decision and self.workspace.holds(run.base)))
        return run.decision == "refused" or has_result

    def _begin(self, base: str, dry_run: bool) -> RetrainingRun | None:
        """A new retraining, with its new pictures tracked in the worktree; None without a reason to train."""
        data = self._data_settings()
        folder = data.folder.rstrip("/") if self.settings.watch else ""
        self.workspace.prepare(base, folder)
        self._require_committed(data)
        classifier = read_section("evaluate", EvaluationSettings).classifier
        champion = self._champions([classifier]).get(classifier)
        known, accepted = champion.folder if champion else None, self.tree / folder
        with self._downloads() as downloads:
            intake = intake_report.look(
                self.environment, self.settings, data, accepted, self.quarantined, known, downloads
            )
            intake.print_findings()
            reasons = [f"{len(intake.usable):,} new pictures"] if intake.usable and not intake.refused else []
            if not (reasons or intake.refused) and self.workspace.is_stale():
                reasons = ["code or settings are newer than the models"]
            if not (reasons or intake.refused or intake.quarantined):
                print(f"nothing new{_unused_pictures(intake)}", flush=True)
                return None
            key = digest_of([intake.digest, self._content()])
            past = [run for run in self.journal.past() if run.key == key]
            if past and not intake.usable:
                decided = f"decided on {past[-1].ended} UTC: {past[-1].decision}: {past[-1].explanation}"
                print(f"nothing new{_unused_pictures(intake)}; {decided}", flush=True)
                return None
            run = RetrainingRun(key, base, now(), reasons or ["new pictures that cannot be used"])
            findings = intake.checked.findings if intake.checked else []
            run.quality = [dataclasses.asdict(finding) for finding in findings]
            run.quarantined = dict(intake.quarantined)
            kept = intake.checked.kept if intake.checked and intake.refused else intake.usable
            run.fresh = [[picture.name, picture.key] for picture in kept]
            if not reasons:
                run.decision = "refused"
                run.explanation = intake.refused or "no new picture can be used yet"
            if intake.arrival and intake.usable:
                page = downloads / "foreign.png"
                if not dry_run:
                    page = self.journal.folder / f"occasions/{run.name}-foreign.png"
                place, processed = intake.arrival.place, self.tree / "data/processed/images"
                run.drift = intake_report.measure_drift(
                    self.environment, self.settings.drift, place, intake.usable, processed, known, page
                )
                print(f"  drift: {run.drift['said']}", flush=True)
                if not dry_run and reasons:
                    incoming.copy(place, intake.usable, accepted)
                    self.workspace.track(folder)
            if reasons:
                self._warn(data, intake)
            if dry_run:
                what = f"refuse: {run.explanation}" if run.decision else f"train: {'; '.join(reasons)}"
                print(f"would {what}", flush=True)
                return None
            self.journal.save(run)
            return run

    def _champions(self, names: list[str]) -> dict[str, champion_challenger.Champion]:
        return champion_challenger.champions(self.environment, names, self.champion_cache)

    def _warn(self, data: DataSettings, intake: IntakeReport) -> None:
        """Print, before the training, why the new models will be refused, as far as this is known."""
        expected, num_test = intake_report.expected_data(data, intake, self.tree)
        minimum = self.gates.minimum_test_images
        if num_test is not None and num_test < minimum:
            what = (
                f"about {num_test:,} pictures will be test pictures, gates.minimum_test_images is {minimum:,}"
            )
            remedy = f"So new models will be refused. Add pictures, or lower the minimum in {PARAMS}."
            print(f"  note: {what}\n  {remedy}", flush=True)
        if expected is None:
            return
        serving = self._champions(
            [name for name in read_file(self.tree / PARAMS) if name in model_files.names()]
        )
        compared = [champion_challenger.incomparable(name, one, expected) for name, one in serving.items()]
        if differences := [difference for difference in compared if difference]:
            lines = [
                *(f"note: {difference}" for difference in differences),
                "So new models will be refused, and these champions stay. To use a new model, promote it by",
                "hand after the training: darkroom promote NAME/VERSION --reason '...' (printed at the end)",
            ]
            print("".join(f"  {line}\n" for line in lines), end="", flush=True)

    @contextmanager
    def _downloads(self) -> Iterator[Path]:
        """An empty folder for downloads, removed at the end."""
        folder = self.journal.folder / "fetched"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _data_settings(self) -> DataSettings:
        data = read_section("data", DataSettings)
        if self.settings.watch and not (data.source == "folder" and Path(data.folder).parent == OWN):
            what = "retrain.watch is set, but new pictures cannot be added to this data"
            remedy = (
                f"set data.source: folder and data.folder: {OWN}/<name>; "
                "pictures from retrain.watch are added to that folder"
            )
            raise BadInput(what, where=f"{PARAMS}: data", remedy=remedy)
        return data

    def _require_committed(self, data: DataSettings) -> None:
        """Raise ``BadInput`` if ``data`` differs from the section in the last commit."""
        committed = read_section("data", DataSettings, self.tree / PARAMS)
        if names := [key for key, value in data if getattr(committed, key) != value]:
            what = f"is not as in the last commit ({', '.join(names)}), from which a retraining starts"
            remedy = f"git add {PARAMS}; git commit -m 'the data to retrain on'"
            raise BadInput(what, where=f"{PARAMS}: data", remedy=remedy)

    def _content(self) -> str:
        """A digest of code, settings, tracked data and gates."""
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
        candidates = champion_challenger.challengers(self.environment, self.tree)
        serving = self._champions(list(candidates))

        def decide() -> None:
            run.verdicts = champion_challenger.compare(
                self.environment, settings, self.gates, self.tree, len(run.fresh), candidates, serving
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


def _unused_pictures(intake: IntakeReport) -> str:
    """How many pictures at ``retrain.watch`` are neither accepted nor used."""
    if intake.arrival is None:
        return ""
    counts = {
        "wait for more": len(intake.arrival.fresh),
        "are quarantined: darkroom retrain --readmit TEXT": intake.arrival.quarantined,
    }
    parts = "; ".join(f"{count:,} pictures {what}" for what, count in counts.items() if count)
    return f" ({parts})" if parts else ""
