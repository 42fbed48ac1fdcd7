"""Downloads from faulty servers: the file is correct or absent, and the error gives the reason."""

import hashlib
import time
from pathlib import Path

import pytest
import requests

from pipeline.data.sources import RemoteFile
from pipeline.data.transfer import RetryPolicy, fetch
from pipeline.errors import DarkroomError

from .conftest import Server, body, status

CONTENT = bytes(range(256)) * 40
FILE = RemoteFile("data.gz", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
QUICK = RetryPolicy(num_attempts=3, timeout_seconds=0.4, pause_seconds=0.0)


def attempt(server: Server, folder: Path, *paths: str) -> bytes:
    return fetch(FILE, [server.url + path for path in paths or ("/file",)], folder, QUICK).read_bytes()


def failure(server: Server, folder: Path, *paths: str) -> str:
    with pytest.raises(DarkroomError) as caught:
        attempt(server, folder, *paths)
    assert not (folder / FILE.name).exists()
    return str(caught.value)


def test_a_good_file_is_complete_and_leaves_no_part_file(server, tmp_path):
    server.answers["/file"] = body(CONTENT)
    assert attempt(server, tmp_path) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == [FILE.name]


def test_a_correct_file_is_not_downloaded_again(server, tmp_path):
    (tmp_path / FILE.name).write_bytes(CONTENT)
    assert attempt(server, tmp_path) == CONTENT and not server.requests


def test_a_changed_file_is_downloaded_again(server, tmp_path):
    (tmp_path / FILE.name).write_bytes(CONTENT[:-1] + b"x")
    server.answers["/file"] = body(CONTENT)
    assert attempt(server, tmp_path) == CONTENT


@pytest.mark.parametrize(
    ("answer", "reason", "num_requests"),
    [
        (status(404), "responded 404", 1),
        (status(403), "responded 403", 1),
        (status(500), "responded 500", 3),
        (status(503), "responded 503", 3),
        (status(429), "responded 429", 3),
        (status(204), "responded 204", 1),
        (status(416), "requested range", 1),
        (body(b"<html>moved</html>", kind="text/html; charset=utf-8"), "web page", 1),
        (body(CONTENT[:-1] + b"x"), "has the SHA-256", 1),
        (body(CONTENT[:99]), "has 99 bytes, not 10,240", 1),
        (body(CONTENT + b"x"), "has 10,241 bytes", 1),
        (body(CONTENT * 50, length=None), "more than the 10,240 bytes", 1),
        (body(b"", length=None), "stopped at 0", 3),
        (status(302, Location="http://example.org/file"), "not https", 1),
        (status(302, Location="ftp://127.0.0.1/file"), "not https", 1),
        (status(302, Location="file:///etc/passwd"), "not https", 1),
        (status(302, Location="/file"), "redirects more than 3 times", 4),
    ],
)
def test_a_bad_response_is_reported_and_leaves_no_file(server, tmp_path, answer, reason, num_requests):
    server.answers["/file"] = answer
    if "range" in reason:
        (tmp_path / f"{FILE.name}.part").write_bytes(CONTENT[:5])
        num_requests = 2
    assert reason in failure(server, tmp_path)
    assert len(server.requests) == num_requests


@pytest.mark.parametrize("cut", [1, 100, 5000, len(CONTENT) - 1])
def test_an_interrupted_response_is_resumed_where_it_ended(server, tmp_path, cut):
    def cut_then_whole(request):
        body(
            CONTENT[:cut] if len(server.requests) == 1 else CONTENT,
            length=len(CONTENT) if len(server.requests) == 1 else -1,
        )(request)

    server.answers["/file"] = cut_then_whole
    assert attempt(server, tmp_path) == CONTENT
    assert server.requests == [("/file", ""), ("/file", f"bytes={cut}-")]


def test_an_interrupted_download_is_resumed_by_the_next_process(server, tmp_path):
    (tmp_path / f"{FILE.name}.part").write_bytes(CONTENT[:3000])
    server.answers["/file"] = body(CONTENT)
    assert attempt(server, tmp_path) == CONTENT and server.requests == [("/file", "bytes=3000-")]


def test_a_server_that_ignores_the_range_starts_again(server, tmp_path):
    (tmp_path / f"{FILE.name}.part").write_bytes(CONTENT[:3000])
    server.answers["/file"] = body(CONTENT, ranges=False)
    assert attempt(server, tmp_path) == CONTENT and len(server.requests) == 1


def test_a_part_of_another_file_is_discarded_and_downloaded_again(server, tmp_path):
    (tmp_path / f"{FILE.name}.part").write_bytes(b"other" * 600)
    server.answers["/file"] = body(CONTENT)
    assert attempt(server, tmp_path) == CONTENT
    assert [wanted for _, wanted in server.requests] == ["bytes=3000-", ""]


def test_a_part_longer_than_the_file_is_discarded(server, tmp_path):
    (tmp_path / f"{FILE.name}.part").write_bytes(CONTENT + b"x")
    server.answers["/file"] = body(CONTENT)
    assert attempt(server, tmp_path) == CONTENT and server.requests == [("/file", "")]


def test_a_server_that_sends_too_slowly_is_given_up(server, tmp_path):
    def drip(request):
        body(b"", length=len(CONTENT))(request)
        for byte in CONTENT[:200]:
            request.wfile.write(bytes([byte]))
            time.sleep(0.02)

    server.answers["/file"] = drip
    begun = time.monotonic()
    assert "bytes a second" in failure(server, tmp_path)
    assert time.monotonic() - begun < 5


def test_a_server_that_does_not_respond_is_given_up(server, tmp_path):
    server.answers["/file"] = lambda request: time.sleep(1)
    begun = time.monotonic()
    assert "timed out" in failure(server, tmp_path)
    assert time.monotonic() - begun < 4


def test_the_second_address_is_used_when_the_first_fails(server, tmp_path):
    server.answers["/second"] = body(CONTENT)
    assert attempt(server, tmp_path, "/first", "/second") == CONTENT


def test_bytes_of_a_wrong_mirror_are_not_resumed_at_the_next(server, tmp_path):
    server.answers |= {"/first": body(CONTENT[::-1]), "/second": body(CONTENT)}
    assert attempt(server, tmp_path, "/first", "/second") == CONTENT


def test_when_all_addresses_fail_the_error_gives_each_reason_and_the_remedy(server, tmp_path):
    server.answers["/second"] = status(500)
    text = failure(server, tmp_path, "/first", "/second")
    assert (
        f"{server.url}/first responded 404" in text
        and f"{server.url}/second responded 500" in text
        and "DARKROOM_MIRROR" in text
    )
    assert len(text.splitlines()) <= 5


def test_up_to_three_redirects_are_followed(server, tmp_path):
    server.answers |= {f"/{step}": status(302, Location=f"/{step + 1}") for step in range(3)} | {
        "/3": body(CONTENT)
    }
    assert attempt(server, tmp_path, "/0") == CONTENT


@pytest.mark.parametrize(
    "url",
    ["http://example.org/f", "ftp://example.org/f", "http://127.0.0.1.example.org/f", "http://10.0.0.1/f"],
)
def test_plain_http_is_allowed_only_on_this_machine(tmp_path, url):
    with pytest.raises(DarkroomError, match="not https"):
        fetch(FILE, [url], tmp_path, QUICK)


def test_https_may_not_redirect_to_plain_http_even_on_this_machine(server, tmp_path, monkeypatch):
    server.answers |= {"/secure": status(302, Location=f"{server.url}/file"), "/file": body(CONTENT)}
    get = requests.Session.get
    monkeypatch.setattr(
        requests.Session,
        "get",
        lambda self, url, **options: get(self, url.replace("https://there", server.url), **options),
    )
    with pytest.raises(DarkroomError, match="not https"):
        fetch(FILE, ["https://there/secure"], tmp_path, QUICK)
    assert [path for path, _ in server.requests] == ["/secure"]


def test_a_refused_connection_is_reported(tmp_path):
    with pytest.raises(DarkroomError, match="connection refused"):
        fetch(FILE, ["http://127.0.0.1:9/f"], tmp_path, QUICK)


def test_content_encoding_is_not_decompressed(server, tmp_path):
    def encoded_answer(request):
        request.send_response(200)
        request.send_header("Content-Encoding", "gzip")
        request.send_header("Content-Length", str(len(CONTENT)))
        request.end_headers()
        request.wfile.write(CONTENT)

    server.answers["/file"] = encoded_answer
    assert attempt(server, tmp_path) == CONTENT


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_folder_serves_as_a_mirror(tmp_path, prefix):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / FILE.name).write_bytes(CONTENT)
    assert (
        fetch(FILE, [f"{prefix}{tmp_path}/there/{FILE.name}"], tmp_path / "here", QUICK).read_bytes()
        == CONTENT
    )


def test_a_wrong_file_in_a_mirror_folder_is_refused(tmp_path):
    (tmp_path / FILE.name).write_bytes(CONTENT[::-1])
    with pytest.raises(DarkroomError, match="has the SHA-256"):
        fetch(FILE, [str(tmp_path / FILE.name)], tmp_path / "here", QUICK)
    (tmp_path / FILE.name).unlink()
    with pytest.raises(DarkroomError, match="failed: No such file"):
        fetch(FILE, [str(tmp_path / FILE.name)], tmp_path / "here", QUICK)
