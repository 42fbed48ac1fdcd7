"""Prints the status of every run in the project's tracking database, as JSON."""

import json

from pipeline import environment

environment.prepare()

from pipeline.tracking import connection  # noqa: E402

client, experiment = connection.connect(environment.read())
print(
    json.dumps(
        [run.info.status for run in client.search_runs([experiment], "tags.`darkroom.stage` != 'repro'")]
    )
)
