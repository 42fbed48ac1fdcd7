"""The deployment files: valid manifests, restricted pods, Ray's cluster file, an unprivileged image."""

import copy
import json
import operator
import re
import shutil
import subprocess
import tomllib
from functools import reduce
from importlib.metadata import version
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.30"  # the oldest supported version
RENDERED = ["base", "overlays/job", "overlays/gpu", "overlays/s3"]
KUBERAY = json.loads((Path(__file__).parent / "kuberay.json").read_text())
SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY", re.IGNORECASE)
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
VOLUMES, HOST = (
    {"emptyDir", "persistentVolumeClaim"},
    {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"},
)


@pytest.fixture(scope="module")
def rendered():
    """The manifests of each folder as kustomize renders them, and those of MLflow and the schedule."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which renders kustomize's folders, is not installed")
    found = {"mlflow": (ROOT / "infra/mlflow/kubernetes.yaml").read_text()}
    for name in [*RENDERED, "schedule"]:
        folder = ROOT / ("infra/schedule/kubernetes" if name == "schedule" else f"infra/kubernetes/{name}")
        command = ["kubectl", "kustomize", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        found[name] = done.stdout
    return {name: list(yaml.safe_load_all(text)) for name, text in found.items()}


def cluster_of(manifests):
    """The specification of the cluster, from a RayCluster or a RayJob."""
    (ray,) = [each for each in manifests if each["apiVersion"] == "ray.io/v1"]
    return ray["spec"].get("rayClusterSpec", ray["spec"])


def templates_in(node):
    """All pod templates."""
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from templates_in(each)


def breaches(template):
    """The restrictions that a pod template lacks."""
    pod = template["spec"]
    context = pod.get("securityContext", {})
    yield from (f"{key} is set" for key in HOST & set(pod))
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser", 0) > 0:
        yield "may be root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccomp is not on"
    if pod.get("automountServiceAccountToken") is not False:
        yield "has a Kubernetes token"
    for volume in pod.get("volumes", []):
        if not set(volume) - {"name"} <= VOLUMES:
            yield f"volume {volume['name']} is of the host, or unknown"
    for container in pod["containers"] + pod.get("initContainers", []):
        if container.get("securityContext") != RESTRICTED:
            yield "container is not restricted"
        for kind in ("requests", "limits"):
            if not {"cpu", "memory", "ephemeral-storage"} <= set(
                container.get("resources", {}).get(kind, {})
            ):
                yield f"no {kind}"
        served = (
            pod.get("restartPolicy", "Always") == "Always"
        )  # the pod of a job ends by itself and serves no requests
        if served and not all(container.get(f"{kind}Probe") for kind in ("startup", "readiness", "liveness")):
            yield "no probes"
        if not re.search(r"(:(?!latest)[\w.-]+|@sha256:[0-9a-f]{64})$", container["image"]):
            yield "image is not pinned"
        for variable in container.get("env", []):
            if SECRET.search(variable["name"]) and "value" in variable:
                yield f"{variable['name']} stands in the file"


def test_every_manifest_validates(rendered):
    for manifest in (manifests := [manifest for each in rendered.values() for manifest in each]):
        own = [manifest]
        if manifest["apiVersion"] == "ray.io/v1":
            jsonschema.validate(manifest, KUBERAY)
            own = [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates_in(manifest)]
        for each in own:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
    kinds = {each["kind"] for each in manifests}
    assert kinds == {
        "Deployment",
        "Service",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "RayCluster",
        "RayJob",
        "CronJob",
    }


def test_a_misspelt_field_does_not_validate(rendered):
    (ray,) = [each for each in copy.deepcopy(rendered["overlays/job"]) if each["kind"] == "RayJob"]
    ray["spec"]["rayClusterSpec"]["authOption"] = {}
    with pytest.raises(jsonschema.ValidationError, match="'authOption' was unexpected"):
        jsonschema.validate(ray, KUBERAY)


def test_every_pod_is_restricted(rendered):
    for name, manifests in rendered.items():
        found = list(templates_in(manifests))
        assert len(found) == (1 if name in ("mlflow", "schedule") else 2)
        assert [breach for template in found for breach in breaches(template)] == [], name


@pytest.mark.parametrize(
    ("path", "value", "breach"),
    [
        (["securityContext", "runAsUser"], 0, "may be root"),
        (["securityContext", "seccompProfile"], {"type": "Unconfined"}, "seccomp is not on"),
        (["automountServiceAccountToken"], True, "has a Kubernetes token"),
        (["hostNetwork"], True, "hostNetwork is set"),
        (["volumes", 0], {"name": "tmp", "hostPath": {"path": "/"}}, "volume tmp is of the host, or unknown"),
        (
            ["containers", 0, "securityContext", "capabilities"],
            {"add": ["SYS_ADMIN"]},
            "container is not restricted",
        ),
        (["containers", 0, "resources"], {"requests": {"cpu": "1"}}, "no limits"),
        (["containers", 0, "livenessProbe"], None, "no probes"),
        (["containers", 0, "image"], "registry:5000/darkroom", "image is not pinned"),
        (["containers", 0, "image"], "darkroom:latest", "image is not pinned"),
        (
            ["containers", 0, "env"],
            [{"name": "RAY_AUTH_TOKEN", "value": "abc"}],
            "RAY_AUTH_TOKEN stands in the file",
        ),
    ],
)
def test_the_policy_sees_a_breach(rendered, path, value, breach):
    for name in (
        ("base",) if path[-1] == "livenessProbe" else ("base", "schedule")
    ):  # the pod of a job needs no probe
        template = copy.deepcopy(next(templates_in(rendered[name])))
        reduce(operator.getitem, path[:-1], template["spec"])[path[-1]] = value
        assert breach in list(breaches(template)), name


def test_the_cluster_has_the_workers_asked_for_and_shares_a_disk_unless_a_bucket_is_used(rendered):
    for name in RENDERED:
        cluster = cluster_of(rendered[name])
        (workers,), head = cluster["workerGroupSpecs"], cluster["headGroupSpec"]
        environment = {
            each["name"]: each.get("value") for each in head["template"]["spec"]["containers"][0]["env"]
        }
        shared = [
            "persistentVolumeClaim" in group["template"]["spec"]["volumes"][2] for group in (head, workers)
        ]
        assert shared == [True, name != "overlays/s3"]
        gpus = workers["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        assert environment["DARKROOM_WORKERS"] == ("auto" if gpus else str(workers["replicas"]))
        assert bool(gpus) == (name == "overlays/gpu") and head["rayStartParams"]["num-cpus"] == "0"
        assert cluster["rayVersion"] == version("ray") and cluster["authOptions"] == {"mode": "token"}


def test_the_network_is_closed_but_for_what_is_named(rendered):
    for name in RENDERED:
        rules = {
            each["metadata"]["name"]: each["spec"]
            for each in rendered[name]
            if each["kind"] == "NetworkPolicy"
        }
        assert rules["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        assert all(rule.get("from") for spec in rules.values() for rule in spec.get("ingress", []))
        beyond = {
            port["port"]
            for spec in rules.values()
            for rule in spec.get("egress", [])
            if "to" not in rule
            for port in rule["ports"]
        }
        assert beyond == ({53, 443} if name == "overlays/s3" else {53})
        tracked = cluster_of(rendered[name])["headGroupSpec"]["template"]["metadata"]["labels"]
        (demanded,) = [each for each in rendered["mlflow"] if each["kind"] == "NetworkPolicy"]
        assert (
            demanded["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items() <= tracked.items()
        )


def test_rays_launcher_takes_the_cluster_file_and_the_token_is_no_part_of_it():
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (ROOT / "infra/ray/cluster.yaml").read_text()
    validate_config(config := prepare_config(yaml.safe_load(text)))
    starts = [
        line
        for kind in ("head", "worker")
        for line in config[f"{kind}_start_ray_commands"]
        if "ray start" in line
    ]
    assert (
        len(starts) == 2
        and all("RAY_AUTH_MODE=token" in line for line in starts)
        and "RAY_AUTH_TOKEN" not in text
    )


def test_the_image_is_pinned_without_root_and_holds_no_secret_and_what_changes_oftenest_comes_last():
    text = (ROOT / "infra/docker/Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", text).splitlines()
    assert all(
        re.search(r":\d+\.\d+-slim-\w+$", line.split()[1]) for line in lines if line.startswith("FROM ")
    )
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert not [line for line in lines if line.startswith("ADD ") or re.search(r"\b(curl|wget)\b", line)]
    settings = re.findall(
        r"(\w+)=(\S*)", " ".join(line for line in lines if line.startswith(("ENV ", "ARG ")))
    )
    assert not [name for name, _ in settings if SECRET.search(name)] and {
        ("RAY_AUTH_MODE", "token"),
        ("HOME", "/tmp"),
    } <= set(settings)
    assert (
        text.index("COPY requirements.lock")
        < text.index("-c requirements.lock -r wanted.txt")
        < text.index("COPY --from=commit")
    )
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r'extras\["(\w+)"\]', text)) == {"s3", "cluster"} <= set(extras)
