"""What SECURITY.md says: its tests, the ports of every documented way of starting, and no secret anywhere."""

import re
import subprocess

import pytest

from tests.project import ROOT, Project

SECURITY = (ROOT / "SECURITY.md").read_text()
DOCUMENTED = ("README.md", "Makefile", "docs/*.md", "infra/**/*", "pipeline/**/*.py", "pipeline/**/*.sh")
STARTS = re.compile(
    r"mlflow (?:ui|server|models serve)\b|\"mlflow\",\s+\"server\"|\bray (?:start|up)\b|rayStart|ray\.init\("
)
NOT_SHIPPED = ("docs/LOG.md",)
CANARY = "c4n4ry-7f3a91"


def starts() -> dict[str, set[str]]:
    """The commands and calls that start MLflow or Ray, by the file that has them."""
    found: dict[str, set[str]] = {}
    for pattern in DOCUMENTED:
        for path in ROOT.glob(pattern):
            name = path.relative_to(ROOT).as_posix()
            is_text = path.is_file() and path.suffix in ("", ".md", ".py", ".sh", ".yaml")
            words = set(STARTS.findall(path.read_text())) if is_text else set()
            if words and name not in NOT_SHIPPED:
                found[name] = words
    return found


def table() -> dict[str, list[str]]:
    """The rows of the table of ports in SECURITY.md, by file."""
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \| (.+) \| (.+) \|$", SECURITY.partition("## Ports")[2], re.M)
    return {name: [*cells] for name, *cells in rows}


def test_every_file_that_starts_mlflow_or_ray_is_in_the_table_of_ports():
    assert starts().keys() == table().keys()


@pytest.mark.parametrize("name", table())
def test_the_ports_and_addresses_of_the_table_are_those_of_the_file(name):
    what, ports, _ = table()[name]
    text = re.sub(r'",\s+"', '", "', (ROOT / name).read_text())
    assert any(word.strip("`") in text for word in what.split(", "))
    for port in re.findall(r"\d{4,5}", ports):
        assert port in text or port in (ROOT / "Makefile").read_text(), port


@pytest.mark.parametrize("name", [name for name, row in table().items() if row[2].startswith("this machine")])
def test_what_listens_on_loopback_says_so(name):
    text = (ROOT / name).read_text()
    assert "127.0.0.1" in text or "localhost" in text or "environment.prepare()" in text


def test_every_row_of_the_table_of_promises_names_tests_that_are_there():
    rows = re.findall(r"^\| (S\d+) \|.*\| (.+) \|$", SECURITY, re.M)
    assert {name for name, _ in rows} == {f"S{number}" for number in range(1, 19)}
    for name, tests in rows:
        paths = re.findall(r"`(tests/[\w/.]+)`", tests)
        assert (paths or "not promised" in tests) and all((ROOT / path).exists() for path in paths), name


@pytest.mark.nightly
def test_a_secret_of_the_environment_is_in_no_file_no_log_and_no_commit(tmp_path, processed_digits):
    project = Project(tmp_path / "project", processed_digits)
    project.params["cnn"]["training"] = {
        "num_steps": 4,
        "batch_size": 32,
        "validate_every": 2,
        "log_every": 1,
    }
    project.write()
    address = f"https://me:{CANARY}@example.org/darkroom.git"
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (
        ["init", "-q"],
        ["remote", "add", "origin", address],
        ["add", "params.yaml"],
        ["commit", "-qm", "a"],
    ):
        subprocess.run(["git", *identity, *words], cwd=project.folder, check=True)
    (project.folder / ".git/config").rename(tmp_path / "config")  # git itself keeps the address there
    (project.folder / ".git/config").symlink_to(tmp_path / "config")
    secrets = {
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": CANARY,
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "RAY_AUTH_TOKEN": CANARY,
        "DARKROOM_NOTIFY_URL": f"https://example.org/hook?token={CANARY}",
        "DARKROOM_MIRROR": f"http://me:{CANARY}@127.0.0.1:9/mirror",
    }
    code, output = project.run("stages.train", "cnn", **secrets)
    assert code == 0 and CANARY not in output, output
    offline = {**secrets, "MLFLOW_TRACKING_URI": f"http://me:{CANARY}@127.0.0.1:9"}
    project.params["data"]["source"] = "mnist"
    project.write()
    # The publishers cannot be reached either.
    code, output = project.run("stages.download", **offline, https_proxy="http://127.0.0.1:9")
    assert code == 1 and CANARY not in output and "127.0.0.1:9/mirror" in output, output
    project.params["cnn"]["training"]["seed"] = 1
    project.write()
    code, output = project.run("stages.train", "cnn", **offline)
    assert code == 0 and "offline at" in output and CANARY not in output, output
    files = [path for path in project.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 20 and [path for path in files if CANARY.encode() in path.read_bytes()] == []
    history = subprocess.run(
        ["git", "log", "-p", "--all"], cwd=project.folder, capture_output=True, check=True
    )
    assert CANARY.encode() not in history.stdout
