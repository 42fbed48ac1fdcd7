"""The lineage of any model, number or file, up and down."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.errors import BadInput
from pipeline.files import digest_of, read_json, sha256
from pipeline.tracking.trace import trace, verify
from tests.tracking.conftest import write_model
from tests.tracking.traced_project import URL, environment_of, flip, shell, titles


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
