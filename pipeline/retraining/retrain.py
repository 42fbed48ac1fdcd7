"""One retraining, from new pictures to a promotion or a refusal, in steps that can be repeated: a killed one
continues.

The project does not change before the decision is on disk. Data and commit are stored before an alias moves.
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
from pipeline.retraining import champion_challenger, incoming, intake_report, notifications, report
from pipeline.retraining.gates import GateSettings
from pipeline.retraining.journal import Journal, RetrainingRun, now
from pipeline.retraining.settings import RetrainSettings
from pipeline.retraining.workspace import Workspace
from pipeline.settings_check import require_valid_params
from pipeline.tracking import outbox, promotion, story

OWN = Path("data/own")  # where DVC's stage 'download' watches


def retrain(environment: Environment, dry_run: bool = False, readmit: str = "") -> RetrainingRun | None:
    """Run one retraining; the one that ended, or None if there was nothing to do. ``dry_run``: only print
    what it would do.

    ``readmit``: quarantined pictures whose reason or hash contains this text are checked again. Raises
    ``DarkroomError`` for what failed, with exit code 75 if another retraining runs; the next call continues
    from there.
    """
    journal = Journal(environment.root)
    with journal.alone():
        aside = journal.aside()
        if readmit:
            kept = journal.aside_without(readmit)
            count, found = len(aside) - len(kept), f"has a reason or hash that contains '{readmit}'"
            again = "would be checked again" if dry_run else "will be checked again"
            print(
                f"{count:,} quarantined pictures {again}" if count else f"no quarantined picture {found}",
                flush=True,
            )
            aside = kept
            if not dry_run:
                journal.readmit(readmit)
        try:
            return _Retraining(environment, journal, aside).run(dry_run)
        except Exception as error:
            if not dry_run and getattr(error, "exit_code", None) != EXIT_BUSY:
                notifications.send(
                    "failed", str(error) or type(error).__name__, {"project": environment.root.name}
                )
            raise


class _Retraining:
    def __init__(self, environment: Environment, journal: Journal, aside: dict[str, str]) -> None:
        """``aside``: the quarantined pictures, reasons by key."""
        require_valid_params()
        self.environment, self.journal, self.aside, self.workspace = (
            environment,
            journal,
            aside,
            Workspace(environment),
        )
        self.settings, self.gates = (
            read_section("retrain", RetrainSettings),
            read_section("gates", GateSettings),
        )
        self.deadline = time.monotonic() + 3600 * self.settings.deadline_hours
        self.tree, self.champions = self.workspace.tree, journal.folder / "champions"

    def run(self, dry_run: bool) -> RetrainingRun | None:
        run = self.journal.current()
        if run and dry_run:
            print(
                f"would continue the retraining of {run.began} UTC: {'; '.join(run.reasons)}",
                flush=True,
            )
            return None
        decided = run is not None and self._is_decided(run)
        base = (
            run.base if run and decided else self.workspace.base(keep=not dry_run)
        )  # it may clear the worktree
        if run and not decided and (run.decision or run.base != base or not self.workspace.holds(base)):
            why = "the project has a new commit, or the worktree of that retraining is lost"
            print(
                f"starting again instead of continuing the retraining of {run.began} UTC: {why}",
                flush=True,
            )
            self.journal.abandon()
            run = None
        if run:
            print(
                f"continuing the retraining of {run.began} UTC: {'; '.join(run.reasons)}",
                flush=True,
            )
        else:
            run = self._begin(base, dry_run)
        if run is None:
            return None
        if not run.decision:
            self._make(run)
        self._carry_out(run)
        return run

    def _is_decided(self, run: RetrainingRun) -> bool:
        """Whether there is a decision and all that it needs."""
        return run.decision == "refused" or bool(
            run.commit or (run.decision and self.workspace.holds(run.base))
        )

    def _begin(self, base: str, dry_run: bool) -> RetrainingRun | None:
        """A new retraining with the new pictures, its data under DVC in the worktree; None without a reason
        to train."""
        data = self._data()
        folder = data.folder.rstrip("/") if self.settings.watch else ""
        self.workspace.prepare(base, folder)
        if (committed := read_section("data", DataSettings, self.tree / PARAMS)) != data:
            names = [key for key, value in data if getattr(committed, key) != value]
            what = f"is not as in the last commit ({', '.join(names)}), from which a retraining starts"
            raise BadInput(
                what,
                where=f"{PARAMS}: data",
                remedy=f"git add {PARAMS}; git commit -m 'the data to retrain on'",
            )
        classifier = read_section("evaluate", EvaluationSettings).classifier
        champion = champion_challenger.champions(self.environment, [classifier], self.champions).get(
            classifier
        )
        known, accepted = champion.folder if champion else None, self.tree / folder
        with self._fetched() as beside:
            found = intake_report.look(
                self.environment, self.settings, data, accepted, self.aside, known, beside
            )
            found.tell()
            reasons = [f"{len(found.usable):,} new pictures"] if found.usable and not found.refused else []
            if not (reasons or found.refused) and self.workspace.is_stale():
                reasons = ["code or settings are newer than the models"]
            if not (reasons or found.refused or found.quarantined):
                print(f"nothing new{_left(found)}", flush=True)
                return None
            key = digest_of([found.digest, self._made_of()])
            past = [one for one in self.journal.past() if one.key == key]
            if (
                past and not found.usable
            ):  # usable pictures are new ones: those of a refused delivery are quarantined
                decided = f"{past[-1].decision}: {past[-1].explanation}"
                print(f"nothing new{_left(found)}; decided on {past[-1].ended} UTC: {decided}", flush=True)
                return None
            run = RetrainingRun(key, base, now(), reasons or ["new pictures that cannot be used"])
            run.quality = (
                [dataclasses.asdict(finding) for finding in found.checked.findings] if found.checked else []
            )
            run.quarantined = dict(found.quarantined)
            kept = found.checked.kept if found.checked and found.refused else found.usable
            run.fresh = [[picture.name, picture.key] for picture in kept]
            if not reasons:
                run.decision, run.explanation = (
                    "refused",
                    found.refused or "no new picture can be used yet",
                )
            if found.arrival and found.usable:
                page = (
                    beside / "foreign.png"
                    if dry_run
                    else self.journal.folder / f"occasions/{run.name}-foreign.png"
                )
                place, processed = found.arrival.place, self.tree / "data/processed"
                run.drift = intake_report.measure_drift(
                    self.environment, self.settings.drift, place, found.usable, processed, known, page
                )
                print(f"  drift: {run.drift['said']}", flush=True)
                if not dry_run and reasons:
                    incoming.copy(place, found.usable, accepted)
                    self.workspace.track(folder)
            if reasons:
                self._warn(data, found)
            if dry_run:
                print(
                    f"would {'refuse: ' + run.explanation if run.decision else 'train: ' + '; '.join(reasons)}",
                    flush=True,
                )
                return None
            self.journal.save(run)
            return run

    def _warn(self, data: DataSettings, found: intake_report.IntakeReport) -> None:
        """Print, before anything is trained, why the new models will be refused, as far as this is known."""
        expected, num_test = intake_report.expected_data(data, found, self.tree)
        least = self.gates.minimum_test_images
        if num_test is not None and num_test < least:
            what = (
                f"about {num_test:,} pictures will be test pictures, gates.minimum_test_images is {least:,}"
            )
            print(
                f"  note: {what}\n  So new models will be refused. Add pictures, or lower the minimum in {PARAMS}.",
                flush=True,
            )
        if expected is None:
            return
        names = [name for name in read_file(self.tree / PARAMS) if name in model_files.names()]
        serving = champion_challenger.champions(self.environment, names, self.champions)
        compared = [
            champion_challenger.incomparable(name, champion, expected) for name, champion in serving.items()
        ]
        if differences := [difference for difference in compared if difference]:
            lines = [
                *(f"note: {difference}" for difference in differences),
                "So new models will be refused, and these champions stay. To let a new model serve, promote it by",
                "hand after the training: darkroom promote NAME/VERSION --reason '...' (printed at the end)",
            ]
            print("".join(f"  {line}\n" for line in lines), end="", flush=True)

    @contextmanager
    def _fetched(self) -> Iterator[Path]:
        """An empty folder for downloads, removed at the end."""
        folder = self.journal.folder / "fetched"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _data(self) -> DataSettings:
        data = read_section("data", DataSettings)
        if self.settings.watch and not (data.source == "folder" and Path(data.folder).parent == OWN):
            remedy = f"set data.source: folder and data.folder: {OWN}/<name>; pictures from retrain.watch are added to that folder"
            raise BadInput(
                "retrain.watch is set, but new pictures cannot be added to this data",
                where=f"{PARAMS}: data",
                remedy=remedy,
            )
        return data

    def _made_of(self) -> str:
        """Code, settings and tracked data of the candidate, and the gates that judge it."""
        settings = {
            name: section for name, section in read_file(self.tree / PARAMS).items() if name != "retrain"
        }
        texts = [
            path.read_text(encoding="utf-8")
            for path in (self.tree / "dvc.yaml", *sorted((self.tree / OWN).glob("*.dvc")))
        ]
        code = digest_of_tree([self.tree / "pipeline", self.tree / "stages"], self.tree)
        return digest_of([settings, self.gates.model_dump(), texts, code])

    def _make(self, run: RetrainingRun) -> None:
        """Train in the worktree, measure and decide. A training that fails ``max_attempts`` times is
        refused."""
        self._count(run, lambda: self.workspace.repro(max(1.0, self.deadline - time.monotonic()), run.name))
        if run.decision:
            return
        settings = read_section("evaluate", EvaluationSettings, self.tree / PARAMS)
        candidates = champion_challenger.challengers(self.environment, self.tree)
        serving = champion_challenger.champions(self.environment, list(candidates), self.champions)

        def decide() -> None:
            new = len(run.fresh)
            run.verdicts = champion_challenger.hold(
                self.environment, settings, self.gates, self.tree, new, candidates, serving
            )
            run.decision, run.explanation = champion_challenger.sum_up(run.verdicts, settings.classifier)

        self._count(run, decide)
        self.journal.save(run)

    def _count(self, run: RetrainingRun, work: Callable[[], None]) -> None:
        """Run ``work`` and count its failures, but for those from outside: a lock, a signal, the deadline."""
        try:
            work()
        except Exception as error:  # whatever code and data bring about
            code = getattr(error, "exit_code", DarkroomError.exit_code)
            if code == EXIT_BUSY or code > 128 or time.monotonic() > self.deadline:
                raise
            run.attempts += 1
            if run.attempts >= self.settings.max_attempts:
                run.decision, run.explanation = (
                    "refused",
                    f"it failed {run.attempts} times: {error}",
                )
            self.journal.save(run)
            if not run.decision:
                raise

    def _carry_out(self, run: RetrainingRun) -> None:
        """Carry out the decision. Each step can be repeated after a kill."""
        refused = run.decision == "refused"
        if refused:
            champion_challenger.withdraw(self.environment, run.verdicts)
            held = f"{run.refusal}: {run.explanation}"[:300]
            self.journal.set_aside({key: f"{name}: {held}" for name, key in run.fresh})
        else:
            if not run.commit:
                if self.settings.push:
                    self.workspace.push()
                run.commit = self.workspace.commit(f"retrain: {'; '.join(run.reasons)}\n\n{run.explanation}")
                self.journal.save(run)
            client, _ = outbox.connect(self.environment)
            for verdict in run.verdicts:
                serves = promotion.champion(client, verdict.model) if verdict.promoted else None
                if serves and str(serves.version) not in (verdict.before, verdict.version):
                    verdict.promoted, verdict.reason = (
                        False,
                        f"version {serves.version} was promoted by hand in the meantime",
                    )
                elif verdict.promoted:
                    version = client.get_model_version(verdict.model, verdict.version)
                    promotion.promote(self.environment, version, verdict.reason, verdict.gates, run.name)
            champion_challenger.withdraw(self.environment, run.verdicts)
            run.published = self.workspace.publish(run.commit, self.settings.commit == "in place")
            print(f"dvc.lock: {run.published}", flush=True)
        self.journal.set_aside(run.quarantined)
        run.ended = run.ended or now()
        page = report.write(run, self.journal.folder / "occasions")
        tags = {
            "darkroom.decision": run.decision,
            "darkroom.reason": run.explanation,
            "darkroom.commit": run.commit,
        }
        try:
            story.tell(self.environment, run.name, report.text(run), tags, page)
        except Exception as error:  # a promotion would have failed before; a refusal is valid without MLflow
            print(
                f"warning: the result could not be sent to MLflow ({type(error).__name__}); the report holds it",
                flush=True,
            )
        print(
            f"{run.decision}: {run.explanation}\nreport: {page}\n{report.by_hand(run)}",
            end="",
            flush=True,
        )
        facts = {
            "project": self.environment.root.name,
            "models": {verdict.model: verdict.reason for verdict in run.verdicts},
        }
        facts |= {
            "drift": run.drift.get("said", ""),
            "dvc.lock": run.published,
            "report": str(page),
        }
        notifications.send(run.decision, run.explanation, facts)
        self.journal.close(run)


def _left(found: intake_report.IntakeReport) -> str:
    """How many pictures at ``retrain.watch`` are neither accepted nor new."""
    if found.arrival is None:
        return ""
    counts = {
        "wait for more": len(found.arrival.fresh),
        "are quarantined: darkroom retrain --readmit TEXT": found.arrival.set_aside,
    }
    parts = "; ".join(f"{count:,} pictures {what}" for what, count in counts.items() if count)
    return f" ({parts})" if parts else ""
