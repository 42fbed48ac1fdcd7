import pytest

from pipeline import environment

environment.prepare()


@pytest.fixture(scope="session")
def processed_digits(tmp_path_factory):
    """The digits at 8 x 8 pixels, as the stages download and preprocess make them."""
    from tests.project import Project

    return Project(tmp_path_factory.mktemp("digits")).folder / "data/processed"
