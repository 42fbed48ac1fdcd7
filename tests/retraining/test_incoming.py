"""New pictures from folders, zips, addresses and DVC repositories."""

import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from pipeline.data.transfer import RetryPolicy, TransferFailed, fetch_from_repository, fetch_zip
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import sha256
from pipeline.retraining import incoming
from tests.data import conftest
from tests.data.conftest import body, encoded, fill, status

server = conftest.server
QUICK = RetryPolicy(num_attempts=2, timeout_seconds=0.4, pause_seconds=0.0)


def put(root: Path, name: str, seed: int) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed))
    return path


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    return target


def names(pictures) -> list[str]:
    return [picture.name for picture in pictures]


@pytest.fixture
def places(tmp_path):
    """A watched and an accepted folder: cat/1 and dog/1 are in both."""
    for root in ("watched", "accepted"):
        put(tmp_path / root, "cat/1.png", 1), put(tmp_path / root, "dog/1.png", 2)
    return tmp_path / "watched", tmp_path / "accepted"


@pytest.mark.parametrize("as_zip", [False, True])
def test_only_what_is_not_accepted_is_fresh(places, tmp_path, as_zip):
    watched, accepted = places
    put(watched, "dog/2.png", 3), put(watched, "cat/2.png", 4)
    put(accepted, "cat/old.png", 5)
    arrival = incoming.look(zipped(watched, tmp_path / "w.zip") if as_zip else watched, accepted, {})
    assert [(picture.name, picture.label) for picture in arrival.fresh] == [
        ("cat/2.png", "cat"),
        ("dog/2.png", "dog"),
    ]
    assert arrival.fresh[0].sha256 == sha256(watched / "cat/2.png")
    assert names(arrival.accepted) == ["cat/1.png", "cat/old.png", "dog/1.png"] and not arrival.quarantined


def test_an_accepted_folder_without_files_but_hidden_ones_holds_nothing_yet(places, tmp_path):
    (tmp_path / "new/empty").mkdir(parents=True)
    (tmp_path / "new/empty/.gitkeep").touch()
    arrival = incoming.look(places[0], tmp_path / "new", {})
    assert names(arrival.fresh) == ["cat/1.png", "dog/1.png"] and not arrival.accepted


def test_known_bytes_under_another_name_are_known_and_under_another_class_are_fresh(places):
    watched, accepted = places
    put(watched, "cat/copy.png", 1), put(watched, "cat/dog.png", 2)
    arrival = incoming.look(watched, accepted, {})
    assert names(arrival.fresh) == ["cat/dog.png"]


def test_an_accepted_name_with_other_bytes_is_fresh(places):
    watched, accepted = places
    put(watched, "cat/1.png", 9)
    arrival = incoming.look(watched, accepted, {})
    assert names(arrival.fresh) == ["cat/1.png"]


def test_quarantined_pictures_are_not_fresh_unless_they_are_accepted(places):
    watched, accepted = places
    bad = put(watched, "cat/2.png", 3)
    arrival = incoming.look(
        watched, accepted, {f"{sha256(bad)}/cat": "blank", f"{sha256(watched / 'cat/1.png')}/cat": "blank"}
    )
    assert not arrival.fresh and arrival.quarantined == 1


def test_two_accepted_pictures_with_the_same_bytes_are_both_counted(places):
    watched, accepted = places
    put(accepted, "dog/twin.png", 1)
    put(watched, "dog/again.png", 1)
    arrival = incoming.look(watched, accepted, {})
    assert names(arrival.accepted) == ["cat/1.png", "dog/1.png", "dog/twin.png"] and not arrival.fresh


def test_hidden_files_and_other_formats_are_passed_over_and_the_latter_counted(places):
    watched, accepted = places
    for seed, name in enumerate(
        [
            "cat/.x.png",
            ".git/cat/1.png",
            "__MACOSX/cat/1.png",
            "cat/notes.txt",
            "cat/a.heic",
            "cat/\udcff.png",
        ]
    ):
        put(watched, name, 20 + seed)
    arrival = incoming.look(watched, accepted, {})
    assert not arrival.fresh and arrival.passed_over == 2


def test_what_is_still_being_written_waits(places, tmp_path):
    watched, accepted = places
    young, old, ahead = (
        put(watched, f"cat/{name}.png", seed) for seed, name in enumerate(("young", "old", "ahead"), 30)
    )
    os.utime(old, (time.time() - 100,) * 2), os.utime(ahead, (time.time() + 9000,) * 2)
    arrival = incoming.look(watched, accepted, {}, settle_seconds=50)
    assert names(arrival.fresh) == ["cat/ahead.png", "cat/old.png"] and arrival.unsettled == 3
    assert young.name in {Path(name).name for name in names(incoming.look(watched, accepted, {}).fresh)}
    growing = incoming.look(zipped(watched, tmp_path / "w.zip"), accepted, {}, settle_seconds=50)
    assert not growing.fresh and growing.unsettled == 5


def test_a_damaged_member_of_a_zip_is_fresh_and_the_others_are_read(places, tmp_path):
    watched, accepted = places
    put(watched, "cat/2.png", 3), put(watched, "dog/2.png", 4)
    path = zipped(watched, tmp_path / "w.zip")
    data = bytearray(path.read_bytes())
    data[data.index(encoded(3)) + 50] ^= 1
    path.write_bytes(data)
    arrival = incoming.look(path, accepted, {})
    assert names(arrival.fresh) == ["cat/2.png", "dog/2.png"] and arrival.fresh[1].sha256 == sha256(
        watched / "dog/2.png"
    )
    assert arrival.fresh[0].sha256 != sha256(watched / "cat/2.png") and len(arrival.fresh[0].sha256) == 64


def test_a_zip_that_grew_in_place_is_read_again(places, tmp_path):
    watched, accepted = places
    path = zipped(watched, tmp_path / "w.zip")
    assert not incoming.look(path, accepted, {}).fresh
    put(watched, "cat/2.png", 3)
    fresh = incoming.look(zipped(watched, path), accepted, {}).fresh
    assert [picture.sha256 for picture in fresh] == [sha256(watched / "cat/2.png")]


@pytest.mark.parametrize(("watch", "accepted"), [("a", "a"), ("a/b", "a"), ("a", "a/b")])
def test_watched_and_accepted_may_not_overlap(tmp_path, watch, accepted):
    fill(tmp_path / "a/b", {"cat": 1})
    with pytest.raises(BadInput, match=r"retrain\.watch.*overlap"):
        incoming.look(tmp_path / watch, tmp_path / accepted, {})


def test_accepted_pictures_in_a_zip_cannot_be_added_to(places, tmp_path):
    with pytest.raises(BadInput, match=r"data\.folder: is not a folder"):
        incoming.look(places[0], zipped(places[1], tmp_path / "accepted.zip"), {})


@pytest.mark.parametrize("as_zip", [False, True])
def test_copying_is_atomic_and_repeatable_and_overwrites_nothing(places, tmp_path, as_zip):
    watched, accepted = places
    for number in range(40):
        put(watched, f"train/bird/{number}.png", 100 + number)
    place = zipped(watched, tmp_path / "w.zip") if as_zip else watched
    fresh = incoming.look(place, accepted, {}).fresh
    incoming.copy(place, fresh[:7], accepted)
    stamp = (accepted / fresh[0].name).stat().st_mtime_ns
    incoming.copy(place, fresh, accepted)
    assert (accepted / fresh[0].name).stat().st_mtime_ns == stamp
    assert (
        all(
            (accepted / picture.name).read_bytes() == (watched / picture.name).read_bytes()
            for picture in fresh
        )
        and len(fresh) == 40
    )
    assert not [path for path in accepted.rglob(".*")]
    put(accepted, fresh[3].name, 7)
    with pytest.raises(BadInput, match="has other bytes"):
        incoming.copy(place, fresh, accepted)
    assert (accepted / fresh[3].name).read_bytes() == encoded(7)


def test_a_picture_that_changed_since_it_was_looked_at_is_not_copied(places):
    watched, accepted = places
    put(watched, "cat/2.png", 3)
    fresh = incoming.look(watched, accepted, {}).fresh
    put(watched, "cat/2.png", 4)
    with pytest.raises(DarkroomError, match="has changed since"):
        incoming.copy(watched, fresh, accepted)
    assert not (accepted / "cat/2.png").exists()


def test_a_link_to_itself_is_refused_as_the_watched_place_and_by_name_in_it(places, tmp_path):
    os.symlink("self", tmp_path / "self")
    with pytest.raises(BadInput, match="there is no folder or zip"):
        incoming.fetch("self", "", tmp_path, tmp_path / "downloads")
    place, accepted = places
    os.symlink("self.png", place / "self.png")
    with pytest.raises(BadInput, match=r"links to files that are missing: 'self\.png'"):
        incoming.look(place, accepted, {})


def test_a_path_is_used_in_place_and_must_exist(tmp_path):
    (tmp_path / "new").mkdir()
    assert incoming.fetch("new", "", tmp_path, tmp_path / "downloads") == tmp_path / "new"
    assert (
        incoming.fetch(str(tmp_path / "new"), "", Path("/elsewhere"), tmp_path / "downloads")
        == tmp_path / "new"
    )
    with pytest.raises(BadInput, match=r"params\.yaml: retrain\.watch"):
        incoming.fetch("old", "", tmp_path, tmp_path / "downloads")


def test_a_downloaded_zip_is_complete_and_counts_as_settled(server, places, tmp_path):
    watched, accepted = places
    put(watched, "cat/2.png", 3)
    server.answers["/new.zip"] = body(zipped(watched, tmp_path / "w.zip").read_bytes())
    place = incoming.fetch(f"{server.url}/new.zip", "", tmp_path, tmp_path / "downloads")
    assert place.read_bytes() == (tmp_path / "w.zip").read_bytes() and [
        path.name for path in place.parent.iterdir()
    ] == [place.name]
    assert names(incoming.look(place, accepted, {}, settle_seconds=60).fresh) == ["cat/2.png"]
    put(watched, "dog/2.png", 4)
    server.answers["/new.zip"] = body(zipped(watched, tmp_path / "w.zip").read_bytes(), length=None)
    again = incoming.fetch(f"{server.url}/new.zip", "", tmp_path, tmp_path / "downloads")
    assert names(incoming.look(again, accepted, {}).fresh) == ["cat/2.png", "dog/2.png"]


@pytest.mark.parametrize(
    ("answer", "reason", "passing", "num_requests"),
    [
        (status(404), "responded 404", False, 1),
        (status(503), "responded 503", True, 2),
        (body(b"PK" * 9), "complete zip file", False, 1),
        (body(b"<html>", kind="text/html"), "a web page", False, 1),
        (body(b"x" * 2000), "has 2,000 bytes; at most 1,000 are allowed", False, 1),
        (body(b"x" * 2000, length=None), "more than the 1,000 bytes", False, 1),
        (body(b"x" * 20, length=200), "failed: |stopped at 20 of 200", True, 2),
        (body(b"x" * 20, length=None), "complete zip file", True, 2),
        (status(302, Location="http://example.org/f?key=secret"), "not https", False, 1),
        (lambda request: time.sleep(0.6), "timed out", True, 2),
    ],
)
def test_a_bad_address_is_named_and_leaves_what_was_there(
    server, tmp_path, answer, reason, passing, num_requests
):
    server.answers["/f"] = answer
    (tmp_path / "f.zip").write_bytes(b"before")
    with pytest.raises(TransferFailed, match=reason) as caught:
        fetch_zip(f"{server.url}/f", tmp_path / "f.zip", 1000, 60, QUICK)
    assert caught.value.transient == passing and len(server.requests) == num_requests
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_download_ends_when_its_time_is_over(server, tmp_path):
    def drip(request):
        body(b"", length=10**6)(request)
        for _ in range(100):
            request.wfile.write(b"x" * 1000)
            time.sleep(0.02)

    server.answers["/f"] = drip
    with pytest.raises(TransferFailed, match="reached its time limit"):
        fetch_zip(f"{server.url}/f", tmp_path / "f.zip", 10**6, 0.2, QUICK)
    assert len(server.requests) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "watch",
    ["http://me:secret@example.org/f.zip?key=secret", "s3://me:secret@bucket/f.zip", "file:///etc/passwd"],
)
def test_other_addresses_are_refused_without_printing_their_secrets(tmp_path, watch):
    with pytest.raises(BadInput, match="not https") as caught:
        incoming.fetch(watch, "", tmp_path, tmp_path / "downloads")
    assert "secret" not in str(caught.value) and caught.value.where == "params.yaml: retrain.watch"


def shell(folder: Path, *command: str) -> None:
    words = [sys.executable, "-m", *command] if command[0] == "dvc" else command
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=120)


def test_a_path_in_another_dvc_repository_is_downloaded(tmp_path, places):
    there = tmp_path / "there"
    fill(there / "new", {"cat": 2, "dog": 1})
    shell(there, "git", "init", "-q", "-b", "main")
    shell(there, "dvc", "init", "-q")
    shell(there, "dvc", "add", "-q", "new")
    shell(there, "git", "add", "-A")
    shell(there, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "new")
    (tmp_path / "project").mkdir()
    place = incoming.fetch("new", "../there", tmp_path / "project", tmp_path / "downloads")
    assert names(incoming.look(place, places[1], {}, settle_seconds=60).fresh) == [
        "cat/000.png",
        "cat/001.png",
        "dog/000.png",
    ]
    assert (place / "cat/001.png").read_bytes() == (there / "new/cat/001.png").read_bytes()
    with pytest.raises(
        DarkroomError, match=r"(?s)retrain\.watch: nothere of \.\./there cannot be downloaded: .*nothere"
    ):
        incoming.fetch("nothere", "../there", tmp_path / "project", tmp_path / "downloads")


def test_a_repository_that_does_not_answer_leaves_no_process(server, tmp_path):
    answered = []
    server.answers["/there/info/refs?service=git-upload-pack"] = lambda request: answered.append(
        threading.Event().wait(20)
    )
    with pytest.raises(TransferFailed, match="timed out after 0 s"):
        fetch_from_repository(f"{server.url}/there", "new", tmp_path, tmp_path / "got", 0.05)
    assert not answered and not list(tmp_path.iterdir())
    assert not [
        child
        for child in psutil.Process().children(recursive=True)
        if any("dvc" in word for word in child.cmdline())
    ]
