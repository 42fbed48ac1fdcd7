"""Notifications about a retraining: JSON to an address, and to the standard input of a command."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import requests

from pipeline.environment import for_child, notification
from pipeline.tracking.lineage import redact

URL_SECONDS, COMMAND_SECONDS = 10, 60


def send(event: str, text: str, facts: Mapping[str, Any]) -> None:
    """Send ``event`` ('promoted', 'refused' or 'failed') to DARKROOM_NOTIFY_URL and DARKROOM_NOTIFY_COMMAND.

    If that fails, a warning is printed.
    """
    url, command = notification()
    message = {"event": event, "text": redact(text), **facts}  # "text" is what chat services show
    try:
        if url:
            requests.post(url, json=message, timeout=URL_SECONDS, allow_redirects=False).raise_for_status()
    except requests.RequestException as error:
        _warn("DARKROOM_NOTIFY_URL", error)
    try:
        if command:
            options: dict[str, Any] = {"env": for_child({}), "text": True, "check": True}
            words, given = shlex.split(command), json.dumps(message)
            subprocess.run(words, input=given, timeout=COMMAND_SECONDS, **options)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        _warn("DARKROOM_NOTIFY_COMMAND", error)


def _warn(variable: str, error: Exception) -> None:
    what = f"the notification to {variable} failed ({type(error).__name__})"
    print(f"warning: {what}", file=sys.stderr)
