"""Where damaged files are moved to: they may exist nowhere else, so Darkroom removes none."""

import shlex

DAMAGED = ".darkroom/damaged"


def moved_away(*paths: str) -> str:
    """A shell command that moves files or folders to a new folder in ``DAMAGED``; it replaces nothing."""
    return f'mkdir -p {DAMAGED} && mv -f {shlex.join(paths)} "$(mktemp -d {DAMAGED}/XXXXXX)"'
