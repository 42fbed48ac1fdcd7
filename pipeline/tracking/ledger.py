"""Who made what of what, as DVC wrote it down (dvc.lock, its history in git, the run cache), and whether the bytes are still those."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import BadInput
from pipeline.files import sha256
from pipeline.tracking.lineage import _git, md5_of

MAX_COMMITS = 50  # of dvc.lock that are read
CURRENT = "dvc.lock"
WEIGHTS, CARD, MANIFEST, SOURCE = "model.safetensors", "model.json", "manifest.json", "source.json"
STALE = "changed since it was used: dvc repro"
PAST = "a past version that lies neither here nor in DVC's cache; dvc fetch --all-commits may bring it"
Content = tuple[str, str]  # a path, and DVC's md5 of what lay there


@dataclass(frozen=True)
class Stage:
    """One execution of a stage: from ``deps`` (md5 by path) and ``params`` it made ``outs`` (md5 by path)."""

    name: str
    cmd: str
    deps: dict[str, str]
    outs: dict[str, str]
    params: dict[str, Any]
    found_in: str  # dvc.lock, a commit, the run cache, or an MLflow run


@dataclass(frozen=True)
class Problem:
    """Bytes that are not the recorded ones: damaged (``differs``), lost (``absent``), past (``unchecked``) or edited since (``stale``)."""

    path: str
    state: str
    expected: str = ""  # the recorded hash; empty for a file that nobody recorded
    found: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        found = f", found {self.found}" if self.found else ""
        return f"{self.path}: {self.state} (recorded {self.expected or 'nothing'}{found})\n  -> {self.remedy}"


class Ledger:
    """All entries that can be found in ``root``; each file is hashed once. Raises ``BadInput`` where dvc.lock cannot be read."""

    def __init__(self, root: Path) -> None:
        self.root, self.stages = root, list[Stage]()
        self._known, self._md5s, self._listings = set[str](), dict[str, str](), dict[str, dict[str, str]]()
        self.cache = root / ".dvc/cache"
        for config in (root / ".dvc/config", root / ".dvc/config.local"):  # the later one wins
            text = config.read_text(encoding="utf-8") if config.is_file() else ""
            if found := re.search(r"^\[cache\][^\[]*?^\s*dir\s*=\s*(\S.*?)\s*$", text, re.MULTILINE):
                self.cache = config.parent / found[1]
        self._read()
        self.current = {
            path: md5
            for stage in self.stages
            if stage.found_in == CURRENT
            for path, md5 in stage.outs.items()
        }

    def add(self, stage: Stage) -> None:
        """Add an entry; what is known already, from wherever, is left as it is."""
        key = json.dumps([stage.name, stage.deps, stage.outs], sort_keys=True)
        if stage.outs and key not in self._known:
            self._known.add(key)
            self.stages.append(stage)

    def maker(self, path: str, md5: str) -> Stage | None:
        """The entry that made these bytes, the current one first, or None."""
        return next((stage for stage in self.stages if stage.outs.get(path) == md5), None)

    def users(self, path: str, md5: str) -> list[Stage]:
        """The entries that read these bytes, a folder that holds them, or a file within them."""
        near = lambda dep: self._holds(dep, (path, md5)) or self._holds((path, md5), dep)
        return [stage for stage in self.stages if any(map(near, stage.deps.items()))]

    def container(self, path: str, md5: str) -> Content | None:
        """The folder made by a stage that holds this file, or None."""
        outs = (out for stage in self.stages for out in stage.outs.items())
        return next((out for out in outs if out[0] != path and self._holds(out, (path, md5))), None)

    def contents(self) -> Iterator[Content]:
        """Everything there is an entry for: outputs, what their folders hold, dependencies."""
        outs = dict.fromkeys(out for stage in self.stages for out in stage.outs.items())
        files = (
            (f"{path}/{name}", md5)
            for path, folder in outs
            for name, md5 in self.listing(path, folder).items()
        )
        yield from dict.fromkeys(
            [*outs, *files, *(dep for stage in self.stages for dep in stage.deps.items())]
        )

    def md5(self, path: str) -> str:
        """DVC's md5 of what lies at ``path`` now; empty where nothing does."""
        if path not in self._md5s:
            self._md5s[path] = md5_of(self.root / path)
        return self._md5s[path]

    def listing(self, path: str, md5: str) -> dict[str, str]:
        """The md5 of each file of a recorded folder, by relative name: from DVC's cache or the unchanged folder, else empty."""
        if md5.endswith(".dir") and not self._listings.get(md5):
            raw = place.read_bytes() if (place := self.object(md5)).is_file() else b""
            if hashlib.md5(raw).hexdigest() == md5.removesuffix(".dir"):
                self._listings[md5] = {entry["relpath"]: entry["md5"] for entry in json.loads(raw)}
            elif self.md5(path) == md5:
                self._listings[md5] = {name: self.md5(f"{path}/{name}") for name in self._files(path)}
        return self._listings.get(md5, {})

    def object(self, md5: str) -> Path:
        """Where DVC's cache keeps these bytes."""
        return self.cache / "files/md5" / md5[:2] / md5[2:]

    def record(self, path: str, md5: str, name: str) -> dict[str, Any]:
        """The JSON file ``name`` within a recorded folder; empty where there is none, or not as it was recorded."""
        digest = self.listing(path, md5).get(name)
        places = (self.root / path / name, self.object(digest)) if digest else ()
        return next((json.loads(place.read_bytes()) for place in places if md5_of(place) == digest), {})

    def claims(self, path: str, md5: str) -> dict[str, str]:
        """The SHA-256 of weights, shards or raw files, by name, that the records within a folder hold themselves."""
        card, manifest, source = (self.record(path, md5, name) for name in (CARD, MANIFEST, SOURCE))
        shards = [shard for split in manifest.get("splits", {}).values() for shard in split["shards"]]
        claims = {
            entry["file"]: entry["sha256"] for shard in shards for entry in (shard["images"], shard["labels"])
        }
        claims |= {name: entry["sha256"] for name, entry in source.get("files", {}).items()}
        return claims | ({WEIGHTS: card["sha256"]} if card else {})

    def check(self, path: str, md5: str) -> list[Problem]:
        """What at ``path`` is not what ``md5`` says: file by file where the folder's listing is known."""
        here = self.md5(path)
        if here == md5:
            return []
        listing = self.listing(path, md5)
        fetch = "dvc pull" if self.check_cache(path, md5) else "dvc checkout"
        remedy = f"git checkout -- {path}" if _git(self.root, "ls-files", path) else f"{fetch} --force {path}"
        if not here or not listing or not (self.root / path).is_dir():
            return [Problem(path, "differs" if here else "absent", md5, here, remedy)]
        found = {name: self.md5(f"{path}/{name}") for name in dict.fromkeys([*listing, *self._files(path)])}
        wrong = [
            (name, listing.get(name, ""), there)
            for name, there in found.items()
            if there != listing.get(name)
        ]
        return [
            Problem(f"{path}/{name}", "differs" if there else "absent", md5, there, remedy)
            for name, md5, there in wrong
        ]

    def check_cache(self, path: str, md5: str) -> list[Problem]:
        """What DVC's cache lacks of these bytes, or holds damaged."""
        files = set(self.listing(path, md5).values())
        return self._check_object(md5) or [
            problem for digest in files for problem in self._check_object(digest)
        ]

    def judge(self, path: str, md5: str) -> Problem | None:
        """The first problem with these bytes in the workspace, or, where it has none or others of another time, in DVC's cache."""
        problems = self.check(path, md5)
        current = any(self._holds(out, (path, md5)) for out in self.current.items())
        damaged = [problem for problem in problems if problem.found]
        if not problems or (current and damaged):
            return next(iter(damaged), None)
        cached = self.check_cache(path, md5)
        if not cached or cached[0].found:
            return next(iter(cached), None)
        return problems[0] if current else Problem(path, "unchecked", md5, remedy=PAST)

    def audit(
        self, params: Any, progress: Callable[[int, int], None]
    ) -> tuple[list[Problem], dict[str, int]]:
        """All outputs, dependencies and cache objects: what is wrong, and how many were looked at. ``params``: params.yaml as it is."""
        problems = [problem for out in self.current.items() for problem in self.check(*out)]
        claims = {
            f"{out[0]}/{name}": digest
            for out in self.current.items()
            for name, digest in self.claims(*out).items()
        }
        for path in sorted(set(claims) - {problem.path for problem in problems}):
            if (self.root / path).is_file() and (found := sha256(self.root / path)) != claims[path]:
                problems.append(
                    Problem(
                        path,
                        "differs",
                        claims[path],
                        found,
                        "its folder's own record says otherwise: make it anew",
                    )
                )
        lock = [stage for stage in self.stages if stage.found_in == CURRENT]
        deps = {
            dep: self.current.get(dep[0]) or self.md5(dep[0]) for stage in lock for dep in stage.deps.items()
        }
        problems += [
            Problem(path, "stale", md5, found, STALE) for (path, md5), found in deps.items() if found != md5
        ]
        settings = {
            key: value for stage in lock for key, value in stage.params.get("params.yaml", {}).items()
        }
        for key, value in settings.items():
            now = reduce(
                lambda found, part: found.get(part) if isinstance(found, dict) else None,
                key.split("."),
                params,
            )
            if now != value:
                problems.append(
                    Problem(f"params.yaml: {key}", "stale", json.dumps(value), json.dumps(now), STALE)
                )
        files = sorted((self.cache / "files/md5").glob("??/*"))
        objects = [
            file.parent.name + file.name
            for file in files
            if len(file.stem) == 30 and file.suffix in ("", ".dir")
        ]
        for number, md5 in enumerate(objects, 1):
            problems += self._check_object(md5)
            progress(number, len(objects))
        sizes = (len(self.current), len(claims), len(deps), len(settings), len(objects))
        return problems, dict(
            zip(("outputs", "SHA-256 records", "dependencies", "params", "cache objects"), sizes)
        )

    def _read(self) -> None:
        lock = self.root / CURRENT
        texts = (
            {lock.read_text(encoding="utf-8", errors="replace").strip(): CURRENT} if lock.is_file() else {}
        )
        for commit in (
            _git(self.root, "log", "--all", f"-{MAX_COMMITS}", "--format=%H", "--", CURRENT) or ""
        ).split():
            texts.setdefault(
                (_git(self.root, "show", f"{commit}:./{CURRENT}") or "").strip(), f"commit {commit}"
            )
        for text, found_in in texts.items():
            try:
                for name, entry in YAML(typ="safe", pure=True).load(text)["stages"].items():
                    self.add(_stage(name, entry, found_in))
            except (YAMLError, TypeError, KeyError):  # of the past, it is passed over
                if found_in == CURRENT:
                    raise BadInput(
                        "cannot be read", where=CURRENT, remedy=f"git checkout -- {CURRENT}"
                    ) from None
        names = {stage.cmd: stage.name for stage in reversed(self.stages)}
        for path in sorted((self.cache / "runs").glob("*/*/*")):
            with suppress(YAMLError, TypeError, KeyError):
                entry = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8", errors="replace"))
                self.add(_stage(names.get(str(entry["cmd"]), "unknown stage"), entry, "run cache"))

    def _holds(self, outer: Content, inner: Content) -> bool:
        """Whether ``inner`` is ``outer`` or a file in it."""
        name = inner[0].removeprefix(f"{outer[0]}/")
        return inner == outer or (name != inner[0] and self.listing(*outer).get(name) == inner[1])

    def _files(self, path: str) -> list[str]:
        files = (
            file
            for file in (self.root / path).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        )
        return [file.relative_to(self.root / path).as_posix() for file in files]

    def _check_object(self, md5: str) -> list[Problem]:
        found, place = md5_of(self.object(md5)), os.path.relpath(self.object(md5), self.root)
        problem = Problem(
            place, "differs" if found else "absent", md5, found, f"rm -f {place}, then dvc pull"
        )
        return [] if found and found == md5.removesuffix(".dir") else [problem]


def _stage(name: str, entry: dict[str, Any], found_in: str) -> Stage:
    deps, outs = (
        {item["path"]: item["md5"] for item in entry.get(side, []) if "md5" in item}
        for side in ("deps", "outs")
    )
    return Stage(name, str(entry.get("cmd", "")), deps, outs, entry.get("params", {}), found_in)
