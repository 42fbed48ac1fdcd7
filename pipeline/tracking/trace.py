"""The lineage of a model, run or file: what it was made from and what was made from it, verified by hash."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.core.fields import PROCESSED
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import digest_of
from pipeline.git import git
from pipeline.params import read_file
from pipeline.tracking import connection, identity, integrity
from pipeline.tracking.dvc_lock import CARD, CURRENT, MANIFEST, SOURCE, DvcLock, Problem, StageEntry
from pipeline.tracking.mlflow_index import MlflowIndex, folder_of, is_local
from pipeline.tracking.trace_tree import Node, Trace

MAX_SHOWN = 10  # files of a download
MD5_TAG = "dvc.md5."  # followed by a path
ACCEPTED = "name a registered model (vae@champion, vae/3), a run id, a path, or at least 8 digits of a hash"


def trace(environment: Environment, thing: str) -> Trace:
    """The lineage of a version, run, path or hash. Raises ``BadInput`` if it is unknown or ambiguous."""
    return _Lineage(environment).trace(thing)


def verify(environment: Environment) -> tuple[list[Problem], dict[str, int]]:
    """The problems of project, DVC's cache, trainings, MLflow's database and local registry; counts by kind.

    See ``DvcLock.check_all`` and ``integrity``.
    """
    is_local_database = connection.is_local(environment)
    database = Path(environment.tracking_uri.removeprefix(connection.SQLITE)).resolve()
    stored = list(integrity.check_database(database)) if is_local_database else []
    lineage = _Lineage(environment)
    index, lock, storage = lineage.index, lineage.lock, environment.storage
    problems, counts = lock.check_all(read_file(environment.root / "params.yaml"))
    of_trainings, num_trained = integrity.check_trainings(storage)
    of_cache, num_entries = integrity.check_run_cache(lock)
    problems += [*integrity.check_lock_file(lock), *of_trainings, *of_cache, *stored]
    local = [version for version in index.versions.values() if is_local(version)]
    checks = (index.check(version) for version in local)
    problems += [problem for problem in (*checks, *map(index.check_run, index.runs)) if problem]
    if index.note:
        print(index.note, file=sys.stderr)
    counts |= {"files of trainings": num_trained, "run cache entries": num_entries}
    counts |= {"registered versions": len(local)}
    counts |= {"versions on a server, unchecked": len(index.versions) - len(local)}
    for name, number in integrity.unrecorded(storage, environment.root).items():
        counts[f"files in .darkroom/{name} without a recorded hash, unchecked"] = number
    folders = [folder_of(version) for version in local]
    return [integrity.with_copy(problem, lock, folders, storage) for problem in problems], counts


class _Lineage:
    """DVC's records and the runs of MLflow.

    A target is a version or run of MLflow, a StageEntry, a content (path, md5), or a finished Node.
    """

    def __init__(self, environment: Environment) -> None:
        self.lock, self.index = DvcLock(environment.root), MlflowIndex(environment)
        commands = {stage.name: stage.cmd for stage in self.lock.stages}
        outs = {(stage.name, path) for stage in self.lock.stages for path in stage.outs}
        self._outs = {path for _, path in outs}
        for run in self.index.runs:
            name, deps = run.data.tags["darkroom.stage"], _md5s(run)
            made = {path: deps.pop(path) for path in list(deps) if (name, path) in outs}
            found_in = f"run {run.info.run_id}"
            self.lock.add(StageEntry(name, commands.get(name, ""), deps, made, run.data.params, found_in))

    def trace(self, thing: str) -> Trace:
        target = self._find(thing)
        root = self._node(target, fetch=True)
        up, down = (
            replace(root, children=self._grow(direction(target), direction, {root.id}))
            for direction in (self._above, self._below)
        )
        return Trace(up, down, [self.index.note] * bool(self.index.note))

    def _grow(self, targets: list[Any], direction: Callable[[Any], list[Any]], seen: set[str]) -> list[Node]:
        """A node with its children for each target. Children are only shown once in a tree."""
        nodes = []
        for target in targets:
            node = target if isinstance(target, Node) else self._node(target)
            further = [] if node is target else direction(target)
            if node.id not in seen:
                seen.add(node.id)
                node.children = self._grow(further, direction, seen)
            elif node.kind in ("run", "version"):
                continue
            node.above = bool(further) and not node.children
            nodes.append(node)
        return nodes

    def _node(self, target: Any, fetch: bool = False) -> Node:
        """A verified node without children."""
        if isinstance(target, StageEntry):
            past = f" ({target.found_in[:19]})" * (target.found_in != CURRENT)
            title, digest = f"{target.name}: {target.cmd}{past}", digest_of([target.deps, target.outs])
            return Node("stage", title, digest, details=vars(target))
        if isinstance(target, tuple):
            path, md5 = target
            if self._is_output(path):
                return Node("file", path, md5, "ok", self.lock.first_problem(path, md5))
            changed = self.lock.md5(path) != md5
            return Node("file", path + ", changed since" * changed, md5, "unchecked" if changed else "ok")
        if _is_run(target):
            tags = target.data.tags
            commit = tags.get("mlflow.source.git.commit", "unknown")[:12]
            edits = " and edits" * (tags.get("darkroom.git.dirty") == "true")
            title = f"run {target.info.run_name}, {target.info.status}, commit {commit}{edits}"
            info = {key: getattr(target.info, key) for key in ("run_id", "status", "start_time", "end_time")}
            return Node("run", title, target.info.run_id, details=tags | info)
        name = f"{target.name}/{target.version}"
        aliases = [alias.partition("@")[2] for alias, number in self.index.aliases.items() if number == name]
        title = f"model {name}" + f" ({', '.join(aliases)})" * bool(aliases)
        problem, digest = self.index.check(target, fetch), target.tags.get("darkroom.sha256", "")
        return Node("version", title, digest, "ok", problem, target.tags)

    def _above(self, target: Any) -> list[Any]:
        """What the target was made from."""
        if isinstance(target, tuple):
            path, md5 = target
            made = [stage for stage in self.lock.stages if stage.outs.get(path) == md5][:1]
            folder = self.lock.contents.get(target)
            return [*self._downloads(path, md5), *([folder] if folder else made)]
        if isinstance(target, StageEntry):
            is_data = lambda path: self._is_output(path) or path.startswith("data/")
            data = [dep for dep in target.deps.items() if is_data(dep[0])]
            code = {path: md5 for path, md5 in target.deps.items() if not is_data(path)}
            text = re.sub(r'["{}]', "", json.dumps(target.params)).removeprefix("params.yaml: ")
            params = Node("params", f"params {text[:100]}{'...' * (len(text) > 100)}", details=target.params)
            return [*self._runs_of(target), self._code(code), params, *data]
        if _is_run(target):
            return [stage for stage in self.lock.stages if _ran(target, stage)]
        trained = [run for run in self.index.runs if run.info.run_id == target.run_id]
        models = [item for run in trained for item in _md5s(run).items() if item[0].startswith("models/")]
        if models:
            return models
        for content in self.lock.contents:
            if self._is_of(target, content):
                return [content]
        return trained

    def _below(self, target: Any) -> list[Any]:
        """What was made from the target."""
        if isinstance(target, StageEntry):
            return [*self._runs_of(target), *target.outs.items()]
        if not isinstance(target, tuple):
            return [below for origin in self._above(target) for below in self._below(origin)]
        if folder := self.lock.contents.get(target):
            return [folder]
        versions = self.index.versions.values()
        registered = [self._node(each) for each in versions if self._is_of(each, target)]
        reads = lambda dep: target in (dep, self.lock.contents.get(dep))
        return [*registered, *(stage for stage in self.lock.stages if any(map(reads, stage.deps.items())))]

    def _is_of(self, version: Any, content: tuple[str, str]) -> bool:
        """Whether a version is the trained model in this folder."""
        known = {key: value for key, value in identity.of_tags(version.tags).items() if value}
        card = self.lock.read_json(*content, CARD)
        return bool(card and known) and known.items() <= identity.of_card(card).items()

    def _runs_of(self, stage: StageEntry) -> list[Node]:
        return [self._node(run) for run in self.index.runs if _ran(run, stage)]

    def _is_output(self, path: str) -> bool:
        """Whether ``path`` is an output, or a file in one, or a folder of outputs."""
        return any(f"{path}/".startswith(f"{out}/") or out.startswith(f"{path}/") for out in self._outs)

    def _downloads(self, path: str, md5: str) -> list[Node]:
        """The files of a download with their SHA-256 and URL."""
        files = self.lock.read_json(path, md5, SOURCE).get("files", {})
        listing, nodes = self.lock.listing(path, md5), []
        for name, entry in list(files.items())[:MAX_SHOWN]:
            problem = self.lock.first_problem(f"{path}/{name}", listing[name])
            nodes.append(Node("source", f"{name} from {entry['url']}", entry["sha256"], "ok", problem))
        if len(files) > MAX_SHOWN:
            nodes.append(Node("source", f"and {len(files) - MAX_SHOWN:,} files more"))
        return nodes

    def _code(self, code: dict[str, str]) -> Node:
        changed, root = [path for path, md5 in code.items() if self.lock.md5(path) != md5], self.lock.root
        title = f"code, {len(code)} files and folders"
        if changed:
            title += f", changed since: {', '.join(changed)}"
        elif not git("status", "--porcelain", "--", *code, cwd=root, check=False):
            commit = git("log", "-1", "--format=%H", "--", *code, cwd=root, check=False)
            title += f" as of commit {commit[:12]}" * bool(commit)
        return Node("code", title, digest_of(code), "unchecked" if changed else "ok", details=code)

    def _find(self, thing: str) -> Any:
        """The target that ``thing`` names."""
        versions, aliases, root = self.index.versions, self.index.aliases, self.lock.root
        if version := versions.get(aliases.get(thing, thing)):
            return version
        if re.fullmatch(r"[^/@]+(@[^/@]+|/\d+)", thing) and not (root / thing).exists():
            remedy = self.index.note or f"registered: {', '.join(sorted([*versions, *aliases])) or 'none'}"
            raise BadInput("is not a registered version", where=thing, remedy=remedy)
        path = Path(os.path.relpath(root / thing, root))
        for place in (path, *path.parents):  # a file that is not recorded stands for its folder
            for content in self.lock.contents:
                if content[0] == place.as_posix() and (place == path or (root / path).exists()):
                    return content
        known = {name for (name, _), folder in self.lock.contents.items() if not folder}
        if inside := ", ".join(sorted(name for name in known if Path(name).is_relative_to(path))):
            raise BadInput("contains several outputs", where=thing, remedy=f"name one of: {inside}")
        digest = self.lock.md5(thing) if (root / path).is_file() else thing
        if re.fullmatch(r"[0-9a-f]{8,}(\.dir)?", digest):
            found = [entry for entry in self._hashes() if entry[0].startswith(digest)]
            # A version takes precedence over a run, and that over a file.
            targets = {title: target for _, title, target in found if type(target) is type(found[0][2])}
            if len(targets) > 1:
                remedy = f"name one of: {', '.join(sorted(targets)[:10])}"
                raise BadInput("is ambiguous", where=thing, remedy=remedy)
            if targets:
                return targets.popitem()[1]
        remedy = "; ".join(filter(None, [ACCEPTED, self.index.note]))
        raise BadInput("is not known here", where=thing, remedy=remedy)

    def _hashes(self) -> Iterator[tuple[str, str, Any]]:
        """(hash, title, target) for everything that has a hash, by precedence."""
        for name, version in self.index.versions.items():
            for digest in identity.of_tags(version.tags).values():
                yield digest, name, version
        for run in self.index.runs:
            yield run.info.run_id, run.info.run_id, run
            yield run.data.tags.get("darkroom.fingerprint", ""), run.info.run_id, run
        for run in self.index.runs:
            for path, md5 in _md5s(run).items():
                if Path(path).parent == PROCESSED:
                    yield run.data.tags.get("darkroom.data", ""), path, (path, md5)
        for path, md5 in self.lock.contents:
            manifest, card = self.lock.read_json(path, md5, MANIFEST), self.lock.read_json(path, md5, CARD)
            for digest in (md5, digest_of(manifest) if manifest else "", card.get("fingerprint", "")):
                yield digest, path, (path, md5)
            for name, digest in self.lock.recorded_sha256(path, md5).items():
                yield digest, f"{path}/{name}", (f"{path}/{name}", self.lock.listing(path, md5)[name])


def _is_run(target: Any) -> bool:
    return hasattr(target, "data")


def _md5s(run: Any) -> dict[str, str]:
    """DVC's md5s of the dependencies and outputs of a run, by path."""
    tags = run.data.tags.items()
    return {key.removeprefix(MD5_TAG): md5 for key, md5 in tags if key.startswith(MD5_TAG)}


def _ran(run: Any, stage: StageEntry) -> bool:
    """Whether the run is this execution of the stage."""
    return (stage.deps | stage.outs).items() <= _md5s(run).items()
