"""What was made from what, by DVC's records (dvc.lock, its git history, the run cache), verified by hash."""

import json
import os
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, reduce
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import BadInput
from pipeline.files import differ_in_one, sha256
from pipeline.git import git
from pipeline.tracking.damaged import moved_away
from pipeline.tracking.lineage import files_in, folder_md5, md5_of, outs_in

MAX_COMMITS = 50  # of dvc.lock that are read
CURRENT, RWLOCK = "dvc.lock", ".dvc/tmp/rwlock"
WEIGHTS, CARD, MANIFEST, SOURCE = "model.safetensors", "model.json", "manifest.json", "source.json"
STALE = "changed after it was used: dvc repro"
PAST = "an earlier version that is neither in the workspace nor in DVC's cache: try dvc fetch --all-commits"
MISMATCH = "it does not match the JSON file in its folder: run the stage again"
MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
Content = tuple[str, str]  # a path, and DVC's md5 of the file or folder at that path


@dataclass(frozen=True)
class StageEntry:
    """One execution of a stage: ``deps`` and ``outs`` are md5s by path."""

    name: str
    cmd: str
    deps: dict[str, str]
    outs: dict[str, str]
    params: dict[str, Any]
    found_in: str  # dvc.lock, a commit, the run cache, or an MLflow run


@dataclass(frozen=True)
class Problem:
    """A file or param that does not match its record.

    ``state``: differs (damaged), absent (lost), unchecked (an earlier version that is not here) or stale
    (edited after it was used).
    """

    path: str
    state: str
    expected: str = ""  # the recorded hash; empty for a file that is not recorded
    found: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        found = f", found {self.found}" if self.found else ""
        return f"{self.path}: {self.state} (recorded {self.expected or 'nothing'}{found})\n  -> {self.remedy}"


def cache_folder(root: Path) -> Path:
    """The folder of DVC's cache for the project in ``root``, by all of DVC's configuration files."""
    from dvc.config import Config

    return Path(Config(str(root / ".dvc"), validate=False)["cache"].get("dir") or root / ".dvc/cache")


def locked_stages(path: Path) -> dict[str, Any] | None:
    """The entries of a dvc.lock by stage; empty if there is no such file, None if DVC cannot use it."""
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.strictyaml import load

    try:
        stages = load(path, COMPILED_LOCKFILE_SCHEMA)[0].get("stages", {}) if path.is_file() else {}
    except DvcException:
        return None
    entries = [
        entry for stage in stages.values() for side in ("deps", "outs") for entry in stage.get(side, [])
    ]
    hashes = {(each.get("hash", "md5"), bool(MD5.fullmatch(each.get("md5", "0" * 32)))) for each in entries}
    return stages if hashes <= {("md5", True)} else None  # DVC accepts any text here, and then fails


def read_rwlock(path: Path) -> Any:
    """DVC's list of the paths in use, by "read" and "write"; None if DVC cannot read it."""
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    try:
        return SCHEMA(json.loads(path.read_bytes()) if path.is_file() else {})
    except (ValueError, Invalid):
        return None


class DvcLock:
    """All stage entries that can be found for the project in ``root``. Files are hashed on demand, once.

    Raises ``BadInput`` if dvc.lock cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.cache, self.stages = root, cache_folder(root), list[StageEntry]()
        self.md5 = cache(lambda path: md5_of(root / path))  # of the present file or folder; '' if none
        self.listing = cache(self._listing)
        self._folders = dict[Content, dict[str, str]]()  # outputs in a dependency that is a folder of them
        self._read()
        self._lock = [stage for stage in self.stages if stage.found_in == CURRENT]
        self.current = {path: md5 for stage in self._lock for path, md5 in stage.outs.items()}

    def add(self, stage: StageEntry) -> None:
        """Add an entry, unless the same execution is known already."""
        key = lambda entry: (entry.name, entry.deps, entry.outs)
        if stage.outs and key(stage) not in map(key, self.stages):
            self.stages.append(stage)

    @cached_property
    def contents(self) -> dict[Content, Content | None]:
        """Everything that is recorded; for a file in a recorded folder, its folder. Read it after ``add``."""
        found = dict[Content, Content | None]()
        for sides in ([stage.outs for stage in self.stages], [stage.deps for stage in self.stages]):
            found |= dict.fromkeys(content for side in sides for content in side.items())  # outputs first
        for path, md5 in list(found):
            for name, digest in self.listing(path, md5).items():
                found[f"{path}/{name}", digest] = found.get((f"{path}/{name}", digest)) or (path, md5)
        return found

    def _listing(self, path: str, md5: str) -> dict[str, str]:
        """The md5 of each file of a recorded folder, by relative name; empty if it is not known.

        It is read from DVC's cache, or from the folder itself if that is unchanged.
        """
        if not md5.endswith(".dir"):
            return {}
        if f"{md5_of(self.object_path(md5))}.dir" == md5:
            entries = json.loads(self.object_path(md5).read_bytes())
            return {entry["relpath"]: entry["md5"] for entry in entries}
        return self._present(path) if self.md5(path) == md5 else {}

    def object_path(self, md5: str) -> Path:
        """The file in DVC's cache that holds this content."""
        return self.cache / "files/md5" / md5[:2] / md5[2:]

    def read_json(self, path: str, md5: str, name: str) -> dict[str, Any]:
        """The JSON file ``name`` in a recorded folder; empty if it is missing or does not match its md5."""
        digest = self.listing(path, md5).get(name)
        copies = (self.root / path / name, self.object_path(digest)) if digest else ()
        return next((json.loads(copy.read_bytes()) for copy in copies if md5_of(copy) == digest), {})

    def recorded_sha256(self, path: str, md5: str) -> dict[str, str]:
        """The SHA-256 of weights, shards or raw files, by name, as the JSON files in a folder record them."""
        card, manifest, source = (self.read_json(path, md5, name) for name in (CARD, MANIFEST, SOURCE))
        shards = [shard for split in manifest.get("splits", {}).values() for shard in split["shards"]]
        entries = [entry for shard in shards for entry in shard.values() if isinstance(entry, dict)]
        digests = {entry["file"]: entry["sha256"] for entry in entries}
        digests |= {name: entry["sha256"] for name, entry in source.get("files", {}).items()}
        return digests | ({WEIGHTS: card["sha256"]} if card else {})

    def check(self, path: str, md5: str) -> list[Problem]:
        """How the workspace differs from this content, file by file if the folder's listing is known."""
        recorded, present = {path: md5}, {path: self.md5(path)}
        if recorded == present:
            return []
        if differ_in_one(md5, present[path]):
            remedy = f"dvc commit --force {shlex.quote(path)}"
            return [Problem(f"{CURRENT}: {path}", "differs", md5, present[path], remedy)]
        lacks = self.check_cache(path, md5)
        restore = f"{'dvc pull' if lacks else 'dvc checkout'} --force {shlex.quote(path)}"
        if self._in_git(path):
            lacks, restore = [], f"git checkout -- {shlex.quote(path)}"
        # DVC and git take a file for unchanged if its size and time are, and DVC its own read-only copies.
        copies = [problem.path for problem in lacks if problem.found]
        if (listing := self.listing(path, md5)) and (self.root / path).is_dir():
            recorded = {f"{path}/{name}": digest for name, digest in listing.items()}
            present = {f"{path}/{name}": digest for name, digest in self._present(path).items()}
        pairs = {name: (recorded.get(name, ""), present.get(name, "")) for name in recorded | present}
        pairs = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        changed = [name for name, (_, found) in pairs.items() if found]
        moved = [*(changed if len(changed) < 2 else [path]), *copies]  # DVC would overwrite what is left
        remedy = f"{moved_away(*moved)} && {restore}" if moved else restore
        states = {name: "differs" if found else "absent" for name, (_, found) in pairs.items()}
        return [Problem(name, states[name], *pair, remedy) for name, pair in pairs.items()]

    def check_cache(self, path: str, md5: str) -> list[Problem]:
        """The objects of this content that are missing or damaged in DVC's cache."""
        files = {*self.listing(path, md5).values()}
        return self._check_object(md5) or [found for file in files for found in self._check_object(file)]

    def first_problem(self, path: str, md5: str) -> Problem | None:
        """The first problem with this content, or None.

        If the workspace has another version, the copy in DVC's cache is checked instead.
        """
        problems = self.check(path, md5)
        is_current = {(path, md5), self.contents.get((path, md5))} & self.current.items()
        damaged = [problem for problem in problems if problem.found]
        if not problems or (is_current and damaged):
            return next(iter(damaged), None)
        cached = self.check_cache(path, md5)
        if not cached or cached[0].found:
            return next(iter(cached), None)
        return problems[0] if is_current else Problem(path, "unchecked", md5, remedy=PAST)

    def check_all(self, params: Any) -> tuple[list[Problem], dict[str, int]]:
        """The problems of outputs, dependencies, params and cache; how many of each were checked.

        ``params``: the content of params.yaml. A terminal shows the progress.
        """
        from rich.console import Console
        from rich.progress import track

        problems, digests = list[Problem](), dict[str, str]()
        if read_rwlock(self.root / RWLOCK) is None:
            problems.append(
                Problem(RWLOCK, "differs", remedy="darkroom repro removes it; every DVC command fails")
            )
        for path, md5 in self.current.items():
            problems += self.check(path, md5) or self._lost(path, md5)
            digests |= {f"{path}/{name}": digest for name, digest in self.recorded_sha256(path, md5).items()}
        for path in sorted(digests.keys() - {problem.path for problem in problems}):
            if (self.root / path).is_file() and (found := sha256(self.root / path)) != digests[path]:
                problems.append(Problem(path, "differs", digests[path], found, MISMATCH))
        problems += self.stale(params)
        objects = [file for file in sorted((self.cache / "files/md5").glob("??/*")) if len(file.stem) == 30]
        console = Console(stderr=True)
        for file in track(objects, "DVC's cache", console=console, disable=not console.is_terminal):
            problems += self._check_object(file.parent.name + file.name)
        counts = {"outputs": len(self.current), "SHA-256 records": len(digests)}
        counts |= {"dependencies": len(self._deps), "params": len(self._params)}
        return problems, {**counts, "cache objects": len(objects)}

    def stale(self, params: Any) -> list[Problem]:
        """The dependencies and params that were changed since dvc.lock recorded them.

        ``params``: the content of params.yaml.
        """
        problems = []
        for path, md5 in self._deps:
            if (found := self.current.get(path) or self.md5(path)) != md5:
                where = f"{CURRENT}: {path}" if differ_in_one(md5, found) else path
                problems.append(Problem(where, "stale", md5, found, STALE))
        step = lambda section, part: section.get(part) if isinstance(section, dict) else None
        for key, value in self._params.items():
            if (present := reduce(step, key.split("."), params)) != value:
                shown = json.dumps(value), json.dumps(present)
                problems.append(Problem(f"params.yaml: {key}", "stale", *shown, STALE))
        return problems

    @cached_property
    def _deps(self) -> list[Content]:
        return list(dict.fromkeys(dep for stage in self._lock for dep in stage.deps.items()))

    @cached_property
    def _params(self) -> dict[str, Any]:
        """The params that the stages used, by dotted key."""
        used = dict[str, Any]()
        for stage in self._lock:
            used |= stage.params.get("params.yaml", {})
        return used

    def _read(self) -> None:
        texts, load = {}, YAML(typ="safe", pure=True).load
        if locked_stages(lock := self.root / CURRENT) is None:
            remedy = f"darkroom repro restores it; or: git checkout -- {CURRENT}"
            raise BadInput("cannot be used", where=CURRENT, remedy=remedy)
        if lock.is_file():
            texts[lock.read_text(encoding="utf-8", errors="replace").strip()] = CURRENT
        log = git("log", "--all", f"-{MAX_COMMITS}", "--format=%H", "--", CURRENT, cwd=self.root, check=False)
        for commit in log.split():
            text = git("show", f"{commit}:./{CURRENT}", cwd=self.root, check=False)
            texts.setdefault(text, f"commit {commit}")
        for text, found_in in texts.items():
            with suppress(YAMLError, TypeError, KeyError):  # an earlier version that is damaged
                stages = [_stage_entry(name, each, found_in) for name, each in load(text)["stages"].items()]
                outs = {path: md5 for stage in stages for path, md5 in stage.outs.items()}
                for stage in stages:
                    self.add(self._expand(stage, outs))
        names = {stage.cmd: stage.name for stage in reversed(self.stages)}
        for path in sorted((self.cache / "runs").glob("*/*/*")):
            with suppress(YAMLError, TypeError, KeyError):
                entry = load(path.read_text(encoding="utf-8", errors="replace"))
                name = names.get(str(entry["cmd"]), "unknown stage")
                self.add(self._expand(_stage_entry(name, entry, "run cache"), {}))

    def _expand(self, stage: StageEntry, outs: dict[str, str]) -> StageEntry:
        """The entry with the outputs in place of a dependency that is a folder of them, such as models.

        ``outs``: the outputs in the same dvc.lock. They are the ones it read if they have the folder's md5.
        """
        deps = dict[str, str]()
        for path, md5 in stage.deps.items():
            inside = outs_in(path, outs)
            files = {
                f"{out}/{name}".removeprefix(f"{path}/"): digest
                for out, own in inside.items()
                for name, digest in self.listing(out, own).items()
            }
            if inside and folder_md5(files) == md5:
                self._folders[path, md5] = inside
            deps |= self._folders.get((path, md5), {path: md5})
        return replace(stage, deps=deps)

    def _lost(self, path: str, md5: str) -> list[Problem]:
        """The objects that DVC's cache lacks of an output which is as it was recorded in the workspace."""
        objects = [] if path in self._uncached else [md5, *self.listing(path, md5).values()]
        lost = [digest for digest in dict.fromkeys(objects) if not self.object_path(digest).is_file()]
        remedy = f"dvc commit --force {shlex.quote(path)}"
        where = [os.path.relpath(self.object_path(digest), self.root) for digest in lost]
        return [Problem(name, "absent", digest, remedy=remedy) for name, digest in zip(where, lost)]

    @cached_property
    def _uncached(self) -> set[str]:
        """The outputs that DVC does not keep in its cache: those with ``cache: false`` in dvc.yaml."""
        file = self.root / "dvc.yaml"
        stages = YAML(typ="safe", pure=True).load(file).get("stages", {}) if file.is_file() else {}
        kinds = ("outs", "metrics", "plots")
        entries = [entry for stage in stages.values() for kind in kinds for entry in stage.get(kind, [])]
        options = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
        return {path for path, flags in options if flags and flags.get("cache") is False}

    def _in_git(self, path: str) -> bool:
        return bool(git("ls-files", path, cwd=self.root, check=False))

    def _present(self, path: str) -> dict[str, str]:
        """The md5 of each present file of a folder, by relative name."""
        folder = self.root / path
        names = [file.relative_to(folder).as_posix() for file in files_in(folder)]
        return {name: self.md5(f"{path}/{name}") for name in names}

    def _check_object(self, md5: str) -> list[Problem]:
        file = self.object_path(md5)
        found, path = md5_of(file), os.path.relpath(file, self.root)
        if found and found == md5.removesuffix(".dir"):
            return []
        fetch = f"dvc fetch && test -f {shlex.quote(path)} || dvc fetch --all-commits"
        remedy = f"{moved_away(path)} && {fetch}" if found else fetch
        return [Problem(path, "differs" if found else "absent", md5, found, remedy)]


def _stage_entry(name: str, entry: dict[str, Any], found_in: str) -> StageEntry:
    deps, outs = (
        {item["path"]: item["md5"] for item in entry.get(side, []) if "md5" in item}
        for side in ("deps", "outs")
    )
    return StageEntry(name, str(entry.get("cmd", "")), deps, outs, entry.get("params", {}), found_in)
