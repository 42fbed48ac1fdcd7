"""What was made from what, by DVC's records (dvc.lock, its git history, the run cache), verified by hash."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from dvc.config import Config
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import BadInput
from pipeline.files import sha256
from pipeline.tracking.lineage import files_in, folder_md5, md5_of, outs_in, run_git

MAX_COMMITS = 50  # of dvc.lock that are read
CURRENT = "dvc.lock"
WEIGHTS, CARD, MANIFEST, SOURCE = "model.safetensors", "model.json", "manifest.json", "source.json"
STALE = "changed after it was used: dvc repro"
PAST = "an earlier version that is neither in the workspace nor in DVC's cache: try dvc fetch --all-commits"
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


class DvcLock:
    """All stage entries that can be found for the project in ``root``. Files are hashed on demand, once.

    Raises ``BadInput`` if dvc.lock cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.stages = root, list[StageEntry]()
        self._known, self._md5s, self._listings = set[str](), dict[str, str](), dict[str, dict[str, str]]()
        self._folders = dict[Content, dict[str, str]]()  # outputs in a dependency that is a folder of them
        self.cache = Path(
            Config(str(root / ".dvc"), validate=False)["cache"].get("dir") or root / ".dvc/cache"
        )
        self._read()
        self._lock = [stage for stage in self.stages if stage.found_in == CURRENT]
        self.current = {path: md5 for stage in self._lock for path, md5 in stage.outs.items()}

    def add(self, stage: StageEntry) -> None:
        """Add an entry, unless the same execution is known already."""
        key = json.dumps([stage.name, stage.deps, stage.outs], sort_keys=True)
        if stage.outs and key not in self._known:
            self._known.add(key)
            self.stages.append(stage)

    def producer(self, path: str, md5: str) -> StageEntry | None:
        """The entry that made this content, preferably the current one, or None."""
        return next((stage for stage in self.stages if stage.outs.get(path) == md5), None)

    def consumers(self, path: str, md5: str) -> list[StageEntry]:
        """The entries that read this content, a folder that contains it, or a file in it."""
        own = (path, md5)
        related = lambda dep: self._contains(dep, own) or self._contains(own, dep)
        return [stage for stage in self.stages if any(map(related, stage.deps.items()))]

    def container(self, path: str, md5: str) -> Content | None:
        """The output folder of a stage that contains this file, or None."""
        outs = (out for stage in self.stages for out in stage.outs.items())
        return next((out for out in outs if out[0] != path and self._contains(out, (path, md5))), None)

    def contents(self) -> Iterator[Content]:
        """Everything that is recorded: outputs, the files in output folders, dependencies."""
        outs = dict.fromkeys(out for stage in self.stages for out in stage.outs.items())
        files = [(f"{out[0]}/{name}", md5) for out in outs for name, md5 in self.listing(*out).items()]
        deps = (dep for stage in self.stages for dep in stage.deps.items())
        yield from dict.fromkeys([*outs, *files, *deps])

    def md5(self, path: str) -> str:
        """DVC's md5 of the present file or folder at ``path``; empty if there is none."""
        if path not in self._md5s:
            self._md5s[path] = md5_of(self.root / path)
        return self._md5s[path]

    def listing(self, path: str, md5: str) -> dict[str, str]:
        """The md5 of each file of a recorded folder, by relative name; empty if it is not known.

        It is read from DVC's cache, or from the folder itself if that is unchanged.
        """
        if md5.endswith(".dir") and not self._listings.get(md5):
            raw = file.read_bytes() if (file := self.object_path(md5)).is_file() else b""
            if hashlib.md5(raw).hexdigest() == md5.removesuffix(".dir"):
                self._listings[md5] = {entry["relpath"]: entry["md5"] for entry in json.loads(raw)}
            elif self.md5(path) == md5:
                self._listings[md5] = {name: self.md5(f"{path}/{name}") for name in self._files(path)}
        return self._listings.get(md5, {})

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
        present = self.md5(path)
        if present == md5:
            return []
        listing = self.listing(path, md5)
        command = "dvc pull" if self.check_cache(path, md5) else "dvc checkout"
        in_git = run_git(self.root, "ls-files", path)
        remedy = f"git checkout -- {path}" if in_git else f"{command} --force {path}"
        if not present or not listing or not (self.root / path).is_dir():
            return [Problem(path, "differs" if present else "absent", md5, present, remedy)]
        names = dict.fromkeys([*listing, *self._files(path)])
        found = {name: self.md5(f"{path}/{name}") for name in names}
        return [
            Problem(f"{path}/{name}", "differs" if now else "absent", listing.get(name, ""), now, remedy)
            for name, now in found.items()
            if now != listing.get(name)
        ]

    def check_cache(self, path: str, md5: str) -> list[Problem]:
        """The objects of this content that are missing or damaged in DVC's cache."""
        files = set(self.listing(path, md5).values())
        return self._check_object(md5) or [found for file in files for found in self._check_object(file)]

    def first_problem(self, path: str, md5: str) -> Problem | None:
        """The first problem with this content, or None.

        If the workspace has another version, the copy in DVC's cache is checked instead.
        """
        problems = self.check(path, md5)
        current = any(self._contains(out, (path, md5)) for out in self.current.items())
        damaged = [problem for problem in problems if problem.found]
        if not problems or (current and damaged):
            return next(iter(damaged), None)
        cached = self.check_cache(path, md5)
        if not cached or cached[0].found:
            return next(iter(cached), None)
        return problems[0] if current else Problem(path, "unchecked", md5, remedy=PAST)

    def check_all(
        self, params: Any, progress: Callable[[int, int], None]
    ) -> tuple[list[Problem], dict[str, int]]:
        """The problems of outputs, dependencies, params and cache; how many of each were checked.

        ``params``: the content of params.yaml. ``progress``: called with (done, total) objects of the cache.
        """
        problems = [problem for out in self.current.items() for problem in self.check(*out)]
        digests = {
            f"{out[0]}/{name}": digest
            for out in self.current.items()
            for name, digest in self.recorded_sha256(*out).items()
        }
        for path in sorted(set(digests) - {problem.path for problem in problems}):
            if (self.root / path).is_file() and (found := sha256(self.root / path)) != digests[path]:
                remedy = "it does not match the JSON file in its folder: run the stage again"
                problems.append(Problem(path, "differs", digests[path], found, remedy))
        deps = {
            dep: self.current.get(dep[0]) or self.md5(dep[0])
            for stage in self._lock
            for dep in stage.deps.items()
        }
        problems += [
            Problem(path, "stale", md5, found, STALE) for (path, md5), found in deps.items() if found != md5
        ]
        used = {
            key: value for stage in self._lock for key, value in stage.params.get("params.yaml", {}).items()
        }
        for key, value in used.items():
            step = lambda found, part: found.get(part) if isinstance(found, dict) else None
            present = reduce(step, key.split("."), params)
            if present != value:
                shown = json.dumps(value), json.dumps(present)
                problems.append(Problem(f"params.yaml: {key}", "stale", *shown, STALE))
        files = sorted((self.cache / "files/md5").glob("??/*"))
        files = [file for file in files if len(file.stem) == 30 and file.suffix in ("", ".dir")]
        for number, file in enumerate(files, 1):
            problems += self._check_object(file.parent.name + file.name)
            progress(number, len(files))
        counts = {"outputs": len(self.current), "SHA-256 records": len(digests), "dependencies": len(deps)}
        return problems, {**counts, "params": len(used), "cache objects": len(files)}

    def _read(self) -> None:
        lock = self.root / CURRENT
        texts = {}
        if lock.is_file():
            texts[lock.read_text(encoding="utf-8", errors="replace").strip()] = CURRENT
        log = run_git(self.root, "log", "--all", f"-{MAX_COMMITS}", "--format=%H", "--", CURRENT) or ""
        for commit in log.split():
            text = run_git(self.root, "show", f"{commit}:./{CURRENT}") or ""
            texts.setdefault(text.strip(), f"commit {commit}")
        for text, found_in in texts.items():
            try:
                entries = YAML(typ="safe", pure=True).load(text)["stages"].items()
                stages = [_stage_entry(name, entry, found_in) for name, entry in entries]
                outs = {path: md5 for stage in stages for path, md5 in stage.outs.items()}
                for stage in stages:
                    self.add(self._expand(stage, outs))
            except (YAMLError, TypeError, KeyError):  # an earlier version is skipped
                if found_in == CURRENT:
                    remedy = f"git checkout -- {CURRENT}"
                    raise BadInput("cannot be read", where=CURRENT, remedy=remedy) from None
        names = {stage.cmd: stage.name for stage in reversed(self.stages)}
        for path in sorted((self.cache / "runs").glob("*/*/*")):
            with suppress(YAMLError, TypeError, KeyError):
                entry = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8", errors="replace"))
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

    def _contains(self, outer: Content, inner: Content) -> bool:
        """Whether ``inner`` is ``outer`` or a file in it."""
        name = inner[0].removeprefix(f"{outer[0]}/")
        return inner == outer or (name != inner[0] and self.listing(*outer).get(name) == inner[1])

    def _files(self, path: str) -> list[str]:
        return [file.relative_to(self.root / path).as_posix() for file in files_in(self.root / path)]

    def _check_object(self, md5: str) -> list[Problem]:
        file = self.object_path(md5)
        found, path = md5_of(file), os.path.relpath(file, self.root)
        if found and found == md5.removesuffix(".dir"):
            return []
        remedy = f"rm -f {path}, then dvc pull"
        return [Problem(path, "differs" if found else "absent", md5, found, remedy)]


def _stage_entry(name: str, entry: dict[str, Any], found_in: str) -> StageEntry:
    deps, outs = (
        {item["path"]: item["md5"] for item in entry.get(side, []) if "md5" in item}
        for side in ("deps", "outs")
    )
    return StageEntry(name, str(entry.get("cmd", "")), deps, outs, entry.get("params", {}), found_in)
