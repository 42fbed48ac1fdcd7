"""The packages: pinned by hash, listed in an SBOM, with accepted advisories that have an end date."""

import base64
import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import zipfile
from datetime import date
from pathlib import Path

import pytest

from tests.project import ROOT

LOCK, HASHES = ROOT / "requirements.lock", ROOT / "requirements.hashes"
TOOL = ROOT / ".venv/audit/bin/cyclonedx-py"  # installed by make sbom and make audit
PINNED = re.compile(r"([\w.-]+(?:\[\w+\])?)==([\w.!+-]+)")


def normal(name: str) -> str:
    """The name of a package in the index's form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """The version of each package, by name."""
    found = (PINNED.match(line) for line in path.read_text().splitlines())
    return {normal(match[1]): match[2] for match in found if match}


def test_every_package_but_torch_is_pinned_by_hash_at_the_version_of_the_lock_file():
    locked = pins(LOCK)
    assert len(locked) > 100 and pins(HASHES) == {name: locked[name] for name in locked.keys() - {"torch"}}


def test_each_pin_has_a_sha256():
    blocks = re.split(r"\n(?=\w)", HASHES.read_text().strip())
    for block in blocks[1:]:
        first, *hashes = block.replace(" \\", "").splitlines()
        assert hashes and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), first


def wheel(folder: Path) -> Path:
    """A package with one module."""
    info = "darkroom_example-1.dist-info"
    path = folder / "darkroom_example-1-py3-none-any.whl"
    meta = "Metadata-Version: 2.1\nName: darkroom-example\nVersion: 1\n"
    files = {
        "darkroom_example.py": "",
        f"{info}/METADATA": meta,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {name: hashlib.sha256(text.encode()).digest() for name, text in files.items()}
    encoded = {
        name: base64.urlsafe_b64encode(digest).rstrip(b"=").decode() for name, digest in digests.items()
    }
    record = "".join(f"{name},sha256={encoded[name]},{len(files[name])}\n" for name in files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize("altered", [False, True])
def test_a_package_with_another_hash_is_not_installed(tmp_path, altered):
    path = wheel(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if altered:
        digest = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    (tmp_path / "pinned.txt").write_text(f"darkroom-example==1 --hash=sha256:{digest}\n")
    options = [
        "--quiet",
        "--require-hashes",
        "--no-deps",
        "--no-index",
        "--isolated",
        "--disable-pip-version-check",
    ]
    places = [
        "--find-links",
        str(tmp_path),
        "--target",
        str(tmp_path / "to"),
        "-r",
        str(tmp_path / "pinned.txt"),
    ]
    command = [sys.executable, "-m", "pip", "install", *options, *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == altered == ("DO NOT MATCH THE HASHES" in done.stderr), done.stderr
    assert (tmp_path / "to/darkroom_example.py").exists() != altered


def test_make_install_checks_the_hashes_before_anything_else_is_installed():
    recipe = (ROOT / "Makefile").read_text()
    first, second, third = re.findall(r"\$\(PIP\) (.*)", recipe)
    assert first == "--require-hashes --no-deps -r $(VENV)/hashes-%"
    assert second == "-r requirements.lock" and "--no-deps" in third


@pytest.mark.skipif(not TOOL.exists(), reason="make sbom has not installed its tool")
def test_the_sbom_is_valid_and_lists_every_installed_package(tmp_path):
    """The tool validates what it writes, and fails where it does not hold to CycloneDX's schema."""
    command = re.search(r"cyclonedx-py (environment .*) --output-file", (ROOT / "Makefile").read_text())
    assert command
    words = [str(TOOL), *command[1].split(), "--validate", "--output-file", "sbom.json", sys.executable]
    words[words.index("pyproject.toml")] = str(ROOT / "pyproject.toml")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "sbom.json").read_text())
    listed = {normal(part["name"]): part["version"] for part in document["components"]}
    listed[normal(document["metadata"]["component"]["name"])] = ""
    missing = {normal(each.name) for each in importlib.metadata.distributions() if each.name} - listed.keys()
    assert not missing and listed["torch"].startswith("2.")


def test_accepted_advisories_have_a_reason_and_an_end_within_a_year_of_each_other():
    rows = [
        line.split(" ", 2) for line in (ROOT / "advisories.txt").read_text().splitlines() if line[0] != "#"
    ]
    assert rows and all(re.fullmatch(r"(CVE|GHSA|PYSEC)-[\w-]+", name) for name, *_ in rows)
    ends = [date.fromisoformat(end) for _, end, _ in rows]
    assert (max(ends) - min(ends)).days <= 366 and all(reason for *_, reason in rows)


@pytest.mark.parametrize(("today", "code"), [("2026-12-01", 0), ("2099-01-01", 2)])
def test_make_audit_fails_after_the_end_of_an_accepted_advisory(tmp_path, today, code):
    recipe = (ROOT / "Makefile").read_text()
    program = re.search(r"awk -v today=\$\$\(date \+%F\) ('.*') advisories\.txt\)", recipe)
    assert program
    script = f"awk -v today={today} {program[1].replace('$$', '$')} {ROOT}/advisories.txt"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert ("was accepted until" in done.stderr) == bool(code)
    assert "--ignore-vuln CVE-2025-69872" in done.stdout or code


@pytest.mark.parametrize(
    ("name", "least"), [("torch", (2, 10)), ("mlflow", (3, 17)), ("ray", (2, 56)), ("pillow", (12, 3))]
)
def test_packages_are_newer_than_their_known_holes(name, least):
    """CVE-2026-24747 of PyTorch, CVE-2026-2033 of MLflow, CVE-2026-57516 of Ray, decoders of Pillow."""
    assert tuple(int(part) for part in pins(LOCK)[name].split(".")[:2]) >= least
