"""From anything the pipeline made, up to what it was made of and down to what was made of it, each link verified."""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import digest_of, sha256
from pipeline.params import read_file
from pipeline.tracking import outbox
from pipeline.tracking.ledger import CARD, CURRENT, MANIFEST, SOURCE, WEIGHTS, Ledger, Problem, Stage
from pipeline.tracking.lineage import _git, redact

SQLITE = "sqlite:///"
MAX_RUNS = 1000  # the newest
MAX_SHOWN = 10  # files of a download
ACCEPTED = "name a registered model (vae@champion, vae/3), a run's id, a path of the project, or 8 or more digits of a hash"
FAILED = ("differs", "absent")
Progress = Callable[[int, int], None]


@dataclass
class Node:
    """One thing in a trace. ``state`` is ok, differs, absent or unchecked, and empty where there are no bytes to check."""

    kind: str  # version, run, stage, file, code, params or source
    title: str
    hash: str = ""
    state: str = ""
    problem: Problem | None = None
    details: Any = None
    children: list["Node"] = field(default_factory=list)
    above: bool = False  # shown with its children elsewhere in the same tree

    def __post_init__(self) -> None:
        self.state = self.problem.state if self.problem else self.state
        self.id = f"n{digest_of([self.title, self.hash])[:12]}"

    def walk(self) -> Iterator["Node"]:
        """This node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def lines(self, first: str = "", rest: str = "") -> Iterator[str]:
        """The tree as text; ``first`` and ``rest`` stand before its first and its other lines."""
        kind = (
            {32: "md5 ", 36: "md5 ", 64: "sha256 "}.get(len(self.hash), "")
            if self.kind in ("file", "source", "version")
            else ""
        )
        shown = f"{kind}{self.hash[:12]}" if kind or self.kind == "run" else ""
        state = (
            f"{self.state.upper()}: {self.problem.path}"
            if self.problem and self.state in FAILED
            else self.state
        )
        yield first + "  ".join(filter(None, [self.title, shown, "(see above)" if self.above else state]))
        for child in self.children:
            last = child is self.children[-1]
            yield from child.lines(rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


@dataclass
class Trace:
    """A thing twice: with what it was made of (``up``) and with what was made of it (``down``)."""

    up: Node
    down: Node
    notes: list[str]

    @property
    def first_failure(self) -> Problem | None:
        """The first that is damaged or lost: the thing itself, then upwards, then downwards."""
        return next(
            (node.problem for root in (self.up, self.down) for node in root.walk() if node.state in FAILED),
            None,
        )

    def as_text(self) -> str:
        """Two trees for a terminal, and the verdict."""
        thing, *made_from = self.up.lines()
        lines = [thing, "", "made from", *(made_from or ["nothing that is known"])]
        lines += ["", "used for", *(list(self.down.lines())[1:] or ["nothing that is known"]), ""]
        ids = {node.id: node.state for root in (self.up, self.down) for node in root.walk()}
        checked, unchecked = (list(ids.values()).count(state) for state in ("ok", "unchecked"))
        more = f"; {unchecked} could not be checked (past, remote or edited since)" if unchecked else ""
        verdict = (
            f"FAILED: {self.first_failure}"
            if self.first_failure
            else f"{checked} checked, all as they were recorded{more}"
        )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), verdict])

    def as_json(self) -> str:
        """The same with whole hashes, all params, and the md5 of each source file."""
        return json.dumps({**vars(self), "first_failure": self.first_failure}, default=vars, indent=2)

    def as_mermaid(self) -> str:
        """A flowchart from the origins on the left to the results on the right."""
        lines = ["flowchart LR", "  classDef bad fill:#f99"]
        for root, up in ((self.up, True), (self.down, False)):
            for node in root.walk():
                label = "<br/>".join(
                    filter(None, [node.title.replace('"', "#quot;"), node.hash[:12], node.state])
                )
                lines.append(f'  {node.id}["{label}"]{":::bad" * (node.state in FAILED)}')
                lines += [
                    f"  {child.id} --> {node.id}" if up else f"  {node.id} --> {child.id}"
                    for child in node.children
                ]
        return "\n".join(dict.fromkeys(lines))


def trace(environment: Environment, thing: str) -> Trace:
    """The lineage of ``thing``: a version, a run, a path or a hash. Raises ``BadInput`` that names what is accepted, or the candidates."""
    return _Lineage(environment).trace(thing)


def verify(
    environment: Environment, progress: Progress = lambda done, total: None
) -> tuple[list[Problem], dict[str, int]]:
    """All that can be checked here: what is damaged, lost or (edited since, no damage) stale, and how many of each were looked at.

    ``progress`` is called with the numbers of cache objects that are done and of all.
    """
    known = _Lineage(environment)
    problems, counts = known.ledger.audit(read_file(environment.root / "params.yaml"), progress)
    local = [version for version in known.versions.values() if _is_local(version)]
    problems += [problem for version in local if (problem := known.check(version))]
    if known.note:
        print(known.note, file=sys.stderr)
    return problems, {
        **counts,
        "registered versions": len(local),
        "versions on a server, unchecked": len(known.versions) - len(local),
    }


class _Lineage:
    """The ledger and what MLflow adds to it. A target is a version or a run of MLflow's, a Stage, (path, md5), or a finished Node."""

    def __init__(self, environment: Environment) -> None:
        self.ledger, self.uri = Ledger(environment.root), environment.tracking_uri
        outbox.follow_move(environment)
        self.versions: dict[str, Any] = {}  # by name/number
        self.aliases: dict[str, str] = {}  # name@alias -> name/number
        self.runs: list[Any] = []  # newest first
        self.note = "no MLflow database yet: runs and registered versions are not known here"
        if self.uri and (not self.uri.startswith(SQLITE) or Path(self.uri.removeprefix(SQLITE)).is_file()):
            self.note = (
                f"MLflow does not answer at {redact(self.uri)}: runs and registered versions are left out"
            )
            self._wait(self._ask)
        commands = {stage.name: stage.cmd for stage in self.ledger.stages}
        made = {(stage.name, path) for stage in self.ledger.stages for path in stage.outs}
        self._outs, self._seen = {path for _, path in made}, set[str]()
        for run in self.runs:
            name, found_in = run.data.tags["darkroom.stage"], f"run {run.info.run_id}"
            deps = {key[8:]: md5 for key, md5 in run.data.tags.items() if key.startswith("dvc.md5.")}
            outs = {path: deps.pop(path) for path in list(deps) if (name, path) in made}
            self.ledger.add(Stage(name, commands.get(name, ""), deps, outs, run.data.params, found_in))

    def check(self, version: Any, fetch: bool = False) -> Problem | None:
        """Whether the stored weights of a version are those of its tag. A server's are unchecked, unless they are to be fetched."""
        from mlflow.artifacts import download_artifacts

        uri, expected = f"{version.source}/artifacts", version.tags.get("darkroom.sha256", "")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as beside:
            folder = Path(unquote(urlparse(uri).path) if _is_local(version) else beside)
            here = _is_local(version)
            if fetch and not here:
                here = self._wait(
                    lambda: download_artifacts(artifact_uri=uri, dst_path=beside, tracking_uri=self.uri)
                )
            place = next(folder.rglob(WEIGHTS), folder)
            found = sha256(place) if here and place.is_file() else ""
        if found == expected:
            return None
        state = "differs" if found else "absent" if here else "unchecked"
        remedy = f"restore MLflow's artifacts from a copy, or train it again: dvc repro --force train-{version.name}"
        where = str(place) if _is_local(version) else f"{uri}/{place.relative_to(folder)}"
        return Problem(where, state, expected, found, remedy)

    def _wait(self, function: Callable[[], Any]) -> bool:
        """Call what may fail or hang in a thread of its own, and wait as long as is decent; whether it is done by then."""
        import mlflow  # noqa: F401 - here, so that its import counts as no server's delay

        def work() -> None:
            with suppress(Exception):  # what is missing then shows that
                function()

        thread = Thread(target=work, name="trace", daemon=True)
        thread.start()
        thread.join(60 if self.uri.startswith(SQLITE) else 10)
        return not thread.is_alive()

    def _ask(self) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = list(client.search_runs(experiments, "tags.`darkroom.stage` LIKE '%'", max_results=MAX_RUNS))
        versions = {
            f"{version.name}/{version.version}": version
            for version in client.search_model_versions(max_results=MAX_RUNS)
        }
        aliases = (
            (model.name, *alias)
            for model in client.search_registered_models()
            for alias in model.aliases.items()
        )
        self.aliases = {f"{name}@{alias}": f"{name}/{version}" for name, alias, version in aliases}
        self.runs, self.versions, self.note = runs, versions, ""

    def trace(self, thing: str) -> Trace:
        target = self._find(thing)
        root, trees = self._node(target, fetch=True), []
        for direction in (self._above, self._below):
            self._seen = {root.id}
            trees.append(replace(root, children=self._grow(direction(target), direction)))
        return Trace(trees[0], trees[1], [self.note] * bool(self.note))

    def _grow(self, targets: list[Any], direction: Callable[[Any], list[Any]]) -> list[Node]:
        nodes = []
        for target in targets:
            node = target if isinstance(target, Node) else self._node(target)
            further = [] if node is target else direction(target)
            if node.id not in self._seen:
                self._seen.add(node.id)
                node.children = self._grow(further, direction)
            elif node.kind in ("run", "version"):
                continue
            node.above = bool(further) and not node.children
            nodes.append(node)
        return nodes

    def _node(self, target: Any, fetch: bool = False) -> Node:
        """What is shown of a target, verified but without its neighbours."""
        if isinstance(target, Stage):
            past = f" ({target.found_in[:19]})" * (target.found_in != CURRENT)
            return Node(
                "stage",
                f"{target.name}: {target.cmd}{past}",
                digest_of([target.deps, target.outs]),
                details=vars(target),
            )
        if isinstance(target, tuple):
            path, md5 = target
            changed = not self._is_made(path) and self.ledger.md5(path) != md5
            problem = self.ledger.judge(path, md5) if self._is_made(path) else None
            return Node(
                "file", path + ", changed since" * changed, md5, "unchecked" if changed else "ok", problem
            )
        if hasattr(target, "data"):
            tags = target.data.tags
            commit = tags.get("mlflow.source.git.commit", "unknown")[:12] + " and edits" * (
                tags.get("darkroom.git.dirty") == "true"
            )
            return Node(
                "run",
                f"run {target.info.run_name}, {target.info.status}, commit {commit}",
                target.info.run_id,
                details=tags,
            )
        name = f"{target.name}/{target.version}"
        aliases = ", ".join(
            alias.partition("@")[2] for alias, version in self.aliases.items() if version == name
        )
        title = f"model {name}{f' ({aliases})' if aliases else ''}"
        return Node(
            "version",
            title,
            target.tags.get("darkroom.sha256", ""),
            "ok",
            self.check(target, fetch),
            target.tags,
        )

    def _above(self, target: Any) -> list[Any]:
        if isinstance(target, tuple):
            origin = self.ledger.container(*target) or self.ledger.maker(*target)
            return [*self._sources(*target), *([origin] if origin else [])]
        if isinstance(target, Stage):
            code = {
                path: md5
                for path, md5 in target.deps.items()
                if not self._is_made(path) and not path.startswith("data/")
            }
            text = re.sub(r'["{}]', "", json.dumps(target.params)).removeprefix("params.yaml: ")
            runs = [self._node(run) for run in self.runs if _is_run(run, target)]
            params = Node("params", f"params {text[:100]}{'...' * (len(text) > 100)}", details=target.params)
            return [
                *runs,
                self._code(code),
                params,
                *(dep for dep in target.deps.items() if dep[0] not in code),
            ]
        if hasattr(target, "data"):
            return [stage for stage in self.ledger.stages if _is_run(target, stage)]
        trained = [run for run in self.runs if run.info.run_id == target.run_id]
        folders = [
            (key[8:], md5)
            for run in trained
            for key, md5 in run.data.tags.items()
            if key.startswith("dvc.md5.models/")
        ]
        digest = target.tags.get("darkroom.sha256")
        return (
            folders
            or [out for out in self.ledger.contents() if self.ledger.claims(*out).get(WEIGHTS, "") == digest][
                :1
            ]
            or trained
        )

    def _below(self, target: Any) -> list[Any]:
        if isinstance(target, Stage):
            return [*(self._node(run) for run in self.runs if _is_run(run, target)), *target.outs.items()]
        if not isinstance(target, tuple):
            return [below for origin in self._above(target) for below in self._below(origin)]
        container, digest = self.ledger.container(*target), self.ledger.claims(*target).get(WEIGHTS)
        holding = [
            version
            for version in self.versions.values()
            if digest and version.tags.get("darkroom.sha256") == digest
        ]
        return [container] if container else [*map(self._node, holding), *self.ledger.users(*target)]

    def _is_made(self, path: str) -> bool:
        return any(f"{path}/".startswith(f"{out}/") for out in self._outs)

    def _sources(self, path: str, md5: str) -> list[Node]:
        """Of a download: its files, their SHA-256 and where they came from."""
        files, listing = (
            self.ledger.record(path, md5, SOURCE).get("files", {}),
            self.ledger.listing(path, md5),
        )
        nodes = [
            Node(
                "source",
                f"{name} from {entry['url']}",
                entry["sha256"],
                "ok",
                self.ledger.judge(f"{path}/{name}", listing[name]),
            )
            for name, entry in list(files.items())[:MAX_SHOWN]
        ]
        return nodes + [Node("source", f"and {len(files) - MAX_SHOWN:,} files more")] * (
            len(files) > MAX_SHOWN
        )

    def _code(self, code: dict[str, str]) -> Node:
        changed, root = [path for path, md5 in code.items() if self.ledger.md5(path) != md5], self.ledger.root
        title = f"code, {len(code)} files and folders"
        if changed:
            title += f", changed since: {', '.join(changed)}"
        elif _git(root, "status", "--porcelain", "--", *code) == "" and (
            commit := _git(root, "log", "-1", "--format=%H", "--", *code)
        ):
            title += f" as of commit {commit[:12]}"
        return Node("code", title, digest_of(code), "unchecked" if changed else "ok", details=code)

    def _find(self, thing: str) -> Any:
        if version := self.versions.get(self.aliases.get(thing, thing)):
            return version
        if re.fullmatch(r"[^/@]+(@[^/@]+|/\d+)", thing) and not (self.ledger.root / thing).exists():
            remedy = self.note or f"there are: {', '.join(sorted([*self.versions, *self.aliases])) or 'none'}"
            raise BadInput("is no registered version", where=thing, remedy=remedy)
        if found := self._path(thing) or self._hashed(thing):
            return found
        raise BadInput(
            "is nothing that is known here",
            where=thing,
            remedy="; ".join(filter(None, [ACCEPTED, self.note])),
        )

    def _path(self, thing: str) -> Any | None:
        root = self.ledger.root
        path = Path(os.path.relpath(root / thing, root)).as_posix()
        entries = [
            entry for stage in self.ledger.stages for entry in (*stage.outs.items(), *stage.deps.items())
        ]
        for known, md5 in entries:
            if known == path:
                return known, md5
            if path.startswith(f"{known}/"):
                digest = self.ledger.listing(known, md5).get(path.removeprefix(f"{known}/"))
                if digest or (root / path).exists():
                    return (path, digest) if digest else (known, md5)
        if inside := sorted({known for known, _ in entries if known.startswith(f"{path}/")}):
            raise BadInput("holds several things", where=thing, remedy=f"name one of: {', '.join(inside)}")
        return self._hashed(self.ledger.md5(path)) if (root / path).is_file() else None

    def _hashed(self, thing: str) -> Any | None:
        """What has this hash, or one that starts so: a version, else a run, else a file."""
        is_hash = re.fullmatch(r"[0-9a-f]{8,}(\.dir)?", thing)
        matches = [entry for entry in self._hashes() if entry[0].startswith(thing)] if is_hash else []
        things = {title: target for _, title, target in matches if type(target) is type(matches[0][2])}
        if len(things) > 1:
            raise BadInput(
                "may be several things", where=thing, remedy=f"name one of: {', '.join(sorted(things)[:10])}"
            )
        return next(iter(things.values()), None)

    def _hashes(self) -> Iterator[tuple[str, str, Any]]:
        """(hash, title, target) of all that a hash may name."""
        yield from (
            (version.tags.get("darkroom.sha256", ""), name, version)
            for name, version in self.versions.items()
        )
        for run in self.runs:
            yield from (
                (digest, run.info.run_id, run)
                for digest in (run.info.run_id, run.data.tags.get("darkroom.fingerprint", ""))
            )
        for tags in (run.data.tags for run in self.runs):
            if md5 := tags.get("dvc.md5.data/processed"):
                yield tags.get("darkroom.data", ""), "data/processed", ("data/processed", md5)
        for path, md5 in self.ledger.contents():
            manifest, card = self.ledger.record(path, md5, MANIFEST), self.ledger.record(path, md5, CARD)
            names = (md5, digest_of(manifest) if manifest else "", card.get("fingerprint", ""))
            yield from ((name, path, (path, md5)) for name in names)
            for name, claim in self.ledger.claims(path, md5).items():
                yield claim, f"{path}/{name}", (f"{path}/{name}", self.ledger.listing(path, md5)[name])


def _is_local(version: Any) -> bool:
    return urlparse(version.source).scheme in ("", "file")


def _is_run(run: Any, stage: Stage) -> bool:
    """Whether MLflow's run was this execution of a stage."""
    return {
        f"dvc.md5.{path}": md5 for path, md5 in (stage.deps | stage.outs).items()
    }.items() <= run.data.tags.items()
