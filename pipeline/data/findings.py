"""What was found out about a folder or archive: what is skipped, what is wrong, what deserves a warning."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import BadInput, listed

MAX_EXAMPLES = 20  # names of each reason in a summary


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

    def refuse(self, where: str) -> None:
        """Raise ``BadInput`` with all faults, if there are any."""
        if self.faults:
            whats = [f"{what}: {listed(map(repr, names))}" for what, names in self.faults.items()]
            remedies = dict.fromkeys(self.remedies.values())
            raise BadInput("; ".join(whats), where=where, remedy="; ".join(remedies))

    def summary(self) -> dict[str, Any]:
        """Warnings, and the number and first names of what is skipped, as JSON."""
        skipped = {
            reason: {"count": len(names), "examples": names[:MAX_EXAMPLES]}
            for reason, names in sorted(self.skipped.items())
        }
        return {"skipped": skipped, "warnings": self.warnings}
