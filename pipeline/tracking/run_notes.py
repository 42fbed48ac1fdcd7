"""The note of a retraining on the parent of its runs: why it ran, what was found, what was decided."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.environment import Environment
from pipeline.tracking import connection
from pipeline.tracking.delivery_queue import now
from pipeline.tracking.lineage import redact


def write(environment: Environment, group: str, text: str, tags: Mapping[str, str], page: Path) -> None:
    """Log ``text`` (Markdown), ``tags`` and ``page`` to the parent run of ``group``. Repeatable."""
    client, experiment = connection.connect(environment)
    run_id = connection.parent_run(client, experiment, group, now(), {}).info.run_id
    shown = {"mlflow.note.content": text, "mlflow.source.name": "darkroom retrain", **tags}
    connection.set_tags(client, run_id, {key: redact(value)[:5000] for key, value in shown.items()})
    client.log_artifact(run_id, str(page))
    connection.record_artifacts(client, run_id, [page.name])
    client.set_terminated(run_id, "FINISHED")
