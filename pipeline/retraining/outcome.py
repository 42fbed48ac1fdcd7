"""The outcome of a retraining: promotion or refusal, commit, report and notification.

Each step can be repeated after a kill. Data and commit are stored before an alias moves.
"""

from pipeline.environment import Environment
from pipeline.retraining import champion_challenger, notifications, report
from pipeline.retraining.journal import Journal, RetrainingRun, now
from pipeline.retraining.settings import RetrainSettings
from pipeline.retraining.workspace import Workspace
from pipeline.tracking import connection, promotion, run_notes


def carry_out(
    environment: Environment,
    journal: Journal,
    workspace: Workspace,
    settings: RetrainSettings,
    run: RetrainingRun,
) -> None:
    """Carry out the decision of ``run``, report it and close ``run``."""
    if run.decision == "refused":
        champion_challenger.withdraw(environment, run.verdicts)
        reason = f"{run.refusal}: {run.explanation}"[:300]
        journal.quarantine({key: f"{name}: {reason}" for name, key in run.fresh})
    else:
        _promote(environment, journal, workspace, settings, run)
    journal.quarantine(run.quarantined)
    run.ended = run.ended or now()
    page = report.write(run, journal.folder / "occasions")
    tags = {
        "darkroom.decision": run.decision,
        "darkroom.reason": run.explanation,
        "darkroom.commit": run.commit,
    }
    try:
        run_notes.write(environment, run.name, report.text(run), tags, page)
    except Exception as error:  # only after a refusal: a promotion would have failed earlier
        what = f"the result could not be sent to MLflow ({type(error).__name__}); see the report"
        print(f"warning: {what}", flush=True)
    print(
        f"{run.decision}: {run.explanation}\nreport: {page}\n{report.manual_commands(run)}",
        end="",
        flush=True,
    )
    facts = {
        "project": environment.root.name,
        "models": {verdict.model: verdict.reason for verdict in run.verdicts},
        "drift": run.drift.get("said", ""),
        "dvc.lock": run.published,
        "report": str(page),
    }
    notifications.send(run.decision, run.explanation, facts)
    journal.close(run)


def _promote(
    environment: Environment,
    journal: Journal,
    workspace: Workspace,
    settings: RetrainSettings,
    run: RetrainingRun,
) -> None:
    """Push, commit, move the aliases and publish the commit."""
    if not run.commit:
        if settings.push:
            workspace.push()
        run.commit = workspace.commit(f"retrain: {'; '.join(run.reasons)}\n\n{run.explanation}")
        journal.save(run)
    client, _ = connection.connect(environment)
    for verdict in run.verdicts:
        champion = promotion.champion(client, verdict.model) if verdict.promoted else None
        if champion and str(champion.version) not in (verdict.before, verdict.version):
            verdict.promoted = False
            verdict.reason = f"version {champion.version} was promoted by hand in the meantime"
        elif verdict.promoted:
            version = client.get_model_version(verdict.model, verdict.version)
            promotion.promote(environment, version, verdict.reason, verdict.gates, run.name)
    champion_challenger.withdraw(environment, run.verdicts)
    run.published = workspace.publish(run.commit, settings.commit == "in place")
    print(f"dvc.lock: {run.published}", flush=True)
