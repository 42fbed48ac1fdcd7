import os

import pytest

from pipeline import environment, process

environment.prepare()
process.collect_garbage_rarely()


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


@pytest.fixture
def toy_models(monkeypatch):
    """The models of tests/toys are found like those of pipeline/models."""
    import pipeline.models
    from tests import toys

    monkeypatch.setattr(pipeline.models, "__path__", [*pipeline.models.__path__, str(toys.FOLDER / "models")])
