"""Environment variables: workers, devices, Ray, storage, tracking. They do not change a result.

No other module reads os.environ.
"""

import hmac
import os
import re
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import limits
from pipeline.errors import BadInput

QUIET = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default, 2.0, costs 5 s at the end of each training
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",  # the default waits for ever
    # A worker whose process does not answer, such as a stopped one, is replaced; the default is ten minutes.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    # After this time, training continues without the lost machines; Ray counts machines every 20 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on GPUs
}

# The accepted values of variables, and their description.
ACCEPTED = {
    "DARKROOM_WORKERS": (r"auto|[1-9]\d{0,3}|10000", "auto or a number from 1 to 10000"),
    "DARKROOM_DEVICE": ("auto|cpu|cuda|mps", "auto, cpu, cuda or mps"),
    "DARKROOM_THREADS": (r"\d{1,4}|10000", "a number from 0 to 10000"),
    "DARKROOM_MICROBATCH": (r"\d{1,6}|1000000", "a number from 0 to 1000000"),
    "DARKROOM_PRIVACY_SECRET": (r"[0-9a-f]{64}", "64 hexadecimal digits"),
    "DARKROOM_PRICE_PER_HOUR": (r"\d*\.?\d+", "a number from 0, such as 0.75"),
    "MLFLOW_TRACKING_URI": (  # MLflow takes anything else for a folder, and has given up that store
        r"(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://.+|databricks(-uc)?(://.+)?",
        "an address such as https://mlflow.example.org or sqlite:///mlflow.db",
    ),
}
# Prefixes of variables that a calling DVC or git sets for its own repository.
UNFINISHED = ".privacy-secret-"  # the name of a secret that is being written begins so
FOREIGN = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


@dataclass(frozen=True)
class Environment:
    """Where the work is done and with which resources."""

    root: Path  # of the project, also in the temporary copies that DVC makes
    workers: Literal["auto"] | int = "auto"  # DARKROOM_WORKERS
    device: str = "auto"  # DARKROOM_DEVICE: auto, cpu, cuda or mps
    ray_address: str = ""  # RAY_ADDRESS; '': this machine
    storage: Path = Path(".darkroom")  # DARKROOM_STORAGE: a folder for checkpoints, shared by all workers
    remote: str = ""  # DARKROOM_STORAGE if it is an address (s3://...); ``storage`` is then a local folder
    threads: int = 0  # DARKROOM_THREADS: per worker; 0: the cores divided by the workers of a machine
    microbatch: int = 0  # DARKROOM_MICROBATCH: most examples computed at once; 0: a worker's part of a batch
    tracking_uri: str = ""  # MLFLOW_TRACKING_URI
    artifacts: str = ""  # folder for the files of a new experiment in the default database
    mirror: str = ""  # DARKROOM_MIRROR: a folder or base URL tried before the publishers'
    price_per_hour: float | None = None  # DARKROOM_PRICE_PER_HOUR: of one worker, for the report

    @property
    def torch_device(self) -> str:
        """The device of an evaluation: the first GPU if there is one and DARKROOM_DEVICE allows it.

        Not "mps", which has no float64.
        """
        import torch

        return "cuda" if self.device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"


def find_project(start: Path) -> Path | None:
    """The nearest folder with dvc.yaml and .dvc, from ``start`` upward; None outside a project."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "dvc.yaml").is_file() and (folder / ".dvc").is_dir():
            return folder
    return None


def read() -> Environment:
    """The environment of this process. Its root is the project of the current folder, or else that folder.

    Raises ``BadInput`` for a value that cannot be used.
    """
    root = Path(_get("DVC_ROOT") or find_project(Path()) or ".").resolve()
    storage, remote = _get("DARKROOM_STORAGE", str(root / ".darkroom")), ""
    if "://" in storage:
        storage, remote = str(root / ".darkroom"), storage.rstrip("/")
    if Path(storage).is_file():
        remedy = "name a folder that every worker sees, or an address such as s3://bucket/darkroom"
        raise BadInput(f"{storage!r} is not a folder", where="DARKROOM_STORAGE", remedy=remedy)
    workers, price = _get("DARKROOM_WORKERS", "auto"), _get("DARKROOM_PRICE_PER_HOUR")
    return Environment(
        root=root,
        workers="auto" if workers == "auto" else int(workers),
        device=_get("DARKROOM_DEVICE", "auto"),
        ray_address="" if _get("RAY_ADDRESS") == "local" else _get("RAY_ADDRESS"),
        storage=Path(storage).resolve(),
        remote=remote,
        threads=int(_get("DARKROOM_THREADS", "0")),
        microbatch=int(_get("DARKROOM_MICROBATCH", "0")),
        tracking_uri=_get("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db"),
        artifacts=str(root / "mlartifacts"),
        mirror=_get("DARKROOM_MIRROR"),
        price_per_hour=float(price) if price else None,
    )


def _get(name: str, default: str = "") -> str:
    """A variable, or ``default`` if it is empty. Raises ``BadInput`` for a value that is not accepted."""
    text = os.environ.get(name) or default
    pattern, accepted = ACCEPTED.get(name, (".*", ""))
    if text and not re.fullmatch(pattern, text, re.ASCII | re.DOTALL):
        shown = "***" if name.endswith("SECRET") else re.sub(r"[^/]*@", "***@", text)  # without a password
        raise BadInput(f"{shown!r} cannot be used", where=name, remedy=f"use {accepted}")
    return text


def prepare() -> None:
    """Set variables that libraries read at import, unless the user has set them.

    RAY_ADDRESS=local is removed: a Ray of this machine is started with a token and on loopback then, too.
    """
    if os.environ.get("RAY_ADDRESS") == "local":
        del os.environ["RAY_ADDRESS"]
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if limits.cpu_quota() < (os.cpu_count() or 1):  # OpenMP, and so PyTorch and BLAS, only know the affinity
        os.environ.setdefault("OMP_NUM_THREADS", str(limits.cpu_count()))
    if os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "2")  # attempts of 40 s; the default is 20
    else:  # a local Ray: on loopback, with a token that is in no file
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def decides_waiting() -> bool:
    """Whether the user decides how long the threads of OpenMP wait for each other before they sleep."""
    return bool(_get("GOMP_SPINCOUNT") or _get("OMP_WAIT_POLICY"))


def prepare_device() -> None:
    """Set the variable that CUDA reads at its start, in a worker on another machine."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", QUIET["CUBLAS_WORKSPACE_CONFIG"])


def use_interface(name: str) -> None:
    """Let gloo and NCCL use this network interface, unless the user has set one."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def dvc_stage() -> str:
    """The DVC stage of this process; '' if there is none."""
    return _get("DVC_STAGE")


def dvc_experiment() -> str:
    """The name of the DVC experiment of this process; '' if there is none."""
    return _get("DVC_EXP_NAME")


def user_units() -> Path:
    """The folder of the user's systemd units."""
    return Path(_get("XDG_CONFIG_HOME", str(Path.home() / ".config"))) / "systemd/user"


def group() -> str:
    """The name of the retraining of this process; '' if there is none."""
    return _get("DARKROOM_GROUP")


def notification() -> tuple[str, str]:
    """Where retrainings send notifications: DARKROOM_NOTIFY_URL and DARKROOM_NOTIFY_COMMAND."""
    return _get("DARKROOM_NOTIFY_URL"), _get("DARKROOM_NOTIFY_COMMAND")


def openlineage_key() -> str:
    """The key of the OpenLineage server: OPENLINEAGE_API_KEY."""
    return _get("OPENLINEAGE_API_KEY")


def privacy_secret(environment: Environment) -> str:
    """DARKROOM_PRIVACY_SECRET, or else the secret in the storage folder, which is made if it is missing.

    It is 64 hexadecimal digits. Raises ``BadInput`` if others may read the file, or it holds something else.
    """
    if secret := _get("DARKROOM_PRIVACY_SECRET"):
        return secret
    path = environment.storage / "privacy-secret"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with (
            suppress(FileExistsError, FileNotFoundError),  # another process was faster
            tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=UNFINISHED) as file,  # its mode is 0600
        ):
            file.write(secrets.token_hex(32))
            file.flush()
            os.link(file.name, path)
    for left in path.parent.glob(f"{UNFINISHED}*"):  # a killed process left a copy
        left.unlink(missing_ok=True)
    try:
        secret, mode = path.read_text(encoding="utf-8", errors="replace"), path.stat().st_mode
    except PermissionError:
        secret, mode = "", 0
    if mode & 0o077 or not re.fullmatch(ACCEPTED["DARKROOM_PRIVACY_SECRET"][0], secret):
        remedy = f"chmod 600 {path}, set DARKROOM_PRIVACY_SECRET, or delete it for a new secret"
        raise BadInput("is not a secret of 64 digits that only you can read", where=str(path), remedy=remedy)
    return secret


def privacy_key(environment: Environment, fingerprint: str) -> bytes:
    """The key of the noise of one private training, from the secret.

    Another training has another key: the same noise in two would show how their data differ.
    """
    return hmac.digest(bytes.fromhex(privacy_secret(environment)), fingerprint.encode(), "sha256")


def for_child(changes: dict[str, str]) -> dict[str, str]:
    """The variables for a child process outside the current DVC stage, with ``changes``."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | changes


def debug() -> bool:
    """Whether errors are printed with a traceback (DARKROOM_DEBUG=1)."""
    return _get("DARKROOM_DEBUG", "0") != "0"


def set_debug() -> None:
    """Print tracebacks from now on."""
    os.environ["DARKROOM_DEBUG"] = "1"


def checked_params() -> str:
    """The digest of the params.yaml that the ``darkroom repro`` around this process has checked, or ''."""
    return _get("DARKROOM_CHECKED_PARAMS")


def set_checked_params(digest: str) -> None:
    """Spare the stages that this process starts the check of the params.yaml with ``digest``."""
    os.environ["DARKROOM_CHECKED_PARAMS"] = digest
