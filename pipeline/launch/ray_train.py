"""Run the workers of a training with Ray Train's TorchTrainer."""

import json
import logging
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import model_files
from pipeline.environment import Environment, privacy_key
from pipeline.errors import DarkroomError, remedy_for
from pipeline.files import write_text
from pipeline.launch.plan import Plan
from pipeline.launch.preflight import TOKEN, USABLE, PreflightRequest, check_cluster, format_table
from pipeline.launch.rendezvous import use_loopback, use_node_address
from pipeline.launch.storage import Mirror, open_address
from pipeline.launch.worker import KINDS, train_worker
from pipeline.limits import LESS_MEMORY, oom_kills, out_of_memory

if TYPE_CHECKING:
    from pipeline.launch.training import Training

WORKER_TIMEOUT_SECONDS = 300
MAX_FAILURES = 3
LOST_WORKER = "a worker's process or machine was lost"
SILENT_WORKER = "a worker did not answer in time"
TIMEOUTS = ("health check has been hanging", "Timed out waiting")  # in the errors of Ray and of gloo
MEMORY_IN_USE = re.compile(r"[\d.]+GB used / [\d.]+GB limit")  # in Ray's OutOfMemoryError
MAX_SENT_BYTES = 2_000_000_000  # larger data goes through the storage address, not Ray's object store


def fit(training: "Training", environment: Environment, plan: Plan, folder: Path) -> dict[str, float]:
    """Run the workers; return when rank 0 ``entered`` and ``left`` its function (seconds since the epoch)."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.torch.config import _TorchBackend

    set_up_rendezvous = use_node_address if environment.ray_address else use_loopback

    class RendezvousBackend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(set_up_rendezvous)
            super().on_start(worker_group, backend_config)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            """Nothing: the workers are killed next, and Ray would wait half a minute for one that hangs."""

    class RendezvousConfig(TorchConfig):
        backend_cls = RendezvousBackend

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # at INFO it logs each report
    job = _job(training, plan, folder, environment.microbatch)
    job |= _weights(training, environment, share=plan.workers > 0)
    if environment.remote:
        job["storage"] = _address(environment, folder)
    if environment.ray_address:
        job |= _prepare_cluster(training, environment)
        _report_if_busy(plan)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job,
        torch_config=RendezvousConfig(timeout_s=WORKER_TIMEOUT_SECONDS),
        scaling_config=ScalingConfig(**plan.scaling(elastic=bool(environment.ray_address))),
        run_config=RunConfig(
            name=f"{folder.name}-{time.time_ns()}",  # always new: CheckpointStore resumes a training, not Ray
            **_ray_storage(environment, folder),
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    # Without Ray's handler Ctrl-C raises KeyboardInterrupt, and the process ends with exit code 130.
    trainer._register_sigint_handler = lambda controller: None
    if plan.workers and not environment.ray_address:
        _disable_dashboard_callback(trainer)
    num_killed = oom_kills()
    try:
        result = trainer.fit().return_value
    except Exception as error:
        raise _to_darkroom_error(error, training.name, oom_kills() > num_killed) from error
    finally:
        _remove_ray_files(environment, folder)
    if failure := (result or {}).get("error"):
        raise KINDS[result["kind"]](**failure)
    return result


def _report_if_busy(plan: Plan) -> None:
    import ray

    (kind, each), *_ = plan.resources.items()
    free, needed = int(ray.available_resources().get(kind, 0)), each * plan.workers
    if free < needed:
        message = f"{free} of {needed:g} {kind}s are free on the cluster: waiting for other jobs to end"
        print(message, flush=True)


def open_mirror(environment: Environment, folder: Path) -> Mirror | None:
    """The copy of the training's folder at the storage address, if DARKROOM_STORAGE is an address."""
    return Mirror(folder, _address(environment, folder)) if environment.remote else None


def _address(environment: Environment, folder: Path) -> str:
    return f"{environment.remote}/trainings/{folder.name}"


def _job(training: "Training", plan: Plan, folder: Path, microbatch: int) -> dict[str, Any]:
    return {
        "name": training.name,
        "settings": training.settings.model_dump_json(),
        "config": training.config.model_dump_json(),
        "data": str(training.data.folder.resolve()),
        "digest": training.data.digest,
        "folder": str(folder),
        "threads": plan.threads,
        "microbatch": microbatch,
        "device": plan.device,
        "card": {
            "fingerprint": training.fingerprint,
            "data": training.data.digest,
            "source": training.data.source,
            "images": len(training.data.train),
            "class_names": list(training.data.class_names),
            "fit": training.data.manifest.get("settings", {}).get("fit", "crop"),
            "bit_depth": training.data.manifest.get("bit_depth", 16),
            "training": json.loads(training.settings.model_dump_json()),
        },
    }


def _weights(training: "Training", environment: Environment, share: bool) -> dict[str, Any]:
    """The entries of the job with weights, initial ones and of needed models, and with the key of the noise.

    With ``share`` they are references in Ray's object store.
    """
    import ray

    put = ray.put if share else lambda value: value
    needs = {}
    for name, folder in training.needs.items():
        card, weights = model_files.read(folder)
        needs[name] = (card, put(weights))
    private = getattr(training.config, "privacy", None)
    key = {"privacy_key": put(privacy_key(environment, training.fingerprint))} if private else {}
    return {"needs": needs, "initial_weights": put(training.initial_weights()), **key}


def _prepare_cluster(training: "Training", environment: Environment) -> dict[str, Any]:
    """Check the cluster's machines and provide the data. Returns entries for the job that locate the data.

    Raises ``DarkroomError`` if a machine has other versions or cannot use the storage.
    """
    import ray

    data = training.data.folder.resolve()
    write_text(environment.storage / TOKEN, "")
    storage = environment.remote or str(environment.storage)
    machines, problems = check_cluster(PreflightRequest(storage, str(data), training.data.digest))
    print(format_table(machines), flush=True)
    without_storage = [machine["host"] for machine in machines if machine["storage"] not in USABLE]
    if without_storage:
        problems.append(f"the storage {storage} cannot be used from {', '.join(without_storage)}")
    if problems:
        remedy = "use the same image on all machines; set DARKROOM_STORAGE to a shared folder or s3://..."
        raise DarkroomError("; ".join(problems), where=environment.ray_address, remedy=remedy)
    if all(machine["data"] == "visible" for machine in machines):
        return {}
    files = {path.relative_to(data).as_posix(): path for path in sorted(data.rglob("*")) if path.is_file()}
    size = sum(path.stat().st_size for path in files.values())
    if size <= MAX_SENT_BYTES:
        return {"data_refs": {name: ray.put(path.read_bytes()) for name, path in files.items()}}
    if not environment.remote:
        what = f"{size / 1e9:.1f} GB of data are too large to send to each machine"
        remedy = (
            "set DARKROOM_STORAGE=s3://bucket/path, or put the project on storage that all machines share"
        )
        raise DarkroomError(what, where=str(data), remedy=remedy)
    address = f"{environment.remote}/data/{training.data.digest}"
    Mirror(data, address).push()
    return {"data_address": address}


def _ray_storage(environment: Environment, folder: Path) -> dict[str, Any]:
    """Where Ray Train writes its own state. We do not read it, but every machine must be able to write it."""
    if not environment.remote:
        return {"storage_path": str(folder / "ray")}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, root = open_address(f"{environment.remote}/ray")
    return {"storage_path": root, "storage_filesystem": PyFileSystem(FSSpecHandler(filesystem))}


def _remove_ray_files(environment: Environment, folder: Path) -> None:
    """Remove what Ray Train wrote for this training, also in attempts that were killed."""
    shutil.rmtree(folder / "ray", ignore_errors=True)
    if environment.remote:
        filesystem, root = open_address(f"{environment.remote}/ray")
        with suppress(Exception):  # each file system has its own errors; the training itself has ended
            for path in filesystem.glob(f"{root}/{folder.name}-*"):
                filesystem.rm(path, recursive=True)


def _disable_dashboard_callback(trainer: Any) -> None:
    """Remove the callback that polls the dashboard every second.

    A local Ray has none, so it would only warn.
    """
    default = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [
        callback for callback in default() if type(callback).__name__ != "PlacementGroupCleanerCallback"
    ]


def _to_darkroom_error(error: Exception, name: str, killed: bool) -> Exception:
    """``killed``: meanwhile the kernel has ended a process of this machine because memory ran out."""
    from ray.exceptions import OutOfMemoryError, RayActorError

    where = f"train-{name}"
    if type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError":
        what = "other jobs use the resources of the cluster that this training needs"
        remedy = "run it again when they are free, or use fewer (DARKROOM_WORKERS, DARKROOM_THREADS)"
        return DarkroomError(what, where=where, remedy=remedy)
    failures = getattr(error, "worker_failures", None) or {0: error}
    causes = [getattr(failure, "health_check_failure", failure) for failure in failures.values()]
    telling = (DarkroomError, OutOfMemoryError, RayActorError)  # other workers only lost the connection
    silent = [cause for cause in causes if any(text in str(cause) for text in TIMEOUTS)]
    cause = next((cause for cause in causes if isinstance(cause, telling)), (silent or causes)[0])
    if isinstance(cause, DarkroomError):
        return cause
    text = str(cause).strip() or type(cause).__name__
    if isinstance(cause, OutOfMemoryError) or (killed and isinstance(cause, RayActorError)):
        found = MEMORY_IN_USE.search(text)
        what = f"{LOST_WORKER}; meanwhile {out_of_memory()}"
        if found:
            what = f"Ray ended a worker because memory ran out ({found[0]})"
        return DarkroomError(what, where=where, remedy=LESS_MEMORY)
    reason = SILENT_WORKER if silent else text.splitlines()[-1]
    if isinstance(cause, RayActorError):
        reason = LOST_WORKER
    what = f"the training failed: {type(cause).__name__}: {reason}"[:400]
    remedy = "the same command continues from the last checkpoint; DARKROOM_DEBUG=1 shows the traceback"
    if cure := remedy_for(cause):
        remedy = f"{cure}; then {remedy}"
    return DarkroomError(what, where=where, remedy=remedy)
