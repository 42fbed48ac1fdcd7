"""GitHub's workflow that posts the report on a pull request, and its scripts."""

import json
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "infra/pull_request"
SCHEMA = json.loads((Path(__file__).parent / "workflow.json").read_text())
VARIABLES = {
    "GH_TOKEN": "t",
    "PULL_REQUEST": "12",
    "GITHUB_RUN_ID": "77",
    "GITHUB_REPOSITORY": "owner/name",
    "GITHUB_SERVER_URL": "https://github.com",
}
GH = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in *--jq*) printf "$KNOWN";; esac
"""


@pytest.fixture
def workflow():
    """The workflow; YAML 1.1 reads its key ``on`` as true."""
    read = yaml.safe_load((FOLDER / "workflow.yml").read_text())
    return {"on" if name is True else name: value for name, value in read.items()}


def run(script, folder, **variables):
    """Run a script as GitHub does."""
    known = {"PATH": os.environ["PATH"], "HOME": str(folder), **VARIABLES, **variables}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_workflow_is_what_githubs_syntax_allows(workflow):
    jsonschema.validate(workflow, SCHEMA)


def test_the_code_of_a_pull_request_has_no_right_to_write(workflow):
    report, comment = workflow["jobs"]["report"], workflow["jobs"]["comment"]
    assert workflow["permissions"] == {"contents": "read"} and "permissions" not in report
    assert comment["permissions"] == {"contents": "write", "pull-requests": "write"}
    assert [step["uses"].split("@")[0] for step in comment["steps"] if "uses" in step] == [
        "actions/download-artifact"
    ]
    assert "head.repo.full_name == github.repository" in comment["if"]
    scripts = [step["run"] for job in (report, comment) for step in job["steps"] if "run" in step]
    assert not [script for script in scripts if "${{" in script]  # no text from outside in a script
    assert not re.search(r"^\s*(darkroom|dvc|make|python) ", "\n".join(scripts[-2:]), re.MULTILINE)
    for step in report["steps"]:  # installed packages have no access to secrets
        assert "secrets." not in json.dumps(step) or "dvc fetch" in step["run"]


def test_the_pictures_are_where_the_report_links_to_them(workflow, tmp_path):
    remote = tmp_path / "owner/name"
    subprocess.run(["git", "init", "-q", "--bare", str(remote)], check=True)
    (tmp_path / "report/pictures").mkdir(parents=True)
    for name in ("gan-samples.png", "evil.sh"):
        (tmp_path / "report/pictures" / name).write_text(name)
    redirected = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{tmp_path}/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://x-access-token:t@github.com/",
    }
    script = workflow["jobs"]["comment"]["steps"][1]["run"]
    run(script, tmp_path, **redirected)
    subprocess.run(["rm", "-r", str(tmp_path / "branch")], check=True)
    run(script, tmp_path, **redirected, GITHUB_RUN_ID="78")  # the next push to the pull request
    listed = ["git", "ls-tree", "-r", "--name-only", "darkroom-report-12"]
    found = subprocess.run(listed, cwd=remote, check=True, capture_output=True, text=True).stdout
    assert found == "78/gan-samples.png\n"
    (compare,) = [
        step["run"] for step in workflow["jobs"]["report"]["steps"] if "--images" in step.get("run", "")
    ]
    assert "$GITHUB_REPOSITORY/raw/darkroom-report-$PULL_REQUEST/$GITHUB_RUN_ID" in compare


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ("", "--method POST repos/owner/name/issues/12/comments --field body=@report/report.md --silent"),
        (
            "5\\n6\\n",
            "--method PATCH repos/owner/name/issues/comments/5 --field body=@report/report.md --silent",
        ),
    ],
)
def test_a_second_report_replaces_the_comment_of_the_first(workflow, tmp_path, known, expected):
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    run(
        workflow["jobs"]["comment"]["steps"][2]["run"],
        tmp_path,
        PATH=path,
        KNOWN=known,
        CALLS=str(tmp_path / "calls"),
    )
    listed, written = (tmp_path / "calls").read_text().splitlines()
    assert listed.startswith("api --paginate repos/owner/name/issues/12/comments --jq ")
    assert written == f"api {expected}"
