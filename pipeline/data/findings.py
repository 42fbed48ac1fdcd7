"""What was found out about a folder or archive: what is skipped, what is wrong, what deserves a warning."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput, listed
from pipeline.files import atomic_write

MAX_EXAMPLES = 20  # names of each reason in a message or summary
FULL_LIST = Path(".darkroom/refused.csv")  # in the project: all names of the last refusal that was too long


@dataclass
class Findings:
    """``skipped`` and ``faults`` map a reason to the names that it concerns.

    With a fault the source cannot be used; ``remedies`` has what to do about it. ``warnings`` are sentences.
    """

    skipped: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    remedies: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def skip(self, reason: str, names: Iterable[str]) -> None:
        """Add names that are left out, if there are any."""
        if some := sorted(names):
            self.skipped.setdefault(reason, []).extend(some)

    def fault(self, what: str, names: Iterable[str], remedy: str) -> None:
        """Add a fault that these names have, if there are any."""
        if some := sorted(names):
            self.faults[what], self.remedies[what] = some, remedy

    def refuse(self, where: str, full_list: Path | None = None) -> None:
        """Raise ``BadInput`` with all faults, if there are any.

        If a fault has more names than the message shows, all names are written to the file ``full_list``.
        """
        if self.faults:
            whats = [f"{what}: {listed(map(repr, names))}" for what, names in self.faults.items()]
            if full_list and max(map(len, self.faults.values())) > MAX_EXAMPLES:
                rows = [(what, name) for what, names in self.faults.items() for name in names]
                whats.append(write_names(full_list, rows))
            remedies = dict.fromkeys(self.remedies.values())
            raise BadInput("; ".join(whats), where=where, remedy="; ".join(remedies))

    def summary(self) -> dict[str, Any]:
        """Warnings, and the number and first names of what is skipped, as JSON."""
        skipped = {
            reason: {"count": len(names), "examples": names[:MAX_EXAMPLES]}
            for reason, names in sorted(self.skipped.items())
        }
        return {"skipped": skipped, "warnings": self.warnings}


def write_names(path: Path, rows: Iterable[tuple[str, str]]) -> str:
    """Write a table of reasons and names. Returns the clause that says where it is."""
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows([("reason", "name"), *rows])
    return f"all names are in {path}"
