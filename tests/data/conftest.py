"""Small images in class folders, and a local server that can simulate failures."""

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.environment import Environment


def encoded(seed: int, size: tuple[int, int] = (12, 10), kind: str = "PNG", mode: str = "RGB") -> bytes:
    """An image of random pixels that depend only on ``seed``."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, mode).save(stream, kind)
    return stream.getvalue()


def fill(root: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """``classes[name]`` different PNG files in ``root/name``."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            seed += 1
            (root / name / f"{number:03d}.png").write_bytes(encoded(seed * 1000 + len(name)))
    return root


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(root=tmp_path, storage=tmp_path / "storage")


Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """``answers`` maps paths to handlers; ``requests`` lists (path, Range header) in order."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Range", "")))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer.answers.get(self.path, status(404))(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def status(code: int, **headers: str) -> Answer:
    """An empty response."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in (
            {"Content-Length": "0"} | {name.replace("_", "-"): value for name, value in headers.items()}
        ).items():
            request.send_header(name, value)
        request.end_headers()

    return answer


def body(
    content: bytes, *, length: int | None = -1, ranges: bool = True, kind: str = "application/octet-stream"
) -> Answer:
    """``content``, or the requested range. ``length``: the Content-Length; None: no header, -1: correct."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range", "")
        start = int(wanted[6:].rstrip("-")) if wanted and ranges else 0
        request.send_response(206 if start else 200)
        request.send_header("Content-Type", kind)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if length is not None:
            request.send_header("Content-Length", str(len(content) - start if length == -1 else length))
        request.end_headers()
        request.wfile.write(content[start:])

    return answer
