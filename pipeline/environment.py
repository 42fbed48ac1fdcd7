"""Environment variables: workers, devices, Ray, storage, tracking. They do not change a result.

No other module reads os.environ.
"""

import math
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    # After this time, training continues without the lost machines; Ray counts machines every 20 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on GPUs
}

# Prefixes of variables that a calling DVC or git sets for its own repository.
FOREIGN = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


@dataclass(frozen=True)
class Environment:
    """Where the work is done and with which resources."""

    root: Path  # of the project, also in the temporary copies that DVC makes
    workers: Literal["auto"] | int = "auto"  # DARKROOM_WORKERS
    device: Literal["auto", "cpu", "cuda"] = "auto"  # DARKROOM_DEVICE
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
        """The device of a single process: the first GPU if there is one and DARKROOM_DEVICE allows it."""
        import torch

        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"


def find_project(start: Path) -> Path | None:
    """The nearest folder with dvc.yaml and .dvc, from ``start`` upward; None outside a project."""
    folders = (start.resolve(), *start.resolve().parents)
    return next(
        (folder for folder in folders if (folder / "dvc.yaml").is_file() and (folder / ".dvc").is_dir()), None
    )


def read() -> Environment:
    """The environment of this process. Its root is the project of the current folder, or else that folder.

    Raises ``BadInput`` for a value that cannot be used.
    """
    root = Path(os.environ.get("DVC_ROOT") or find_project(Path()) or ".").resolve()
    storage, remote = os.environ.get("DARKROOM_STORAGE") or str(root / ".darkroom"), ""
    if "://" in storage:
        storage, remote = str(root / ".darkroom"), storage.rstrip("/")
    if Path(storage).is_file():
        remedy = "name a folder that every worker sees, or an address such as s3://bucket/darkroom"
        raise BadInput(f"{storage!r} is not a folder", where="DARKROOM_STORAGE", remedy=remedy)
    workers = os.environ.get("DARKROOM_WORKERS") or "auto"
    return Environment(
        root=root,
        workers="auto" if workers == "auto" else _number("DARKROOM_WORKERS", workers, 1),
        device=_device(os.environ.get("DARKROOM_DEVICE") or "auto"),
        ray_address=os.environ.get("RAY_ADDRESS", ""),
        storage=Path(storage).resolve(),
        remote=remote,
        threads=_number("DARKROOM_THREADS", os.environ.get("DARKROOM_THREADS") or "0", 0),
        microbatch=_number("DARKROOM_MICROBATCH", os.environ.get("DARKROOM_MICROBATCH") or "0", 0, 1_000_000),
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root}/mlflow.db",
        artifacts=str(root / "mlartifacts"),
        mirror=os.environ.get("DARKROOM_MIRROR", ""),
        price_per_hour=_price(price) if (price := os.environ.get("DARKROOM_PRICE_PER_HOUR")) else None,
    )


def prepare() -> None:
    """Set the variables that Ray, MLflow, DVC and CUDA read at import, unless the user has set them."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "2")  # attempts of 40 s; the default is 20
    else:  # a local Ray: on loopback, with a token that is in no file
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def prepare_device() -> None:
    """Set the variable that CUDA reads at its start, in a worker on another machine."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", QUIET["CUBLAS_WORKSPACE_CONFIG"])


def use_interface(name: str) -> None:
    """Let gloo and NCCL use this network interface, unless the user has set one."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def dvc_stage() -> str:
    """The DVC stage of this process; '' if there is none."""
    return os.environ.get("DVC_STAGE", "")


def dvc_experiment() -> str:
    """The name of the DVC experiment of this process; '' if there is none."""
    return os.environ.get("DVC_EXP_NAME", "")


def user_units() -> Path:
    """The folder of the user's systemd units."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user"


def group() -> str:
    """The name of the retraining of this process; '' if there is none."""
    return os.environ.get("DARKROOM_GROUP", "")


def notification() -> tuple[str, str]:
    """Where retrainings send notifications: DARKROOM_NOTIFY_URL and DARKROOM_NOTIFY_COMMAND."""
    return os.environ.get("DARKROOM_NOTIFY_URL", ""), os.environ.get("DARKROOM_NOTIFY_COMMAND", "")


def for_child(changes: dict[str, str]) -> dict[str, str]:
    """The variables for a child process outside the current DVC stage, with ``changes``."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | changes


def debug() -> bool:
    """Whether errors are printed with a traceback (DARKROOM_DEBUG=1)."""
    return os.environ.get("DARKROOM_DEBUG", "") not in ("", "0")


def set_debug() -> None:
    """Print tracebacks from now on."""
    os.environ["DARKROOM_DEBUG"] = "1"


def _number(name: str, text: str, least: int, most: int = 10_000) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        remedy = f"use {'auto or ' if name == 'DARKROOM_WORKERS' else ''}a number from {least} to {most}"
        raise BadInput(f"{text!r} cannot be used", where=name, remedy=remedy)
    return int(text)


def _price(text: str) -> float:
    try:
        if 0 <= (price := float(text)) < math.inf:
            return price
    except ValueError:
        pass
    remedy = "use a number from 0, such as 0.75"
    raise BadInput(f"{text!r} is not a price", where="DARKROOM_PRICE_PER_HOUR", remedy=remedy)


def _device(text: str) -> Literal["auto", "cpu", "cuda"]:
    for known in ("auto", "cpu", "cuda"):
        if text == known:
            return known  # type: ignore[return-value]
    raise BadInput(f"{text!r} is not a device", where="DARKROOM_DEVICE", remedy="use auto, cpu or cuda")
