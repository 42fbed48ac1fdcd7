"""One file over the network or from a folder: limited, resumed, verified, and moved into place whole."""

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
CHUNK = 1 << 16
REPORT_SECONDS = 5.0
SETTLED = (0, 0)  # access and change of what came whole: nobody is still writing it


class TransferFailed(Exception):
    """Why an address did not give the file. ``passing``: another attempt may go better."""

    def __init__(self, why: str, passing: bool = False) -> None:
        super().__init__(why)
        self.passing = passing


@dataclass(frozen=True)
class Patience:
    """When an address is given up."""

    num_attempts: int = 3
    timeout_seconds: float = 30.0  # without an answer, or in which fewer than ``slowest`` bytes a second come
    slowest: int = 1000
    pause_seconds: float = 1.0  # before the second attempt; doubled before each further one


def fetch(file: RemoteFile, addresses: list[str], folder: Path, patience: Patience | None = None) -> Path:
    """``folder/<name>``, verified, from the first address (an https URL, a path or 'package:path') that gives it.

    What came before an interruption lies in ``<name>.part`` and is gone on from. Raises ``DarkroomError`` that names every
    address and why it failed.
    """
    patience = patience or Patience()
    whole, part = folder / file.name, folder / f"{file.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    if whole.exists() and sha256(whole) == file.sha256:
        return whole
    failures = []
    for address in addresses:
        for attempt in range(patience.num_attempts):
            try:
                _transfer(file, address, part, patience)
                part.replace(whole)
                return whole
            except TransferFailed as failure:
                reason = failure
            if not reason.passing:
                break
            if attempt + 1 < patience.num_attempts:
                time.sleep(patience.pause_seconds * 2**attempt)
        failures.append(f"\n  {address} {reason}")
    raise DarkroomError(
        "no address gives this file:" + masked("".join(failures)),
        where=file.name,
        remedy="go online, or set DARKROOM_MIRROR to a folder or URL that holds <source>/<file>",
    )


def fetch_zip(
    url: str, target: Path, max_bytes: int, timeout_seconds: float, patience: Patience | None = None
) -> Path:
    """Make ``target`` the zip at an https URL whose length and digest nobody publishes, anew and whole, or leave it as it was.

    It may have ``max_bytes`` and take ``timeout_seconds``. Raises ``TransferFailed``.
    """
    patience, deadline = patience or Patience(), time.monotonic() + timeout_seconds
    for attempt in range(patience.num_attempts):
        if attempt:
            time.sleep(patience.pause_seconds * 2 ** (attempt - 1))
        try:
            with atomic_write(target) as beside:
                _download_zip(url, beside, max_bytes, deadline, patience)
                os.utime(beside, SETTLED)
            return target
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failure = TransferFailed(f"failed: {_plain(error)}", passing=True)
        except TransferFailed as error:
            failure = error
        if not failure.passing or time.monotonic() > deadline:
            break
    raise failure


def fetch_from_repository(
    repository: str, path: str, root: Path, target: Path, timeout_seconds: float
) -> Path:
    """``path`` of a DVC repository (a git URL, or a path relative to ``root``) as a folder or file in the folder ``target``.

    Nobody is asked for a password. Raises ``TransferFailed``; then, and when time is over, no process is left.
    """
    with atomic_folder(target) as folder:
        command = [*DVC, "get", "--out", str(folder / "pictures"), "--", repository, path]
        apart: dict[str, Any] = {
            "start_new_session": True,
            "preexec_fn": die_with_parent,
            "env": for_child({"GIT_TERMINAL_PROMPT": "0"}),
        }
        with subprocess.Popen(
            command, cwd=root, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, errors="replace", **apart
        ) as child:
            try:
                _, said = child.communicate(timeout=timeout_seconds)
            except subprocess.TimeoutExpired:
                raise TransferFailed(f"is not here after {timeout_seconds:,.0f} s", passing=True) from None
            finally:
                if child.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
        if child.returncode:
            reasons = [
                line.removeprefix("ERROR: ")[:300] for line in said.splitlines() if line.startswith("ERROR: ")
            ]
            raise TransferFailed(
                f"cannot be had: {reasons[0] if reasons else f'dvc get ended with {child.returncode}'}",
                passing=True,
            )
        for made in (folder / "pictures", *(folder / "pictures").rglob("*")):
            os.utime(made, SETTLED, follow_symlinks=False)
    return target / "pictures"


def masked(text: str) -> str:
    """``text`` without the passwords, tokens and signatures that its URLs carry."""
    return re.sub(r"\?\S*=\S*", "?***", re.sub(r"//[^/@\s]*@", "//***@", text))


def _transfer(file: RemoteFile, address: str, part: Path, patience: Patience) -> None:
    """Complete ``part`` from ``address`` and verify it."""
    resumed = part.exists() and 0 < part.stat().st_size <= file.num_bytes
    if not resumed:
        part.unlink(missing_ok=True)
    local = _local_path(address)
    try:
        if local is None:
            _download(file, address, part, patience)
        elif not local.is_file():
            raise TransferFailed("is no file")
        elif local.stat().st_size != file.num_bytes:
            raise TransferFailed(f"has {local.stat().st_size:,} bytes, not {file.num_bytes:,}")
        else:
            shutil.copyfile(local, part)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise TransferFailed(f"failed: {_plain(error)}", passing=True) from None
    except OSError as error:
        raise TransferFailed(f"failed: {error.strerror or error}") from None
    if (digest := sha256(part)) != file.sha256:
        part.unlink()
        raise TransferFailed(
            f"gives other bytes: SHA-256 {digest[:12]}..., not the published {file.sha256[:12]}...",
            passing=resumed,
        )


def _download(file: RemoteFile, url: str, part: Path, patience: Patience) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have == file.num_bytes:
        return
    with requests.Session() as session, _open(session, url, have, patience) as response:
        if response.status_code == 416:
            part.unlink(missing_ok=True)
            raise TransferFailed("has no such range of bytes", passing=True)
        _check_answer(response)
        if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        ):
            part.unlink(missing_ok=True)
            raise TransferFailed("gives another range of bytes than asked for", passing=True)
        if response.status_code == 200:  # from the beginning: the server does not resume
            have = 0
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and have + int(length) != file.num_bytes:
            part.unlink(missing_ok=True)
            raise TransferFailed(
                f"offers {have + int(length):,} bytes, not {file.num_bytes:,}", passing=have > 0
            )
        with open(part, "ab" if have else "wb") as out, _progress(file.name, file.num_bytes) as show:
            for chunk in _chunks(response, patience):
                if not have and chunk.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
                    raise TransferFailed("gives a web page, not the file")
                if (have := have + len(chunk)) > file.num_bytes:
                    out.truncate(0)
                    raise TransferFailed(f"gives more than the {file.num_bytes:,} bytes of this file")
                out.write(chunk)
                show(have)
    if have < file.num_bytes:
        raise TransferFailed(f"stops at {have:,} of {file.num_bytes:,} bytes", passing=True)


def _download_zip(url: str, path: Path, max_bytes: int, deadline: float, patience: Patience) -> None:
    with requests.Session() as session, _open(session, url, 0, patience) as response, open(path, "wb") as out:
        _check_answer(response)
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) > max_bytes:
            raise TransferFailed(f"offers {int(length):,} bytes; {max_bytes:,} are allowed")
        have = 0
        with _progress(path.name, int(length) if length.isdigit() else max_bytes) as show:
            for chunk in _chunks(response, patience):
                if (have := have + len(chunk)) > max_bytes:
                    raise TransferFailed(f"gives more than the {max_bytes:,} bytes that are allowed")
                if time.monotonic() > deadline:
                    raise TransferFailed(f"has given {have:,} bytes when its time was over", passing=True)
                out.write(chunk)
                show(have)
        if length.isdigit() and have < int(length):
            raise TransferFailed(f"stops at {have:,} of {int(length):,} bytes", passing=True)
    if not zipfile.is_zipfile(path):
        raise TransferFailed("gives no whole zip file", passing=not length)


def _check_answer(response: requests.Response) -> None:
    if response.status_code not in (200, 206):
        passing = response.status_code >= 500 or response.status_code in (408, 429)
        raise TransferFailed(f"answers {response.status_code} {response.reason}", passing)
    if "text/html" in response.headers.get("Content-Type", ""):
        raise TransferFailed("gives a web page, not the file")


def _open(session: requests.Session, url: str, have: int, patience: Patience) -> requests.Response:
    """The response at the end of at most ``MAX_REDIRECTS`` redirects, each to https (from this machine's http also to itself)."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    for _ in range(MAX_REDIRECTS + 1):
        if not _is_safe(url):
            raise TransferFailed(f"leads to {url}, which is not https")
        response = session.get(
            url, headers=headers, stream=True, timeout=patience.timeout_seconds, allow_redirects=False
        )
        if not response.is_redirect:
            return response
        further = urljoin(url, response.headers["Location"])
        response.close()
        if urlsplit(url).scheme == "https" and urlsplit(further).scheme != "https":
            raise TransferFailed(f"leads to {further}, which is not https")
        url = further
    raise TransferFailed(f"redirects more than {MAX_REDIRECTS} times")


def _chunks(response: requests.Response, patience: Patience) -> Iterator[bytes]:
    """The body as it was sent, never unpacked, in pieces as they come, so that a slow drip is noticed."""
    since, received = time.monotonic(), 0
    while chunk := response.raw.read1(CHUNK, decode_content=False):
        yield chunk
        received += len(chunk)
        if (elapsed := time.monotonic() - since) > patience.timeout_seconds:
            if received < patience.slowest * elapsed:
                raise TransferFailed(f"gives only {received / elapsed:,.0f} bytes a second", passing=True)
            since, received = time.monotonic(), 0


def _is_safe(url: str) -> bool:
    """https, or http to this machine itself: a mirror or a test."""
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
    if address.startswith("package:"):  # located without importing it
        package, _, rest = address.removeprefix("package:").partition("/")
        spec = find_spec(package)
        return Path(spec.origin).parent / rest if spec and spec.origin else Path(rest)
    if address.startswith("file://"):
        return Path(unquote(urlsplit(address).path))
    return None if "://" in address else Path(address)


def _plain(error: Exception) -> str:
    text = str(getattr(error, "reason", "") or error)
    for sign, meaning in (
        ("NameResolution", "its name is not known here"),
        ("timed out", "no answer in time"),
        ("refused", "nobody answers there"),
    ):
        if sign in text or sign in str(error):
            return meaning
    return text.splitlines()[0][:120] if text else type(error).__name__


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many bytes have come: a bar on a terminal, else a line every few seconds."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total)
            yield lambda have: bar.update(task, completed=have)
        return
    last = time.monotonic()

    def line(have: int) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            print(f"{name}: {have / 1e6:,.1f} of {total / 1e6:,.1f} MB", file=sys.stderr, flush=True)

    yield line
