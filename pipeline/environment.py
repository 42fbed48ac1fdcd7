"""What is not the experiment: workers, devices, Ray, storage and tracking addresses. The only reader of os.environ."""

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
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # for lost machines, then fewer go on; Ray counts machines every 20 s
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on GPUs
}

FOREIGN = (
    "DVC_ROOT",
    "DVC_STAGE",
    "DVC_EXP",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
)  # of whoever called us


@dataclass(frozen=True)
class Environment:
    """Where and with how many hands the work is done; nothing here changes what is made."""

    root: Path  # the project, also inside DVC's temporary copies
    workers: Literal["auto"] | int = "auto"  # DARKROOM_WORKERS
    device: Literal["auto", "cpu", "cuda"] = "auto"  # DARKROOM_DEVICE
    ray_address: str = ""  # RAY_ADDRESS; empty: this machine alone
    storage: Path = Path(".darkroom")  # DARKROOM_STORAGE: checkpoints; a folder that every worker sees
    remote: str = ""  # DARKROOM_STORAGE as an address (s3://...), where no folder is seen by all; ``storage`` is this machine's then
    threads: int = 0  # DARKROOM_THREADS: of each worker; 0: all cores, shared among the workers of a machine
    microbatch: int = 0  # DARKROOM_MICROBATCH: examples that a worker computes at once, at most; 0: its whole share of a batch
    tracking_uri: str = ""  # MLFLOW_TRACKING_URI
    artifacts: str = ""  # where a new experiment on the default database keeps its files
    mirror: str = ""  # DARKROOM_MIRROR: a folder or base URL tried before the publishers'
    price_per_hour: float | None = (
        None  # DARKROOM_PRICE_PER_HOUR: of one worker, in any currency; for the report
    )

    @property
    def torch_device(self) -> str:
        """Where a single process computes: on the first GPU, where there is one and the user allows it."""
        import torch

        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"


def find_project(start: Path) -> Path | None:
    """The project that holds the folder ``start``: the nearest folder upward with dvc.yaml and .dvc; None outside one."""
    folders = (start.resolve(), *start.resolve().parents)
    return next(
        (folder for folder in folders if (folder / "dvc.yaml").is_file() and (folder / ".dvc").is_dir()), None
    )


def read() -> Environment:
    """The environment of this process; its root is the project that holds the current folder, or else that folder itself.

    Raises ``BadInput`` for a value that cannot be used.
    """
    root = Path(os.environ.get("DVC_ROOT") or find_project(Path()) or ".").resolve()
    storage, remote = os.environ.get("DARKROOM_STORAGE") or str(root / ".darkroom"), ""
    if "://" in storage:
        storage, remote = str(root / ".darkroom"), storage.rstrip("/")
    if Path(storage).is_file():
        remedy = "name a folder that every worker sees, or an address such as s3://bucket/darkroom"
        raise BadInput(f"{storage!r} is not a folder", where="DARKROOM_STORAGE", remedy=remedy)
    return Environment(
        root=root,
        workers="auto"
        if (workers := os.environ.get("DARKROOM_WORKERS") or "auto") == "auto"
        else _number("DARKROOM_WORKERS", workers, 1),
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
    """Set the switches that Ray, MLflow, DVC and CUDA read while they are imported. What the user set stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):  # a Ray of our own: on loopback, with a token that no file holds
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def prepare_device() -> None:
    """Set what CUDA reads when it starts, in a worker whose environment is another machine's."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", QUIET["CUBLAS_WORKSPACE_CONFIG"])


def use_interface(name: str) -> None:
    """Let gloo and NCCL speak through this network interface, unless the user named one."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def dvc_stage() -> str:
    """The DVC stage that this process runs as, or an empty string."""
    return os.environ.get("DVC_STAGE", "")


def dvc_experiment() -> str:
    """The name of the DVC experiment that this process belongs to, or an empty string."""
    return os.environ.get("DVC_EXP_NAME", "")


def user_units() -> Path:
    """Where systemd looks for a user's own units."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user"


def group() -> str:
    """The name of the retraining that this process works for, or an empty string."""
    return os.environ.get("DARKROOM_GROUP", "")


def notification() -> tuple[str, str]:
    """Whom to tell of a retraining: an address that takes JSON (DARKROOM_NOTIFY_URL) and a command (DARKROOM_NOTIFY_COMMAND)."""
    return os.environ.get("DARKROOM_NOTIFY_URL", ""), os.environ.get("DARKROOM_NOTIFY_COMMAND", "")


def for_child(changes: dict[str, str]) -> dict[str, str]:
    """This process's environment with ``changes``, for a child that is no part of the DVC stage that may be running."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | changes


def debug() -> bool:
    """Whether errors show their traceback (DARKROOM_DEBUG=1)."""
    return os.environ.get("DARKROOM_DEBUG", "") not in ("", "0")


def set_debug() -> None:
    """Show tracebacks from here on."""
    os.environ["DARKROOM_DEBUG"] = "1"


def _number(name: str, text: str, least: int, most: int = 10_000) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        remedy = f"use {'auto or ' if name == 'DARKROOM_WORKERS' else ''}a number from {least} to {most}"
        raise BadInput(f"{text!r} is not such a number", where=name, remedy=remedy)
    return int(text)


def _price(text: str) -> float:
    try:
        if 0 <= (price := float(text)) < math.inf:
            return price
    except ValueError:
        pass
    raise BadInput(
        f"{text!r} is not a price",
        where="DARKROOM_PRICE_PER_HOUR",
        remedy="use a number from 0, such as 0.75",
    )


def _device(text: str) -> Literal["auto", "cpu", "cuda"]:
    for known in ("auto", "cpu", "cuda"):
        if text == known:
            return known  # type: ignore[return-value]
    raise BadInput(f"{text!r} is not a device", where="DARKROOM_DEVICE", remedy="use auto, cpu or cuda")
