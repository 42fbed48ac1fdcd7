"""Synchronise a training's folder with a storage address (s3://..., file://...) that all machines can reach.

Rank 0 writes to a local folder and pushes new files. A machine that resumes the training pulls them first.
Files are written atomically. A file that marks others as complete (a checkpoint's .json, finished.json) is
pushed after them.
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
LOG, GROWTH = "metrics.jsonl", 1.1
PUSHED_LAST = ("finished.json", "manifest.json")
NOT_PUSHED = ("ray/", "system.jsonl", "run.json")  # only the driver uses these


class Mirror:
    """A local folder and its copy at ``address``. Only one machine may write at a time.

    Raises ``DarkroomError`` if the address fails.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self._filesystem, self._root = open_address(address)
        self._pushed: dict[str, tuple[int, int]] = {}  # name -> size and time of the pushed local file
        self._pulled: dict[str, Any] = {}  # name -> version of the pulled remote file

    def push(self, whole: bool = True) -> None:
        """Upload new and changed files, and delete the remote copies of checkpoints deleted here.

        Unless ``whole``, the log of metrics is uploaded only after it has grown by a tenth: a file cannot be
        appended to, and uploading it at each change would take time quadratic in its length.
        """
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        files = {path.relative_to(self.folder).as_posix(): path for path in paths}
        for name in sorted(files, key=_transfer_order):
            if _is_hidden(name) or name.startswith(NOT_PUSHED):
                continue
            try:
                stat = files[name].stat()
                version, pushed = (stat.st_size, stat.st_mtime_ns), self._pushed.get(name, (0, 0))
                if pushed == version or (name == LOG and not whole and version[0] < GROWTH * pushed[0]):
                    continue
                data = files[name].read_bytes()
            except FileNotFoundError:  # deleted in the meantime
                continue
            with self._storage_errors():
                self._filesystem.pipe_file(f"{self._root}/{name}", data)
            self._pushed[name] = version
        for name in [name for name in self._pushed if name.startswith("checkpoints/") and name not in files]:
            with self._storage_errors():
                self._filesystem.rm_file(f"{self._root}/{name}")
            del self._pushed[name]

    def send(self, name: str) -> None:
        """Upload one file."""
        with self._storage_errors():
            self._filesystem.pipe_file(f"{self._root}/{name}", (self.folder / name).read_bytes())

    def has(self, name: str) -> bool:
        """Whether the file ``name`` is at the address."""
        with self._storage_errors():
            self._filesystem.invalidate_cache()
            return self._filesystem.exists(f"{self._root}/{name}")

    def remove(self, name: str) -> None:
        """Remove the file ``name`` at the address, if it is there."""
        if self.has(name):
            with self._storage_errors():
                self._filesystem.rm_file(f"{self._root}/{name}")

    def pull(self, *prefixes: str) -> None:
        """Download the new and changed files, or only those whose names start with one of ``prefixes``."""
        with self._storage_errors():
            self._filesystem.invalidate_cache()
            exists = self._filesystem.exists(self._root)
            found = self._filesystem.find(self._root, detail=True) if exists else {}
        files = {path[len(self._root) + 1 :]: info for path, info in found.items()}
        for name in sorted(files, key=_transfer_order):
            if _is_hidden(name) or (prefixes and not name.startswith(prefixes)):
                continue
            version = [files[name].get(key) for key in ("size", "ETag", "mtime")]
            if self._pulled.get(name) == version:
                continue
            with self._storage_errors():
                data = self._filesystem.cat_file(f"{self._root}/{name}")
            if name == LOG:
                _append_lines(self.folder / name, data)
            else:
                with atomic_write(self.folder / name) as temporary:
                    temporary.write_bytes(data)
            self._pulled[name] = version
            stat = (self.folder / name).stat()
            self._pushed[name] = (stat.st_size, stat.st_mtime_ns)

    @contextlib.contextmanager
    def push_periodically(self) -> Iterator[None]:
        """Push every two seconds during the block, and once more at its end, also if it fails."""
        stop = threading.Event()

        def push_until_stopped() -> None:
            while not stop.wait(PUSH_SECONDS):
                with contextlib.suppress(DarkroomError):  # the last push raises the error
                    self.push(whole=self._has_new_checkpoint())

        thread = threading.Thread(target=push_until_stopped, name="storage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.push()

    def _has_new_checkpoint(self) -> bool:
        names = (f"checkpoints/{path.name}" for path in (self.folder / "checkpoints").glob("*.json"))
        return any(name not in self._pushed for name in names)

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Turn errors of the file system into ``DarkroomError``."""
        try:
            yield
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            what, remedy = f"the storage does not answer: {reason}", "check the address and its credentials"
            raise DarkroomError(what, where=self.address, remedy=remedy) from error


def open_address(address: str) -> tuple[Any, str]:
    """The fsspec file system of ``address`` and the path in it.

    Raises ``BadInput`` if the address cannot be used.
    """
    import fsspec

    try:
        options = {"auto_mkdir": True} if address.startswith("file:") else {}
        filesystem, root = fsspec.core.url_to_fs(address, **options)
    except (ImportError, ValueError) as error:
        remedy = "for s3:// run pip install s3fs, or use a folder"
        raise BadInput(f"cannot be used: {error}", where="DARKROOM_STORAGE", remedy=remedy) from None
    return filesystem, root.rstrip("/")


def _transfer_order(name: str) -> tuple[bool, bool, str]:
    return name in PUSHED_LAST, name.endswith(".json"), name


def _append_lines(path: Path, data: bytes) -> None:
    """Append the lines of steps after the last one in ``path``.

    Existing lines stay: MLflow may already have them.
    """
    from pipeline.core import metrics_log

    lines = metrics_log.read(path)
    last = lines[-1]["step"] if lines else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        for line in data.splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                if line.endswith(b"\n") and json.loads(line)["step"] > last:
                    file.write(line)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
