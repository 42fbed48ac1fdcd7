"""What a retraining was, told in MLflow: the parent of its runs says why it ran, what was found and what was decided."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.environment import Environment
from pipeline.tracking import outbox
from pipeline.tracking.lineage import redact


def tell(environment: Environment, group: str, text: str, tags: Mapping[str, str], page: Path) -> str:
    """Write ``text`` (Markdown), ``tags`` and ``page`` onto the parent run of ``group``; its id. Told again, it is the same run."""
    client, experiment = outbox.connect(environment)
    found = client.search_runs(
        [experiment], f"tags.`darkroom.group` = '{group}' and tags.`darkroom.stage` = '{outbox.PARENT}'"
    )
    own = {"darkroom.group": group, "darkroom.stage": outbox.PARENT}
    run_id = (
        found[-1].info.run_id
        if found
        else client.create_run(experiment, outbox.now(), own, run_name=group).info.run_id
    )
    shown = {"mlflow.note.content": text, "mlflow.source.name": "darkroom retrain", **tags}
    outbox.set_tags(client, run_id, {key: redact(value)[:5000] for key, value in shown.items()})
    client.log_artifact(run_id, str(page))
    client.set_terminated(run_id, "FINISHED")
    return run_id
