"""A Ray cluster of three hosts without a shared disk: membership, authentication, and lost hosts."""

import json
import secrets
import shlex
import shutil
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from pipeline.core import metrics_log
from pipeline.data.clips.compose import compose
from pipeline.data.clips.settings import ClipSettings
from tests.launch.hosts import NETWORK, SHARED, Hosts
from tests.project import PARAMS, ROOT, SHIPPED_MODELS, TRAINING, Project
from tests.test_families import MORE

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]

RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
HEALTH = {f"RAY_health_check_{name}_ms": "1000" for name in ("initial_delay", "period", "timeout")}
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
KEYS["AWS_ENDPOINT_URL"] = f"http://{NETWORK}.1:5555"
SMALL = ["--num-cpus", 1, "--object-store-memory", 200_000_000, "--temp-dir", "/tmp/ray"]
# On every weight, after 400 steps with three workers, then two, then perhaps three. In a network without
# kinks rounding errors stay small; in one with ReLU they grow to 0.1 from the first sign that differs.
TOLERANCE = 1e-4
HEAD = f"{NETWORK}.1:26379"
DRIVER = f"""import json, os, socket, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Node
ray.init(address="{HEAD}", logging_level="ERROR", log_to_driver=False)
report = lambda value: print(json.dumps(value))
alive = lambda: [node for node in ray.nodes() if node["Alive"]]
def on_each(function):
    task = ray.remote(num_cpus=0)(function)
    strategies = [Node(node["NodeID"], soft=False) for node in alive()]
    return ray.get([task.options(scheduling_strategy=each).remote() for each in strategies], timeout=60)
def wait_for(count, deadline=time.monotonic() + 90):
    while len(alive()) != count and time.monotonic() < deadline: time.sleep(0.2)
"""
NAMES = "report(sorted(on_each(lambda: socket.gethostname())))"
REQUESTS = """import requests, sys
for token in sys.argv[2:]:
    print(requests.get(sys.argv[1], headers={"Authorization": token or None}, timeout=30).status_code)
"""


def join(hosts, number):
    """Start Ray on a host: the head on the first, a node of it on the others."""
    role = (
        ["--address", HEAD] if number else ["--head", "--port", 26379, "--dashboard-host", hosts[0].address]
    )
    command = ["ray", "start", *role, "--node-ip-address", hosts[number].address, *SMALL]
    code, output = hosts[number].run(command, timeout=120, **RAY, **({} if number else HEALTH), **KEYS)
    assert code == 0, output


def drive(host, code):
    """The last value that a driver on ``host`` reported."""
    status, output = host.run(["python", "-c", DRIVER + code], timeout=180, **RAY)
    assert status == 0, output
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Hosts(3, tmp_path_factory.mktemp("hosts"), shared=tmp_path_factory.mktemp("shared")) as hosts:
        for number in range(3):
            join(hosts, number)
        yield hosts


def test_three_hosts_are_one_cluster(cluster):
    nodes = drive(
        cluster[0],
        "report(sorted([node['NodeManagerHostname'], node['NodeManagerAddress']] for node in alive()))",
    )
    assert nodes == [["host-0", "10.77.0.1"], ["host-1", "10.77.0.2"], ["host-2", "10.77.0.3"]]


def test_a_driver_without_the_token_is_refused(cluster):
    strangers = [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}]
    for process in [cluster[0].start(["python", "-c", DRIVER], **stranger) for stranger in strangers]:
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 1 and "Unauthenticated" in output, output


def test_the_job_api_works_with_the_token_and_answers_401_without(cluster):
    address = f"http://{cluster[0].address}:8265"
    tokens = ["", f"Bearer {secrets.token_hex(32)}", f"Bearer {RAY['RAY_AUTH_TOKEN']}"]
    code, output = cluster[1].run(["python", "-c", REQUESTS, f"{address}/api/jobs/", *tokens], timeout=120)
    assert code == 0 and output.split() == ["401", "403", "200"], output
    code, output = cluster[1].run(
        ["ray", "job", "submit", "--address", address, "--", "hostname"], timeout=120, cwd="/tmp", **RAY
    )
    assert code == 0 and "host-0" in output.splitlines(), output


def test_the_hosts_share_no_disk_but_the_shared_one(cluster):
    own = [
        "/tmp",
        "/dev/shm",
        *(f"{ROOT}/{name}" for name in (".darkroom", "data/processed/images", "models", "history")),
    ]
    places = " ".join(map(shlex.quote, [*own, str(SHARED)]))
    write = f'for folder in {places}; do mkdir -p "$folder"; touch "$folder/by-$(hostname)"; done'
    look = f"ls -1 -d {' '.join(f'{shlex.quote(folder)}/by-*' for folder in own)}"
    seen = drive(
        cluster[0],
        f"on_each(lambda: os.system({write!r}))\n"
        f"report(on_each(lambda: os.popen({look!r}).read().splitlines()))",
    )
    expected = [sorted(f"{folder}/by-host-{number}" for folder in own) for number in range(3)]
    assert sorted(sorted(names) for names in seen) == expected
    assert sorted(path.name for path in cluster.shared.iterdir()) == ["by-host-0", "by-host-1", "by-host-2"]


def test_a_host_that_is_cut_off_is_noticed_and_joins_again(cluster):
    cluster.cut(2)
    assert drive(cluster[0], f"wait_for(2)\n{NAMES}") == ["host-0", "host-1"]
    cluster.reconnect(2)
    cluster.kill(2)
    join(cluster, 2)
    assert drive(cluster[0], f"wait_for(3)\n{NAMES}") == ["host-0", "host-1", "host-2"]


@pytest.fixture(scope="module")
def store(cluster):
    """The variables to use s3://darkroom, a bucket on the first host. Nothing else is shared."""
    # The log goes to a file, because the server would block on a pipe that is not read.
    serve = f"exec python -m moto.server -H {cluster[0].address} -p 5555 > /tmp/s3.log 2>&1"
    server = cluster[0].start(["sh", "-c", serve])
    make = "import boto3; boto3.client('s3').create_bucket(Bucket='darkroom')"
    deadline = time.monotonic() + 60
    while cluster[0].run(["python", "-c", make], **KEYS)[0]:
        assert time.monotonic() < deadline and server.poll() is None
    return {**KEYS, "DARKROOM_STORAGE": "s3://darkroom/store", "RAY_ADDRESS": HEAD, **RAY}


def holds_worker(host):
    """Whether a training's worker runs on a host, according to the process titles."""
    titles = []
    for process in host.processes():
        with suppress(psutil.NoSuchProcess):
            titles += process.cmdline()[:1]
    return any(title.startswith("ray::RayTrainWorker") for title in titles)


def wait_past(project, training, step):
    """Wait until the training has logged a step after ``step``. It must not end before."""
    deadline = time.monotonic() + 240
    while (project.steps("rcnn") or [0])[-1] <= step:
        assert training.poll() is None, training.stdout.read()
        assert time.monotonic() < deadline, f"step {step} was not passed"
        time.sleep(0.1)


def wait_for_workers(hosts, training):
    """Wait until each of the three hosts runs a worker of the training. It must not end before."""
    deadline = time.monotonic() + 240
    while not all(holds_worker(hosts[number]) for number in range(3)):
        assert training.poll() is None, training.stdout.read()
        assert time.monotonic() < deadline, "a host has no worker"
        time.sleep(0.1)


@pytest.mark.timeout(1200)
def test_the_whole_pipeline_runs_on_three_hosts_that_share_no_disk(cluster, store):
    project = cluster[0].folder / "whole"
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvc", "data/own"):
        (project / name).mkdir(parents=True)
    for name in (".gitignore", ".dvcignore", ".dvc/.gitignore", "data/own/README.md", "dvc.yaml"):
        shutil.copy(ROOT / name, project / name)
    # The default of site_cache_dir is in /var/tmp, which is read-only here.
    (project / ".dvc/config").write_text("[core]\n    site_cache_dir = /tmp/whole/.dvc/site\n")
    (project / "params.yaml").write_text(json.dumps(PARAMS | MORE))
    commit = "git init -q && git add -A && git -c user.name=t -c user.email=t@example.org commit -q -m code"
    code, output = cluster[0].run(["sh", "-c", commit], cwd="/tmp/whole")
    assert code == 0, output
    command, store = ["darkroom", "repro", "--jobs", 2], {**store, "DARKROOM_STORAGE": "s3://darkroom/whole"}
    repro = cluster[0].start(command, cwd="/tmp/whole", **store)
    wait_for_workers(cluster, repro)
    output, _ = repro.communicate(timeout=900)
    assert repro.returncode == 0, output
    # The preflight's tables of 8 trainings on 3 hosts. Two hosts do not have the data.
    assert output.count("sent") == 16 and output.count("read and written") == 24
    for name in SHIPPED_MODELS:
        times = json.loads((project / f"history/{name}/times.json").read_text())
        assert (times["mode"], times["workers"]) == (f"cluster {HEAD}", 3)
        assert (project / f"models/{name}/model.safetensors").is_file()
    assert all(
        (project / made).is_file() for made in ("metrics/evaluation.json", "reports/index.html", "dvc.lock")
    )
    assert not any((cluster[number].folder / "whole").exists() for number in (1, 2))
    code, output = cluster[0].run(command, timeout=240, cwd="/tmp/whole", **store)
    assert code == 0 and output.count(": unchanged, ") == 13, output


@pytest.mark.timeout(600)
@pytest.mark.parametrize("lose", [Hosts.kill, Hosts.cut], ids=["killed", "cut"])
def test_a_training_over_three_hosts_survives_the_loss_of_one(
    cluster, store, processed_digits, tmp_path, lose
):
    name, grows = lose.__name__, lose is Hosts.kill
    alone, project = (
        Project(tmp_path / "alone", processed_digits),
        Project(cluster[0].folder / name, processed_digits),
    )
    for one in (alone, project):
        clips = one.folder / "data/processed/clips"
        compose(ClipSettings(**MORE["clips"]), images=processed_digits, target=clips)
        one.params["rcnn"] = {"model": {"width": 8}, "training": {**TRAINING, "num_steps": 400}}
        one.write()
    code, output = alone.run("stages.train", "rcnn")
    assert code == 0, output
    # Each case has its own storage; otherwise the second would find the result of the first.
    store = {**store, "DARKROOM_STORAGE": f"s3://darkroom/{name}"}
    if grows:
        # Ray Train looks for new hosts once a minute. One report per health check makes the training longer.
        store["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "4"
    training = cluster[0].start(["python", "-m", "stages.train", "rcnn"], cwd=f"/tmp/{name}", **store)
    wait_past(project, training, 40)
    assert holds_worker(cluster[2])
    lose(cluster, 2)
    lost_at = time.monotonic()
    time.sleep(5)  # let the last metrics be written
    reached = project.steps("rcnn")[-1]
    assert reached < 400 - TRAINING["checkpoint_every"], "the host was lost too late"
    wait_past(project, training, reached + TRAINING["checkpoint_every"])
    print(f"{name}: it continued {time.monotonic() - lost_at:.0f} s after the loss, from step {reached}")
    cluster.reconnect(2)
    cluster.kill(2)
    join(cluster, 2)  # while the training runs
    if grows:
        wait_for_workers(cluster, training)
        step = project.steps("rcnn")[-1]
        print(f"{name}: it grew {time.monotonic() - lost_at:.0f} s after the loss, at step {step}")
    output, _ = training.communicate(timeout=240)
    assert training.returncode == 0, output
    # The preflight's table.
    assert all(f"host-{number}" in output for number in range(3)) and "read and written" in output
    if grows:
        # Of the last workers only.
        times = json.loads((project.folder / "history/rcnn/times.json").read_text())
        taken = round(times["images_per_second"] * times["loop"] / TRAINING["batch_size"])
        print(f"the last workers took {taken} steps")
        # They started at a checkpoint after the loss.
        assert taken % TRAINING["checkpoint_every"] == 0 and 0 < taken < 400 - reached
    one, other = (load_file(where.folder / "models/rcnn/model.safetensors") for where in (alone, project))
    apart = {weight: float((one[weight].double() - other[weight].double()).abs().max()) for weight in one}
    print(f"weights are at most {max(apart.values()):.1e} apart")
    assert max(apart.values()) < TOLERANCE, apart
    mine, others = (
        metrics_log.read(where.folder / "history/rcnn/metrics.jsonl") for where in (alone, project)
    )
    assert [line["step"] for line in mine] == [line["step"] for line in others]
    last, expected = (lines[-1]["metrics"]["validation/frame_mse"] for lines in (others, mine))
    assert last == pytest.approx(expected, rel=1e-4)


def test_hosts_leave_nothing_behind_and_do_not_touch_the_machine(tmp_path):
    with Hosts(2, tmp_path) as hosts:
        left = hosts[1].start(["sh", "-c", "setsid sleep 1000 & echo started; wait"])
        assert left.stdout.readline() == "started\n"
        inside = [
            hosts.switch,
            *(host.pid for host in hosts),
            *(process.pid for process in hosts[1].processes()),
        ]
        assert len(inside) == 5
        assert NETWORK not in Path("/proc/net/fib_trie").read_text()
    assert not any(map(psutil.pid_exists, inside))
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
