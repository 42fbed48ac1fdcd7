"""The lineage of any model, number or file, up and down; a flipped byte is named, wherever it is."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import digest_of, read_json, sha256
from pipeline.tracking.runs import Description, open_run
from pipeline.tracking.trace import trace, verify
from tests.tracking.conftest import write_model

URL = "https://example.org/digits.gz"
MAKE = """
import hashlib, json, shutil, sys
from pathlib import Path

def write(path, data):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    folder = "data/processed/images/" if "processed" in path else "data/raw/"
    return {"file": path.removeprefix(folder), "sha256": digest}

if sys.argv[1] == "download":
    entry = write("data/raw/digits.gz", b"raw" * 99)
    source = {"sha256": entry["sha256"], "url": "https://example.org/digits.gz"}
    write("data/raw/source.json", {"files": {"digits.gz": source}})
elif sys.argv[1] == "preprocess":
    kinds = ("image", "label")
    shard = {kind: write(f"data/processed/images/test/{kind}-0.npy", kind.encode() * 99) for kind in kinds}
    write("data/processed/images/manifest.json", {"splits": {"test": {"shards": [shard]}}})
elif sys.argv[1] == "train":
    shutil.copytree("given/model", "models/cnn")
    write("history/cnn/metrics.jsonl", b"{}")
    write("history/cnn/times.json", b"{}")
else:
    write("metrics/evaluation.json", {"accuracy": 1.0})
    write("plots/pictures/cnn.png", b"picture" * 99)
    write("reports/index.html", b"report" * 99)
"""
STAGES = {
    "download": ([], ["data/raw"], "data.source"),
    "preprocess": (["data/raw"], ["data/processed/images"], "data"),
    "train-cnn": (["data/processed/images", "given"], ["models/cnn", "history/cnn"], "cnn"),
    "evaluate": (
        ["models", "history"],  # folders of outputs
        ["plots", "reports", {"metrics/evaluation.json": {"cache": False}}],
        "cnn.steps",
    ),
}
FILES = [
    "data/raw/digits.gz",
    "data/raw/source.json",
    "data/processed/images/test/image-0.npy",
    "data/processed/images/manifest.json",
    "models/cnn/model.safetensors",
    "models/cnn/model.json",
    "history/cnn/metrics.jsonl",
    "plots/pictures/cnn.png",
    "metrics/evaluation.json",
    "reports/index.html",
]
LOCAL = "/data /models /history /plots /reports /mlflow.db* /mlartifacts /storage /.dvc/cache /.dvc/tmp"
CONFIG = """[core]
    remote = store
    analytics = false
    site_cache_dir = {0}/site
['remote "store"']
    url = {0}/store
"""


def shell(folder: Path, command: str) -> None:
    words = [*([sys.executable, "-m"] if command.startswith("dvc") else []), *command.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def flip(path: Path) -> None:
    """Change one bit in the middle of a file; a second call undoes it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def environment_of(root: Path) -> Environment:
    return Environment(
        root=root,
        storage=root / "storage",
        tracking_uri=f"sqlite:///{root}/mlflow.db",
        artifacts=str(root / "mlartifacts"),
    )


def titles(node) -> str:
    return "\n".join(part.title for part in node.walk())


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A project after a repro, committed and pushed, with its training in MLflow."""
    base = tmp_path_factory.mktemp("traced")
    root = base / "origin"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text(CONFIG.format(base))
    (root / ".gitignore").write_text("\n".join(LOCAL.split()))
    (root / "make.py").write_text(MAKE)
    (root / "params.yaml").write_text(json.dumps({"data": {"source": "toy"}, "cnn": {"steps": 3}}))
    write_model(root / "given/model", "cnn")
    stages = {
        name: {
            "cmd": shlex.join([sys.executable, "make.py", name.split("-")[0]]),
            "deps": ["make.py", *deps],
            "params": [param],
            "outs": outs,
        }
        for name, (deps, outs, param) in STAGES.items()
    }
    (root / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    shell(root, "git init -q")
    shell(root, "dvc repro -q")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DVC_STAGE", "train-cnn")
        digest = digest_of(read_json(root / "data/processed/images/manifest.json"))
        with open_run(
            environment_of(root),
            Description("train-cnn", "f" * 64, {"steps": 3}, "toy", digest, "data/processed/images"),
        ) as run:
            assert run.register(Path("models/cnn"), "cnn") == "1"
    for command in (
        "git add .",
        "git -c user.name=t -c user.email=t@example.org commit -qm made",
        "dvc push -q",
    ):
        shell(root, command)
    return root


@pytest.fixture(scope="module")
def pulled(origin) -> Path:
    """A fresh clone after ``dvc pull``: no MLflow, no run cache."""
    shell(origin.parent, "git clone -q origin clone")
    shell(origin.parent / "clone", "dvc pull -q")
    return origin.parent / "clone"


@pytest.fixture
def clone(pulled, tmp_path) -> Path:
    return Path(shutil.copytree(pulled, tmp_path / "clone"))


def test_an_evaluation_of_other_models_is_not_one_of_these(clone):
    """The folder models of the evaluation had another md5 than the models in the same dvc.lock give."""

    def evaluations():
        """Those of the present dvc.lock."""
        found = titles(trace(environment_of(clone), "models/cnn").down).splitlines()
        return [title for title in found if title.startswith("evaluate: ") and "(commit" not in title]

    assert len(evaluations()) == 1
    lock = yaml.safe_load((clone / "dvc.lock").read_text())
    dep = next(dep for dep in lock["stages"]["evaluate"]["deps"] if dep["path"] == "models")
    dep["md5"] = f"{'0' * 32}.dir"
    (clone / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    shell(clone, "git -c user.name=t -c user.email=t@example.org commit --amend -qam stale")
    assert evaluations() == []
    assert any(
        problem.path == "models" and problem.state == "stale" for problem in verify(environment_of(clone))[0]
    )


def test_the_lineage_of_a_version_reaches_the_source_and_the_report(origin):
    found = trace(environment_of(origin), "cnn@champion")
    assert found.up.title.startswith("model cnn/1 (") and found.first_failure is None and found.notes == []
    up, down = titles(found.up), titles(found.down)
    for part in (
        "models/cnn",
        "train-cnn: ",
        "run train-cnn, FINISHED",
        "data/processed/images",
        f"digits.gz from {URL}",
    ):
        assert part in up
    assert "params data.source: toy" in up and "code, 2 files and folders" in up and "evaluate" not in up
    assert (
        "evaluate: " in down
        and "metrics/evaluation.json" in down
        and "reports" in down
        and "data/raw" not in down
    )
    assert {node.state for node in found.up.walk()} == {"ok", ""}
    (source,) = (node for node in found.up.walk() if node.kind == "source")
    assert source.hash == sha256(origin / "data/raw/digits.gz")


def test_every_form_of_a_hash_is_found(origin):
    (run,) = (node for node in trace(environment_of(origin), "cnn/1").up.walk() if node.kind == "run")
    lock = trace(environment_of(origin), "data/processed/images").up.hash
    digest = digest_of(read_json(origin / "data/processed/images/manifest.json"))
    shard = "data/processed/images/test/image-0.npy"
    things = {
        run.hash: run.title,
        "f" * 10: run.title,
        lock: "data/processed/images",
        lock[:8]: "data/processed/images",
        digest[:12]: "data/processed/images",
    }
    things |= {
        sha256(origin / "models/cnn/model.safetensors"): trace(environment_of(origin), "cnn/1").up.title,
        sha256(origin / shard)[:8]: shard,
    }
    assert {thing: trace(environment_of(origin), thing).up.title for thing in things} == things


UNKNOWN = ("nonsense", "0123456789abcdef", "abc", "elsewhere/cnn/model.json")
ANSWERS = [
    ("cnn/7", "registered: cnn/1, "),
    ("cnn@nothing", "registered: cnn/1, "),
    ("data", "name one of: data/processed/images, data/raw"),
    ("99914b93", "name one of: history/cnn/metrics.jsonl, history/cnn/times.json"),
    *((thing, "name a registered model") for thing in UNKNOWN),
]


@pytest.mark.parametrize(("thing", "words"), ANSWERS)
def test_an_unknown_or_ambiguous_name_is_refused_with_the_candidates(origin, thing, words):
    with pytest.raises(BadInput, match=re.escape(words)):
        trace(environment_of(origin), thing)


@pytest.mark.parametrize("path", FILES)
def test_one_flipped_byte_is_named(clone, path):
    flip(clone / path)
    failure = trace(environment_of(clone), "make.py").first_failure
    assert (failure.path, failure.state) == (path, "differs") and failure.expected != failure.found
    assert (
        failure.remedy == f"git checkout -- {path}"
        if path.startswith("metrics")
        else failure.remedy.startswith("dvc checkout --force ")
    )
    assert [(problem.path, problem.state) for problem in verify(environment_of(clone))[0]] == [
        (path, "differs")
    ]


def test_a_flipped_byte_in_the_cache_is_named_and_each_object_is_checked(clone):
    objects = sorted((clone / ".dvc/cache/files/md5").glob("*/*"))
    for file in (objects[0], next(path for path in objects if path.suffix == ".dir")):
        flip(file)
        problems, counts = verify(environment_of(clone))
        assert [(problem.path, problem.state) for problem in problems] == [
            (str(file.relative_to(clone)), "differs")
        ]
        assert counts["cache objects"] == len(objects)
        flip(file)


def test_a_cache_that_dvcs_global_configuration_names_is_checked(clone, tmp_path, monkeypatch):
    cache = shutil.move(clone / ".dvc/cache", tmp_path / "elsewhere")
    (tmp_path / "config").write_text(f"[cache]\n    dir = {cache}\n")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
    objects = sorted((cache / "files/md5").glob("*/*"))
    flip(objects[0])
    problems, counts = verify(environment_of(clone))
    assert counts["cache objects"] == len(objects)
    assert [(problem.path.endswith(objects[0].name), problem.state) for problem in problems] == [
        (True, "differs")
    ]


def test_a_flipped_byte_in_a_registered_version_is_named(origin):
    (weights,) = (origin / "mlartifacts").rglob("model.safetensors")
    flip(weights)
    try:
        failure = trace(environment_of(origin), "cnn/1").first_failure
        assert (failure.path, failure.state, failure.found) == (str(weights), "differs", sha256(weights))
        assert [problem.path for problem in verify(environment_of(origin))[0]] == [str(weights)]
    finally:
        flip(weights)


def test_a_clone_needs_no_mlflow_database_and_creates_none(clone):
    found = trace(environment_of(clone), "reports/index.html")
    assert (
        found.first_failure is None
        and URL in titles(found.up)
        and "no MLflow database yet" in found.as_text()
    )
    with pytest.raises(BadInput, match="no MLflow database yet"):
        trace(environment_of(clone), "cnn@champion")
    problems, counts = verify(environment_of(clone))
    assert (
        problems == []
        and counts["outputs"] == 7
        and counts["SHA-256 records"] == 4
        and counts["registered versions"] == 0
    )
    assert not list(clone.glob("mlflow.db*"))


def test_an_unreachable_server_is_named_and_the_rest_is_shown(clone):
    found = trace(replace(environment_of(clone), tracking_uri="http://user:secret@127.0.0.1:9"), "models/cnn")
    assert found.first_failure is None and "MLflow does not answer at http://127.0.0.1:9" in found.as_text()


def test_a_missing_file_is_checked_in_the_cache_or_has_to_be_pulled(clone):
    shutil.rmtree(clone / "data/processed/images")
    assert trace(environment_of(clone), "models/cnn").first_failure is None
    assert [(problem.path, problem.state) for problem in verify(environment_of(clone))[0]] == [
        ("data/processed/images", "absent")
    ]
    shutil.rmtree(clone / ".dvc/cache")
    failure = trace(environment_of(clone), "models/cnn").first_failure
    assert (failure.path, failure.state, failure.remedy) == (
        "data/processed/images",
        "absent",
        "dvc pull --force data/processed/images",
    )


def test_an_earlier_version_is_found_by_its_run_and_by_its_hash(origin, tmp_path):
    root = Path(shutil.copytree(origin, tmp_path / "later"))
    past = trace(environment_of(root), "models/cnn").up.hash
    shutil.rmtree(root / "models/cnn")
    write_model(root / "models/cnn", "cnn", seed=1)
    lock = root / "dvc.lock"
    lock.write_text(lock.read_text().replace(past, "0" * 32 + ".dir"))
    for thing in (past[:12], "cnn/1"):
        found = trace(environment_of(root), thing)
        assert (
            found.first_failure is None
            and URL in titles(found.up)
            and past in {node.hash for node in found.up.walk()}
        )
    shutil.rmtree(root / ".dvc/cache/files")
    found = trace(environment_of(root), "cnn/1")
    assert {node.state for node in found.up.walk() if node.hash == past} == {
        "unchecked"
    } and "could not be checked" in found.as_text()


def test_edited_code_and_params_are_stale_and_not_damaged(clone):
    with open(clone / "make.py", "a") as file:
        file.write("# a comment\n")
    (clone / "params.yaml").write_text(json.dumps({"data": {"source": "toy"}, "cnn": {"steps": 4}}))
    problems = verify(environment_of(clone))[0]
    assert {problem.path for problem in problems} == {"make.py", "params.yaml: cnn", "params.yaml: cnn.steps"}
    assert {problem.state for problem in problems} == {"stale"}
    found = trace(environment_of(clone), "models/cnn")
    assert found.first_failure is None and "changed since: make.py" in titles(found.up)


def test_a_damaged_file_is_named_even_if_another_is_missing(clone):
    (clone / "models/cnn/model.json").unlink()
    flip(clone / "models/cnn/model.safetensors")
    assert trace(environment_of(clone), "models/cnn").first_failure.path == "models/cnn/model.safetensors"
    assert {problem.state for problem in verify(environment_of(clone))[0]} == {"absent", "differs"}


def test_json_and_mermaid_show_the_same_as_the_text(clone):
    flip(clone / "data/raw/digits.gz")
    found = trace(environment_of(clone), "metrics/evaluation.json")
    value = json.loads(found.as_json())
    assert value["first_failure"]["path"] == "data/raw/digits.gz" and value["up"]["hash"] == found.up.hash
    assert "└─ data/raw" in found.as_text() and "DIFFERS: data/raw/digits.gz" in found.as_text()
    chart = found.as_mermaid()
    names = dict(re.findall(r'^  (n\w+)\["([^"<]+)', chart, re.MULTILINE))
    arrows = [
        (names[one], names[other]) for one, other in re.findall(r"^  (n\w+) --> (n\w+)$", chart, re.MULTILINE)
    ]
    assert [other.partition(":")[0] for one, other in arrows if one == "data/raw"] == ["preprocess"]
    assert re.search(r'data/raw<br/>\w{12}<br/>differs"\]:::bad', chart) and chart.startswith(
        "flowchart LR\n"
    )


def test_a_cache_that_is_set_for_all_projects_of_a_user_is_checked(clone, tmp_path, monkeypatch):
    (tmp_path / "config/dvc").mkdir(parents=True)
    (tmp_path / "config/dvc/config").write_text(f"[cache]\n    dir = {tmp_path}/cache\n")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "config/dvc"))
    (clone / ".dvc/cache").rename(tmp_path / "cache")
    problems, counts = verify(environment_of(clone))
    assert problems == [] and counts["cache objects"] > 10
    flip(next((tmp_path / "cache/files/md5").glob("*/*")))
    assert [problem.state for problem in verify(environment_of(clone))[0]] == ["differs"]
