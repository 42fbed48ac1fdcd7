"""A lineage as two trees, and its output as text, JSON or a Mermaid flowchart."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.files import digest_of
from pipeline.tracking.dvc_lock import Problem

FAILED = ("differs", "absent")


@dataclass
class Node:
    """One item of a lineage. ``state``: ok, differs, absent, unchecked, or empty (nothing to check)."""

    kind: str  # version, run, stage, file, code, params or source
    title: str
    hash: str = ""
    state: str = ""
    problem: Problem | None = None
    details: Any = None
    children: list["Node"] = field(default_factory=list)
    above: bool = False  # it is shown with its children earlier in the same tree

    def __post_init__(self) -> None:
        self.state = self.problem.state if self.problem else self.state
        self.id = f"n{digest_of([self.title, self.hash])[:12]}"

    def walk(self) -> Iterator["Node"]:
        """This node and all nodes below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def lines(self, first: str = "", rest: str = "") -> Iterator[str]:
        """The tree as text. ``first`` and ``rest``: prefixes of the first line and of the other lines."""
        shown, state = "", self.state
        if self.kind in ("file", "source", "version", "run") and self.hash:
            algorithm = "" if self.kind == "run" else "sha256 " if len(self.hash) == 64 else "md5 "
            shown = algorithm + self.hash[:12]
        if self.problem and state in FAILED:
            state = f"{state.upper()}: {self.problem.path}"
        yield first + "  ".join(filter(None, [self.title, shown, "(see above)" if self.above else state]))
        for child in self.children:
            branch, below = ("└─ ", "   ") if child is self.children[-1] else ("├─ ", "│  ")
            yield from child.lines(rest + branch, rest + below)


@dataclass
class Trace:
    """A thing with what it was made from (``up``) and with what was made from it (``down``)."""

    up: Node
    down: Node
    notes: list[str]

    def walk(self) -> Iterator[Node]:
        """The nodes of both trees."""
        yield from self.up.walk()
        yield from self.down.walk()

    @property
    def first_failure(self) -> Problem | None:
        """The first damaged or lost item: of the thing itself, then of ``up``, then of ``down``."""
        return next((node.problem for node in self.walk() if node.state in FAILED), None)

    def as_text(self) -> str:
        """Both trees and the result of the check."""
        thing, *sources = self.up.lines()
        _, *results = self.down.lines()
        lines = [thing, "", "made from", *(sources or ["nothing recorded"])]
        lines += ["", "used for", *(results or ["nothing recorded"]), ""]
        states = list({node.id: node.state for node in self.walk()}.values())
        checked, unchecked = states.count("ok"), states.count("unchecked")
        more = f"; {unchecked} could not be checked (earlier version, remote or edited)" if unchecked else ""
        result = f"{checked} checked, all as they were recorded{more}"
        if self.first_failure:
            result = f"FAILED: {self.first_failure}"
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), result])

    def as_json(self) -> str:
        """Both trees with full hashes, all params, and the md5 of each source file."""
        return json.dumps({**vars(self), "first_failure": self.first_failure}, default=vars, indent=2)

    def as_mermaid(self) -> str:
        """A flowchart from the sources on the left to the results on the right."""
        lines = ["flowchart LR", "  classDef bad fill:#f99"]
        for root in (self.up, self.down):
            for node in root.walk():
                title = node.title.replace('"', "#quot;")
                label = "<br/>".join(filter(None, [title, node.hash[:12], node.state]))
                lines.append(f'  {node.id}["{label}"]{":::bad" * (node.state in FAILED)}')
                for child in node.children:
                    pair = (child, node) if root is self.up else (node, child)
                    lines.append(f"  {pair[0].id} --> {pair[1].id}")
        return "\n".join(dict.fromkeys(lines))
