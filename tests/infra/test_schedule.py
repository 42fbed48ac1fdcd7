"""Schedules without a crontab: the Kubernetes CronJob, the script of its pod, and GitHub's workflow.

test_kubernetes.py tests that the CronJob is valid and its pod is restricted.
"""

import copy
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.infra.test_kubernetes import rendered  # noqa: F401

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra/schedule"
WORKFLOW = json.loads((Path(__file__).parent / "workflow.json").read_text())
GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]


@pytest.fixture
def workflow():
    """The workflow; YAML 1.1 reads its key ``on`` as true."""
    read = yaml.safe_load((FOLDER / "workflow.yml").read_text())
    return {"on" if name is True else name: value for name, value in read.items()}


def test_the_cronjob_never_overlaps_always_ends_and_repeats_only_what_was_killed(rendered):  # noqa: F811
    (job,) = [each["spec"] for each in rendered["schedule"] if each["kind"] == "CronJob"]
    assert (job["schedule"], job["timeZone"], job["concurrencyPolicy"]) == ("30 2 * * *", "Etc/UTC", "Forbid")
    assert 0 < job["startingDeadlineSeconds"] < 24 * 3600 and job["failedJobsHistoryLimit"] >= 1
    work = job["jobTemplate"]["spec"]
    assert work["activeDeadlineSeconds"] < 24 * 3600 and work["backoffLimit"] > 0
    disrupted, ended = work["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Ignore" and disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"
    (container,) = work["template"]["spec"]["containers"]
    assert ended == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [1, 2, 75]},
    }
    assert work["template"]["spec"]["restartPolicy"] == "Never"  # required by podFailurePolicy
    assert (
        ROOT / Path(container["command"][1]).relative_to("/opt/darkroom") == FOLDER / "kubernetes/retrain.sh"
    )


def test_the_cronjobs_pod_reaches_mlflow_and_accepts_no_connections(rendered):  # noqa: F811
    (job,) = [
        each["spec"]["jobTemplate"]["spec"] for each in rendered["schedule"] if each["kind"] == "CronJob"
    ]
    labels = job["template"]["metadata"]["labels"].items()
    rules = {
        each["metadata"]["name"]: each["spec"]
        for each in rendered["schedule"]
        if each["kind"] == "NetworkPolicy"
    }
    assert rules["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    own = rules["retrain"]
    assert (
        own["podSelector"]["matchLabels"].items() <= labels
        and own["policyTypes"] == ["Ingress", "Egress"]
        and "ingress" not in own
    )
    assert {port["port"] for rule in own["egress"] if "to" not in rule for port in rule["ports"]} == {53}
    (demanded,) = [each for each in rendered["mlflow"] if each["kind"] == "NetworkPolicy"]
    assert demanded["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items() <= labels


class TestThePodsScript:
    @pytest.fixture
    def place(self, tmp_path):
        """The commit of an image, a volume, and fake dvc and darkroom that record their calls."""
        image = tmp_path / "image"
        (image / "infra/schedule/kubernetes").mkdir(parents=True)
        shutil.copy(FOLDER / "kubernetes/retrain.sh", image / "infra/schedule/kubernetes")
        self.git(image, "init", "--quiet")
        self.commit(image, "first")
        (tmp_path / "programs").mkdir()
        (tmp_path / "volume").mkdir()
        for name, code in (("dvc", 0), ("darkroom", 7)):
            program = tmp_path / "programs" / name
            program.write_text(f'#!/bin/sh\necho "$PWD: {name} $*" >>"$CALLS"\nexit {code}\n')
            program.chmod(0o755)
        return tmp_path

    @staticmethod
    def git(folder, *arguments):
        return subprocess.run(
            [*GIT, *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    def commit(self, folder, text):
        (folder / "code.py").write_text(text)
        self.git(folder, "add", "--all")
        self.git(folder, "commit", "--quiet", "--message", text)

    def start(self, place, **more):
        """(exit code, calls, error) of the script."""
        calls = place / "calls"
        calls.unlink(missing_ok=True)
        variables = {
            "PATH": f"{place / 'programs'}:{os.environ['PATH']}",
            "DARKROOM_SHARED": str(place / "volume"),
            "CALLS": str(calls),
        }
        script = place / "image/infra/schedule/kubernetes/retrain.sh"
        done = subprocess.run(
            ["/bin/sh", script], env=variables | more, capture_output=True, text=True, timeout=30, check=False
        )
        return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stderr

    def test_the_first_run_creates_the_project_and_each_ends_with_the_commands_exit_code(self, place):
        project = place / "volume/projects/retrain"
        expected = [
            f"{project}: dvc config --local cache.dir {place}/volume/cache",
            f"{project}: darkroom retrain",
        ]
        assert self.start(place) == (7, expected, "")
        self.commit(project, "what a night committed")
        assert (
            self.start(place) == (7, expected, "")
            and (project / "code.py").read_text() == "what a night committed"
        )
        assert [path.name for path in (place / "volume").iterdir()] == ["projects"]

    def test_a_bucket_is_made_known_to_dvc(self, place):
        code, calls, _ = self.start(place, DARKROOM_DVC_REMOTE="s3://bucket/dvc")
        assert code == 7 and calls[1].endswith(
            "dvc remote add --local --force --quiet --default team s3://bucket/dvc"
        )

    def test_an_image_that_the_project_is_not_of_is_refused(self, place):
        self.start(place)
        self.commit(place / "image", "second")
        code, calls, error = self.start(place)
        assert (
            (code, calls) == (2, [])
            and self.git(place / "image", "rev-parse", "HEAD") in error
            and "git merge" in error
        )

    def test_a_project_that_cannot_be_completed_is_not_created(self, place):
        (place / "programs/cp").write_text("#!/bin/sh\nexit 1\n")
        (place / "programs/cp").chmod(0o755)
        assert self.start(place)[:2] == (1, []) and not (place / "volume/projects/retrain").exists()


def test_the_workflow_is_what_githubs_syntax_allows(workflow):
    jsonschema.Draft202012Validator.check_schema(WORKFLOW)
    jsonschema.validate(workflow, WORKFLOW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda all: all.update(schedule=[]), "'schedule' was unexpected"),
        (lambda all: all["on"]["schedule"][0].update(cron="30 2 * *"), "does not match"),
        (
            lambda all: all["jobs"]["retrain"].pop("timeout-minutes"),
            "'timeout-minutes' is a required property",
        ),
        (lambda all: all["jobs"]["retrain"].update({"timeout-minutes": 900}), "greater than the maximum"),
        (
            lambda all: all["jobs"]["retrain"]["steps"][0].update(uses="actions/checkout@v4"),
            "is not valid|does not match",
        ),
        (
            lambda all: all["jobs"]["retrain"]["steps"][0].update(run="true"),
            "valid under each of|is not valid",
        ),
        (lambda all: all["permissions"].update(packages="write"), "'packages' was unexpected"),
        (lambda all: all.update(permissions="write-all"), "is not of type 'object'"),
    ],
)
def test_a_workflow_with_a_mistake_or_more_rights_does_not_validate(workflow, change, message):
    change(changed := copy.deepcopy(workflow))
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(changed, WORKFLOW)


def test_the_workflow_waits_for_the_one_before_and_its_scripts_take_no_text_from_outside(workflow):
    assert workflow["concurrency"] == {"group": "darkroom-retrain", "cancel-in-progress": False}
    steps = workflow["jobs"]["retrain"]["steps"]
    scripts = [step["run"] for step in steps if "run" in step]
    assert "darkroom retrain" in scripts and not [script for script in scripts if "${{" in script]
    for script in scripts:
        assert (
            subprocess.run(["bash", "-n"], input=script, text=True, timeout=10, check=False).returncode == 0
        )
    for step in steps:  # installed packages have no access to secrets
        assert "secrets." not in json.dumps(step) or re.search("dvc pull|darkroom retrain", step["run"])


def test_the_readme_names_files_that_are_there():
    text = (FOLDER / "README.md").read_text()
    links = [one or other for one, other in re.findall(r"\]\(([^)#]+)\)|^\[\w+\]: (.+)$", text, re.MULTILINE)]
    assert len(text.splitlines()) <= 120 and len(links) >= 8
    assert not [link for link in links if not (FOLDER / link).exists()]
