"""A training's folder, kept alike on this machine and at a storage address that every machine reaches (s3://..., file://...).

Worker 0 writes its own folder and pushes what is new; whoever goes on elsewhere pulls it first. A file is pushed whole, and what
says that another is whole (a checkpoint's .json, finished.json) after it.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput, DarkroomError
from pipeline.files import atomic_write

PUSH_SECONDS = 2.0
LAST = ("finished.json", "manifest.json")
LOCAL = ("ray/", "system.jsonl", "run.json")  # of the driver alone


class Mirror:
    """One folder here and the same at ``address``. One side writes at a time. Raises ``DarkroomError`` where the address fails."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self._there, self._root = open_address(address)
        self._pushed: dict[str, tuple[int, int]] = {}
        self._pulled: dict[str, Any] = {}

    def push(self) -> None:
        """Send what is new or changed here; forget there the checkpoints that were forgotten here."""
        files = {
            path.relative_to(self.folder).as_posix(): path
            for path in self.folder.rglob("*")
            if path.is_file()
        }
        wanted = {
            name: path for name, path in files.items() if not _is_hidden(name) and not name.startswith(LOCAL)
        }
        for name in sorted(wanted, key=lambda name: (name in LAST, name.endswith(".json"), name)):
            try:
                found = wanted[name].stat()
                data = (
                    wanted[name].read_bytes()
                    if self._pushed.get(name) != (found.st_size, found.st_mtime_ns)
                    else None
                )
            except FileNotFoundError:  # forgotten by now
                continue
            if data is not None:
                with self._said():
                    self._there.pipe_file(f"{self._root}/{name}", data)
                self._pushed[name] = (found.st_size, found.st_mtime_ns)
        for name in [name for name in self._pushed if name.startswith("checkpoints/") and name not in files]:
            with self._said():
                self._there.rm_file(f"{self._root}/{name}")
            del self._pushed[name]

    def pull(self, *prefixes: str) -> None:
        """Bring what begins with one of ``prefixes`` (everything without them) and is not here as it is there."""
        with self._said():
            self._there.invalidate_cache()
            found = self._there.find(self._root, detail=True) if self._there.exists(self._root) else {}
        names = {path[len(self._root) + 1 :]: facts for path, facts in found.items()}
        for name in sorted(names, key=lambda name: (name in LAST, name.endswith(".json"), name)):
            mark = [names[name].get(key) for key in ("size", "ETag", "mtime")]
            if (
                (prefixes and not name.startswith(prefixes))
                or self._pulled.get(name) == mark
                or _is_hidden(name)
            ):
                continue
            with self._said():
                data = self._there.cat_file(f"{self._root}/{name}")
            if name == "metrics.jsonl":
                _append_lines(self.folder / name, data)
            else:
                with atomic_write(self.folder / name) as beside:
                    beside.write_bytes(data)
            self._pulled[name] = mark
            here = (self.folder / name).stat()
            self._pushed[name] = (here.st_size, here.st_mtime_ns)

    @contextlib.contextmanager
    def pushing(self) -> Iterator[None]:
        """Push every two seconds beside the block, and all of it at its end, whether it succeeds or not."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(PUSH_SECONDS):
                with contextlib.suppress(DarkroomError):  # the last push says what is wrong
                    self.push()

        thread = threading.Thread(target=work, name="storage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.push()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise DarkroomError(
                f"the storage does not answer: {reason}",
                where=self.address,
                remedy="check the address and its keys",
            ) from error


def open_address(address: str) -> tuple[Any, str]:
    """The file system of ``address`` and the path within it. Raises ``BadInput`` for one that cannot be used."""
    import fsspec

    try:
        there, root = fsspec.core.url_to_fs(
            address, **({"auto_mkdir": True} if address.startswith("file:") else {})
        )
    except (ImportError, ValueError) as error:
        raise BadInput(
            f"cannot be used: {error}",
            where="DARKROOM_STORAGE",
            remedy="pip install 's3fs' for s3://, or name a folder",
        ) from None
    return there, root.rstrip("/")


def _append_lines(path: Path, data: bytes) -> None:
    """Add the lines of later steps than are here: the first writing of a step stands, since it may have been told already."""
    from pipeline.core import metrics_log

    known = metrics_log.read(path)
    last = known[-1]["step"] if known else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        for line in data.splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                if line.endswith(b"\n") and json.loads(line)["step"] > last:
                    file.write(line)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
