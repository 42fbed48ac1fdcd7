"""Download a file or copy it from a folder: with a size limit, resumable, verified, written atomically."""

import ipaddress
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
WEB_PAGE = "returned a web page, not the file"
CHUNK = 1 << 16
REPORT_SECONDS = 5.0
EPOCH = (0, 0)  # access and modification times for complete files: a recent file may still be being written


class TransferFailed(Exception):
    """The message is the reason. ``transient`` failures may succeed when they are tried again."""

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


@dataclass(frozen=True)
class RetryPolicy:
    """Attempts, time limits and pauses for one address."""

    num_attempts: int = 3
    timeout_seconds: float = 30.0  # for a response, and the period over which the rate is measured
    min_bytes_per_second: int = 1000
    pause_seconds: float = 1.0  # before the second attempt; doubled before each further one


def fetch(file: RemoteFile, addresses: list[str], folder: Path, retry: RetryPolicy | None = None) -> Path:
    """Get and verify ``folder/<name>`` from the first address that works (https URL, path or 'package:path').

    An interrupted download is kept in ``<name>.part`` and resumed. Raises ``DarkroomError`` with the reason
    for each address.
    """
    retry = retry or RetryPolicy()
    target, part = folder / file.name, folder / f"{file.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    if target.exists() and sha256(target) == file.sha256:
        return target
    failures = []
    for address in addresses:
        for attempt in range(retry.num_attempts):
            try:
                _transfer(file, address, part, retry)
                part.replace(target)
                return target
            except TransferFailed as error:
                failure = error
            if not failure.transient:
                break
            if attempt + 1 < retry.num_attempts:
                time.sleep(retry.pause_seconds * 2**attempt)
        failures.append(f"\n  {address} {failure}")
    what = "cannot be downloaded from any address:" + masked("".join(failures))
    remedy = "connect to the network, or set DARKROOM_MIRROR to a folder or URL that contains <source>/<file>"
    raise DarkroomError(what, where=file.name, remedy=remedy)


def fetch_zip(
    url: str, target: Path, max_bytes: int, timeout_seconds: float, retry: RetryPolicy | None = None
) -> Path:
    """Download a zip of unknown size and digest from an https URL to ``target``, atomically.

    Raises ``TransferFailed``, also if it has more than ``max_bytes`` or takes longer than
    ``timeout_seconds``.
    """
    retry, deadline = retry or RetryPolicy(), time.monotonic() + timeout_seconds
    for attempt in range(retry.num_attempts):
        if attempt:
            time.sleep(retry.pause_seconds * 2 ** (attempt - 1))
        try:
            with atomic_write(target) as temporary:
                _download_zip(url, temporary, max_bytes, deadline, retry)
                os.utime(temporary, EPOCH)
            return target
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failure = TransferFailed(f"failed: {_describe(error)}", transient=True)
        except TransferFailed as error:
            failure = error
        if not failure.transient or time.monotonic() > deadline:
            break
    raise failure


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


def _transfer(file: RemoteFile, address: str, part: Path, retry: RetryPolicy) -> None:
    """Complete ``part`` from ``address`` and verify it."""
    resumed = part.exists() and 0 < part.stat().st_size <= file.num_bytes
    if not resumed:
        part.unlink(missing_ok=True)
    local = _local_path(address)
    try:
        if local is None:
            _download(file, address, part, retry)
        elif not local.is_file():
            raise TransferFailed("is not a file")
        elif local.stat().st_size != file.num_bytes:
            raise TransferFailed(f"has {local.stat().st_size:,} bytes, not {file.num_bytes:,}")
        else:
            shutil.copyfile(local, part)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise TransferFailed(f"failed: {_describe(error)}", transient=True) from None
    except OSError as error:
        raise TransferFailed(f"failed: {error.strerror or error}") from None
    if (digest := sha256(part)) != file.sha256:
        part.unlink()
        reason = f"has the SHA-256 {digest[:12]}..., not the published {file.sha256[:12]}..."
        raise TransferFailed(reason, transient=resumed)


def _download(file: RemoteFile, url: str, part: Path, retry: RetryPolicy) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have == file.num_bytes:
        return
    with requests.Session() as session, _open(session, url, have, retry) as response:
        if response.status_code == 416:
            part.unlink(missing_ok=True)
            raise TransferFailed("does not have the requested range of bytes", transient=True)
        _check_response(response)
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == 206 and not content_range.startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            raise TransferFailed("returned a different range of bytes than requested", transient=True)
        if response.status_code == 200:  # the server does not resume: it sends the file from the beginning
            have = 0
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and have + int(length) != file.num_bytes:
            part.unlink(missing_ok=True)
            reason = f"has {have + int(length):,} bytes, not {file.num_bytes:,}"
            raise TransferFailed(reason, transient=have > 0)
        with open(part, "ab" if have else "wb") as out, _progress(file.name, file.num_bytes) as show:
            for chunk in _chunks(response, retry):
                if not have and chunk.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
                    raise TransferFailed(WEB_PAGE)
                if (have := have + len(chunk)) > file.num_bytes:
                    out.truncate(0)
                    raise TransferFailed(f"sent more than the {file.num_bytes:,} bytes of this file")
                out.write(chunk)
                show(have)
    if have < file.num_bytes:
        raise TransferFailed(f"stopped at {have:,} of {file.num_bytes:,} bytes", transient=True)


def _download_zip(url: str, path: Path, max_bytes: int, deadline: float, retry: RetryPolicy) -> None:
    with requests.Session() as session, _open(session, url, 0, retry) as response, open(path, "wb") as out:
        _check_response(response)
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) > max_bytes:
            raise TransferFailed(f"has {int(length):,} bytes; at most {max_bytes:,} are allowed")
        have = 0
        with _progress(path.name, int(length) if length.isdigit() else max_bytes) as show:
            for chunk in _chunks(response, retry):
                if (have := have + len(chunk)) > max_bytes:
                    raise TransferFailed(f"sent more than the allowed {max_bytes:,} bytes")
                if time.monotonic() > deadline:
                    raise TransferFailed(f"reached its time limit after {have:,} bytes", transient=True)
                out.write(chunk)
                show(have)
        if length.isdigit() and have < int(length):
            raise TransferFailed(f"stopped at {have:,} of {int(length):,} bytes", transient=True)
    if not zipfile.is_zipfile(path):
        raise TransferFailed("did not send a complete zip file", transient=not length)


def _check_response(response: requests.Response) -> None:
    if response.status_code not in (200, 206):
        transient = response.status_code >= 500 or response.status_code in (408, 429)
        raise TransferFailed(f"responded {response.status_code} {response.reason}", transient)
    if "text/html" in response.headers.get("Content-Type", ""):
        raise TransferFailed(WEB_PAGE)


def _open(session: requests.Session, url: str, have: int, retry: RetryPolicy) -> requests.Response:
    """Follow at most ``MAX_REDIRECTS`` redirects to https URLs.

    An http server on this machine may redirect to itself.
    """
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    for _ in range(MAX_REDIRECTS + 1):
        if not _is_safe(url):
            raise TransferFailed(f"redirects to {url}, which is not https")
        response = session.get(
            url, headers=headers, stream=True, timeout=retry.timeout_seconds, allow_redirects=False
        )
        if not response.is_redirect:
            return response
        location = urljoin(url, response.headers["Location"])
        response.close()
        if urlsplit(url).scheme == "https" and urlsplit(location).scheme != "https":
            raise TransferFailed(f"redirects to {location}, which is not https")
        url = location
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


def _is_safe(url: str) -> bool:
    """Whether ``url`` is https, or http on this machine (a mirror or a test)."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return True
    try:
        return parts.scheme == "http" and (
            parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
        )
    except ValueError:
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
    for pattern, meaning in (
        ("NameResolution", "the host name cannot be resolved"),
        ("timed out", "timed out"),
        ("refused", "connection refused"),
    ):
        if pattern in text or pattern in str(error):
            return meaning
    return text.splitlines()[0][:120] if text else type(error).__name__


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that shows the received bytes: as a bar on a terminal, else as a line every few seconds."""
    if sys.stderr.isatty():
        from rich import progress
        from rich.console import Console

        columns = (
            "{task.description}",
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total)
            yield lambda have: bar.update(task, completed=have)
        return
    last = time.monotonic()

    def print_line(have: int) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            print(f"{name}: {have / 1e6:,.1f} of {total / 1e6:,.1f} MB", file=sys.stderr, flush=True)

    yield print_line
