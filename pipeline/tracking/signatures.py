"""Signatures of registered versions with an elliptic-curve key, by OpenSSF's model-signing.

A signature covers each file of a version's folder. It is an artifact of the run that trained the version.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import check_hashes
from pipeline.tracking import connection
from pipeline.tracking.mlflow_index import ADDED, MlflowIndex, is_local, local_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "signatures"  # of a run's artifacts


def sign(environment: Environment, version: Any, key: Path, password: str = "") -> str:
    """Sign a version with the private ``key`` (PEM: P-256, P-384 or P-521); where the signature is.

    Raises ``BadInput`` if the key cannot be used, ``DarkroomError`` if the version or its run is damaged.
    """
    signing, secret = _library().signing.Config(), password.encode() or None
    try:
        signing.use_elliptic_key_signer(private_key=key, password=secret)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        remedy = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        raise BadInput(f"cannot be used as a private key: {error}", where=str(key), remedy=remedy) from None
    client, _ = connection.connect(environment)
    _refuse_damage(MlflowIndex(environment), version, client.get_run(version.run_id))
    with tempfile.TemporaryDirectory() as temporary, _files(client, version) as folder:
        signature = Path(temporary, _name(version))
        signing.set_hashing_config(_hashing()).sign(folder, signature)
        client.log_artifact(version.run_id, str(signature), FOLDER)
    connection.record_artifacts(client, version.run_id, [f"{FOLDER}/{_name(version)}"])
    return f"run {version.run_id}, {FOLDER}/{_name(version)}"


def _refuse_damage(index: MlflowIndex, version: Any, run: Any) -> None:
    """The signature would say that a damaged file is right."""
    if problem := index.check(version, fetch=True):
        raise DarkroomError("is not as it was registered", where=problem.path, remedy=problem.remedy)
    own, folder = f"{FOLDER}/{_name(version)}", connection.artifacts_folder(run)
    problem = index.check_run(run)
    if folder and problem and problem.path == str(folder / own):  # an earlier signature, which is replaced
        first = check_hashes(folder, own)
        problem = replace(problem, path=str(folder / first[0])) if first else None
    if problem:
        raise DarkroomError("is not as the run recorded it", where=problem.path, remedy=problem.remedy)


def check(client: "MlflowClient", version: Any, key: Path) -> str | None:
    """What is wrong with the signature of a version, by the public ``key`` (PEM); '' if it is right.

    None if the version has no signature. Raises ``BadInput`` if the key cannot be used.
    """
    verifying = _library().verifying.Config()
    try:
        verifying.use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError, AttributeError) as error:
        remedy = "name the public key, in PEM: openssl ec -in key.pem -pubout -out key.pub"
        raise BadInput(f"cannot be used as a public key: {error}", where=str(key), remedy=remedy) from None
    known = [entry.path for entry in client.list_artifacts(version.run_id, FOLDER)]
    if f"{FOLDER}/{_name(version)}" not in known:
        return None
    with tempfile.TemporaryDirectory() as temporary, _files(client, version) as folder:
        path = f"{FOLDER}/{_name(version)}"
        signature = client.download_artifacts(version.run_id, path, temporary)
        try:
            verifying.set_hashing_config(_hashing()).verify(folder, signature)
        except Exception as error:  # a damaged signature raises errors of several libraries
            return str(error) or f"not signed with this key ({type(error).__name__})"
    return ""


def _library() -> ModuleType:
    try:
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        what, remedy = f"the package {error.name} is not installed", "pip install 'darkroom[outward]'"
        raise BadInput(what, where="signatures", remedy=remedy) from None
    return model_signing


def _name(version: Any) -> str:
    return f"{version.name}-{version.version}.json"


@contextmanager
def _files(client: "MlflowClient", version: Any) -> Iterator[Path]:
    """The folder of a version. A remote one is downloaded for the time of the block."""
    from mlflow.artifacts import download_artifacts

    if is_local(version):
        yield local_files(version)
        return
    with tempfile.TemporaryDirectory() as temporary:
        uri = client.tracking_uri
        yield Path(download_artifacts(version.source, dst_path=temporary, tracking_uri=uri))


def _hashing() -> Any:
    """Which files count: all but the one that MLflow adds when it loads the version."""
    from model_signing.hashing import Config

    return Config().set_ignored_paths(paths=[Path(ADDED)], ignore_git_paths=False)
