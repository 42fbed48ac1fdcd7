"""Download a file or copy it from a folder: with a size limit, resumable, verified, written atomically."""

import ipaddress
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import requests
import urllib3

from pipeline.data.sources import RemoteFile
from pipeline.environment import for_child
from pipeline.errors import DarkroomError
from pipeline.files import atomic_folder, atomic_write, sha256
from pipeline.process import DVC, die_with_parent

MAX_REDIRECTS = 3
CHUNK = 1 << 16
REPORT_SECONDS = 5.0
EPOCH = (0, 0)  # access and modification times for complete files: a recent file may still be being written
REASONS = {
    "NameResolution": "the host name cannot be resolved",
    "timed out": "timed out",
    "refused": "connection refused",
}


class TransferFailed(Exception):
    """The message is the reason. ``transient`` failures may succeed when they are tried again."""

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class WrongContent(TransferFailed):
    """The address has another file."""


@dataclass(frozen=True)
class RetryPolicy:
    """Attempts, time limits and pauses for one address."""

    num_attempts: int = 3
    timeout_seconds: float = 30.0  # for a response, and the period over which the rate is measured
    min_bytes_per_second: int = 1000
    pause_seconds: float = 1.0  # before the second attempt; doubled before each further one


DEFAULT = RetryPolicy()


def fetch(file: RemoteFile, addresses: list[str], folder: Path, retry: RetryPolicy = DEFAULT) -> Path:
    """Get and verify ``folder/<name>`` from the first address that works (https URL, path or 'package:path').

    An interrupted download is kept in ``<name>.part`` and resumed. Raises ``DarkroomError`` with the reason
    for each address.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    if target.exists() and sha256(target) == file.sha256:
        return target
    failures = ""
    for address in addresses:
        try:
            _try_repeatedly(partial(_transfer, file, address, part, retry), retry)
            return part.replace(target)
        except TransferFailed as failure:
            failures += f"\n  {address} {failure}"
    what = f"cannot be downloaded from any address:{masked(failures)}"
    remedy = "connect to the network, or set DARKROOM_MIRROR to a folder or URL that contains <source>/<file>"
    raise DarkroomError(what, where=file.name, remedy=remedy)


def fetch_zip(
    url: str, target: Path, max_bytes: int, timeout_seconds: float, retry: RetryPolicy = DEFAULT
) -> Path:
    """Download a zip of unknown size and digest from an https URL to ``target``, atomically.

    Raises ``TransferFailed``, also if it has more than ``max_bytes`` or takes longer than
    ``timeout_seconds``.
    """
    deadline = time.monotonic() + timeout_seconds

    def download() -> None:
        with atomic_write(target) as temporary:
            complete = _download(url, temporary, max_bytes, retry, exact=False, deadline=deadline)
            if not zipfile.is_zipfile(temporary):
                raise TransferFailed("did not send a complete zip file", transient=not complete)
            os.utime(temporary, EPOCH)

    _try_repeatedly(download, retry, deadline)
    return target


def fetch_from_repository(
    repository: str, path: str, root: Path, target: Path, timeout_seconds: float
) -> Path:
    """Get ``path`` of a DVC repository (a git URL, or a path relative to ``root``) into ``target``.

    Git does not prompt for a password. Raises ``TransferFailed``; no process is left running then.
    """
    with atomic_folder(target) as folder:
        command = [*DVC, "get", "--out", str(folder / "pictures"), "--", repository, path]
        options: dict[str, Any] = {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": PIPE, "errors": "replace"}
        options |= {"start_new_session": True, "preexec_fn": die_with_parent}
        env = for_child({"GIT_TERMINAL_PROMPT": "0"})
        with subprocess.Popen(command, cwd=root, env=env, **options) as child:
            try:
                _, output = child.communicate(timeout=timeout_seconds)
            except subprocess.TimeoutExpired:
                raise TransferFailed(f"timed out after {timeout_seconds:,.0f} s", transient=True) from None
            finally:
                if child.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
        if child.returncode:
            errors = [line[7:307] for line in output.splitlines() if line.startswith("ERROR: ")]
            reason = errors[0] if errors else f"dvc get ended with exit code {child.returncode}"
            raise TransferFailed(f"cannot be downloaded: {reason}", transient=True)
        for written in (folder / "pictures", *(folder / "pictures").rglob("*")):
            os.utime(written, EPOCH, follow_symlinks=False)
    return target / "pictures"


def masked(text: str) -> str:
    """``text`` without the passwords, tokens and signatures in its URLs."""
    return re.sub(r"\?\S*=\S*", "?***", re.sub(r"//[^/@\s]*@", "//***@", text))


def line_printer() -> Callable[[str], None]:
    """A function that prints a line to standard error, at most one every few seconds."""
    last = time.monotonic()

    def show(line: str) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    return show


def _try_repeatedly(attempt: Callable[[], Any], retry: RetryPolicy, deadline: float = math.inf) -> None:
    """Call ``attempt`` until it succeeds. Raises its last ``TransferFailed``."""
    for number in range(retry.num_attempts):
        if number:
            time.sleep(retry.pause_seconds * 2 ** (number - 1))
        try:
            attempt()
            return
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failure = TransferFailed(f"failed: {_describe(error)}", transient=True)
        except TransferFailed as error:
            failure = error
        if not failure.transient or time.monotonic() > deadline:
            break
    raise failure


def _transfer(file: RemoteFile, address: str, part: Path, retry: RetryPolicy) -> None:
    """Complete ``part`` from ``address`` and verify it."""
    resumed = part.exists() and 0 < part.stat().st_size <= file.num_bytes
    if not resumed:
        part.unlink(missing_ok=True)
    try:
        if local := _local_path(address):
            shutil.copyfile(local, part)
        else:
            _download(address, part, file.num_bytes, retry)
        if (digest := sha256(part)) != file.sha256:
            raise WrongContent(f"has the SHA-256 {digest[:12]}..., not the published {file.sha256[:12]}...")
    except WrongContent as failure:
        part.unlink(missing_ok=True)
        failure.transient = resumed  # it may be correct without the earlier part
        raise
    except requests.RequestException:
        raise
    except OSError as error:
        raise TransferFailed(f"failed: {error.strerror or error}") from None


def _download(
    url: str, path: Path, size: int, retry: RetryPolicy, *, exact: bool = True, deadline: float = math.inf
) -> bool:
    """Append the missing bytes of ``url`` to ``path``. Returns whether the server gave their number.

    The file has ``size`` bytes, or at most ``size`` if not ``exact``.
    """
    have = path.stat().st_size if path.exists() else 0
    if exact and have == size:
        return True
    with requests.Session() as session, _open(session, url, have, retry) as response:
        status, length = response.status_code, response.headers.get("Content-Length", "")
        if status == 416:
            raise WrongContent("does not have the requested range of bytes")
        if status not in (200, 206):
            transient = status >= 500 or status in (408, 429)
            raise TransferFailed(f"responded {status} {response.reason}", transient)
        if "text/html" in response.headers.get("Content-Type", ""):
            raise TransferFailed("returned a web page, not the file")
        have = have if status == 206 else 0  # 200: the server sends the file from its beginning
        total = have + int(length) if length.isdigit() else None
        if total is not None and (total > size or (exact and total < size)):
            limit = f", not {size:,}" if exact else f"; at most {size:,} are allowed"
            raise WrongContent(f"has {total:,} bytes{limit}")
        with open(path, "ab" if have else "wb") as out, _progress(path.name, total or size) as show:
            for chunk in _chunks(response, retry):
                if (have := have + len(chunk)) > size:
                    raise WrongContent(f"sent more than the {size:,} bytes that are allowed")
                if time.monotonic() > deadline:
                    raise TransferFailed(f"reached its time limit after {have:,} bytes", transient=True)
                out.write(chunk)
                show(have)
    expected = size if exact else total
    if expected is not None and have < expected:
        raise TransferFailed(f"stopped at {have:,} of {expected:,} bytes", transient=True)
    return total is not None


def _open(session: requests.Session, url: str, have: int, retry: RetryPolicy) -> requests.Response:
    """Follow at most ``MAX_REDIRECTS`` redirects to https URLs.

    An http server on this machine may redirect to itself.
    """
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    options: dict[str, Any] = {"stream": True, "allow_redirects": False, "headers": headers}
    secure = False
    for _ in range(MAX_REDIRECTS + 1):
        if not _is_safe(url, secure):
            raise TransferFailed(f"redirects to {url}, which is not https")
        response = session.get(url, timeout=retry.timeout_seconds, **options)
        if not response.is_redirect:
            return response
        response.close()
        secure = url.startswith("https:")
        url = urljoin(url, response.headers["Location"])
    raise TransferFailed(f"redirects more than {MAX_REDIRECTS} times")


def _chunks(response: requests.Response, retry: RetryPolicy) -> Iterator[bytes]:
    """The body in chunks, not decompressed. Raises ``TransferFailed`` if the rate is too low."""
    began, received = time.monotonic(), 0
    while chunk := response.raw.read1(CHUNK, decode_content=False):
        yield chunk
        received += len(chunk)
        if (elapsed := time.monotonic() - began) > retry.timeout_seconds:
            if received < retry.min_bytes_per_second * elapsed:
                rate = f"{received / elapsed:,.0f} bytes a second"
                raise TransferFailed(f"is too slow: {rate}", transient=True)
            began, received = time.monotonic(), 0


def _is_safe(url: str, after_https: bool) -> bool:
    """Whether ``url`` is https, or http on this machine (a mirror or a test)."""
    parts = urlsplit(url)
    if parts.scheme != "http" or after_https:
        return parts.scheme == "https"
    with suppress(ValueError):
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    return False


def _local_path(address: str) -> Path | None:
    if address.startswith("package:"):  # find_spec locates the package without importing it
        package, _, rest = address.removeprefix("package:").partition("/")
        spec = find_spec(package)
        return Path(spec.origin).parent / rest if spec and spec.origin else Path(rest)
    if address.startswith("file://"):
        return Path(unquote(urlsplit(address).path))
    return None if "://" in address else Path(address)


def _describe(error: Exception) -> str:
    text = str(getattr(error, "reason", "") or error)
    known = (reason for pattern, reason in REASONS.items() if pattern in f"{text} {error}")
    return next(known, text.split("\n")[0][:120] or type(error).__name__)


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that shows the received bytes: as a bar on a terminal, else as a line every few seconds."""
    if not sys.stderr.isatty():
        show = line_printer()
        yield lambda have: show(f"{name}: {have / 1e6:,.1f} of {total / 1e6:,.1f} MB")
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda have: bar.update(task, completed=have)
