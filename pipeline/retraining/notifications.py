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
    """Send ``event`` ('promoted', 'refused' or 'failed') to the address and the command that the environment
    names, if any.

    A failure to send is printed as a warning.
    """
    url, command = notification()
    message = {"event": event, "text": redact(text), **facts}  # "text" is what chat services show
    try:
        if url:
            requests.post(url, json=message, timeout=URL_SECONDS, allow_redirects=False).raise_for_status()
    except requests.RequestException as error:
        print(
            f"warning: the notification to DARKROOM_NOTIFY_URL failed ({type(error).__name__})",
            file=sys.stderr,
            flush=True,
        )
    if not command:
        return
    try:
        words = shlex.split(command)
        subprocess.run(
            words,
            input=json.dumps(message),
            text=True,
            env=for_child({}),
            timeout=COMMAND_SECONDS,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(
            f"warning: DARKROOM_NOTIFY_COMMAND failed ({type(error).__name__})", file=sys.stderr, flush=True
        )
