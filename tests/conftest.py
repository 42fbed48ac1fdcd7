import os

import pytest

from pipeline import environment, process
from tests import forked

environment.prepare()

# The files that take over twenty seconds, the longest first.
NAMES = (
    "test_chaos",
    "test_cluster",
    "test_retrain",
    "test_server",
    "test_families",
    "test_preprocess",
    "test_project",
    "test_trials",
    "test_verify",
    "test_integrity",
    "test_evaluate",
)
LONGEST = {f"{name}.py": position for position, name in enumerate(NAMES)}
process.collect_garbage_rarely()


def pytest_configure(config):
    """Without the tests of the night, save the imports of the processes that tests start."""
    if "not nightly" in config.option.markexpr:
        forked.install()


def pytest_collection_modifyitems(items):
    """Start the files with slow tests first: each file runs in one process, and the last ones end alone."""
    slow = {item.path: 0 for item in items}
    for item in items:
        slow[item.path] += any(item.get_closest_marker(name) for name in ("slow", "cluster"))
    items.sort(key=lambda item: (-min(1, slow[item.path]), LONGEST.get(item.path.name, len(LONGEST))))


@pytest.fixture(scope="session", autouse=True)
def empty_working_directory(tmp_path_factory):
    """Tests start in an empty folder, because the checkout may contain dvc.lock, history/ and models/."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def processed_digits(tmp_path_factory):
    """The digits at 8 x 8 pixels, as the stages download and preprocess write them."""
    from tests.project import Project

    return Project(tmp_path_factory.mktemp("digits")).folder / "data/processed/images"


@pytest.fixture(scope="session")
def bucket():
    """Moto's S3 on loopback with the bucket ``darkroom``: a client, and environment variables for others."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="darkroom")
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    yield client, {**keys, "AWS_ENDPOINT_URL": endpoint}
    server.stop()
