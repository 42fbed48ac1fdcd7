"""Running a training's workers under Ray Train: in this process, on local workers, or on a cluster whose machines share no disk."""

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import write_text
from pipeline.launch.plan import Plan
from pipeline.launch.preflight import TOKEN, Asked, examine, table
from pipeline.launch.rendezvous import meet_on_loopback, meet_on_own_address
from pipeline.launch.storage import Mirror, open_address
from pipeline.launch.worker import train_worker

WORKER_TIMEOUT_SECONDS = 300
MAX_FAILURES = 3
MAX_SENT_BYTES = 2_000_000_000  # of data through Ray's object store; more goes through the storage address


def fit(training: Any, environment: Environment, plan: Plan, folder: Path) -> dict[str, float]:
    """Run the workers; return when worker 0 entered and left the loop (seconds since the epoch)."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.torch.config import _TorchBackend

    meet = meet_on_own_address if environment.ray_address else meet_on_loopback

    class MeetingBackend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(meet)
            super().on_start(worker_group, backend_config)

    class MeetingConfig(TorchConfig):
        backend_cls = MeetingBackend

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # in process it would name each report
    job = _job(training, plan, folder, environment.microbatch) | (
        _travelling(training, environment) if environment.ray_address else {}
    )
    if environment.remote:
        job["storage"] = _address(environment, folder)
    if environment.ray_address:
        _tell_if_full(plan)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job,
        torch_config=MeetingConfig(timeout_s=WORKER_TIMEOUT_SECONDS),
        scaling_config=ScalingConfig(**plan.scaling(elastic=bool(environment.ray_address))),
        run_config=RunConfig(
            name=f"{folder.name}-{time.time_ns()}",  # a fresh name: going on from a checkpoint is our store's affair
            **_rays_own(environment, folder),
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    trainer._register_sigint_handler = lambda controller: (
        None
    )  # Ctrl-C is ours: KeyboardInterrupt, exit code 130
    if plan.workers and not environment.ray_address:
        _quieten(trainer)
    try:
        answer = trainer.fit().return_value
    except Exception as error:
        raise _explained(error, training.name) from error
    finally:
        shutil.rmtree(folder / "ray", ignore_errors=True)
    if refusal := (answer or {}).get("refusal"):
        kind = BadInput if refusal.pop("bad_input") else DarkroomError
        raise kind(**refusal)
    return answer


def _tell_if_full(plan: Plan) -> None:
    import ray

    (kind, each), *_ = plan.resources.items()
    free, needed = int(ray.available_resources().get(kind, 0)), each * plan.workers
    if free < needed:
        print(
            f"{free} of the {needed:g} {kind}s needed are free on the cluster: waiting for other jobs to end",
            flush=True,
        )


def mirrored(environment: Environment, folder: Path) -> Mirror | None:
    """The copy of the training's folder at the storage address, if there is one."""
    return Mirror(folder, _address(environment, folder)) if environment.remote else None


def _address(environment: Environment, folder: Path) -> str:
    return f"{environment.remote}/trainings/{folder.name}"


def _job(training: Any, plan: Plan, folder: Path, microbatch: int) -> dict[str, Any]:
    return {
        "name": training.name,
        "settings": training.settings.model_dump_json(),
        "config": training.config.model_dump_json(),
        "data": str(training.data.folder.resolve()),
        "digest": training.data.digest,
        "folder": str(folder),
        "threads": plan.threads,
        "microbatch": microbatch,
        "device": "auto" if plan.gpus else "cpu",
        "card": {
            "fingerprint": training.fingerprint,
            "data": training.data.digest,
            "source": training.data.source,
            "images": len(training.data.train),
            "class_names": list(training.data.class_names),
            "training": json.loads(training.settings.model_dump_json()),
        },
    }


def _travelling(training: Any, environment: Environment) -> dict[str, Any]:
    """What the job needs besides on machines that may share no disk with this one, after a look at each of them.

    Raises ``DarkroomError`` for a machine of another version, or one that does not see the storage.
    """
    import ray

    data = training.data.folder.resolve()
    write_text(environment.storage / TOKEN, "")
    machines, wrong = examine(
        Asked(environment.remote or str(environment.storage), str(data), training.data.digest)
    )
    print(table(machines), flush=True)
    blind = [
        machine["host"] for machine in machines if machine["storage"] not in ("here", "read and written")
    ]
    if blind:
        wrong.append(
            f"the storage {environment.remote or environment.storage} is not to be used from {', '.join(blind)}"
        )
    if wrong:
        remedy = "give all machines the same image; DARKROOM_STORAGE: a folder that all of them see, or s3://bucket/path"
        raise DarkroomError("; ".join(wrong), where=environment.ray_address, remedy=remedy)
    if all(machine["data"] == "here" for machine in machines):
        return {}
    files = {path.relative_to(data).as_posix(): path for path in sorted(data.rglob("*")) if path.is_file()}
    size = sum(path.stat().st_size for path in files.values())
    if size <= MAX_SENT_BYTES:
        return {"sent": {name: ray.put(path.read_bytes()) for name, path in files.items()}}
    if not environment.remote:
        remedy = "DARKROOM_STORAGE=s3://bucket/path, or a project folder that all machines see"
        raise DarkroomError(
            f"{size / 1e9:.1f} GB of data are too many to be sent to each machine",
            where=str(data),
            remedy=remedy,
        )
    there = f"{environment.remote}/data/{training.data.digest}"
    Mirror(data, there).push()
    return {"stored": there}


def _rays_own(environment: Environment, folder: Path) -> dict[str, Any]:
    """Where Ray Train keeps its own books, which we do not read: every machine has to reach it."""
    if not environment.remote:
        return {"storage_path": str(folder / "ray")}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    there, root = open_address(f"{environment.remote}/ray")
    return {"storage_path": root, "storage_filesystem": PyFileSystem(FSSpecHandler(there))}


def _quieten(trainer: Any) -> None:
    """On one machine drop the callback that asks the absent dashboard once a second, and warns as often."""
    default = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [
        one for one in default() if type(one).__name__ != "PlacementGroupCleanerCallback"
    ]


def _explained(error: Exception, name: str) -> Exception:
    if type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError":
        remedy = (
            "the same command goes on when it is free; or ask for less (DARKROOM_WORKERS, DARKROOM_THREADS)"
        )
        return DarkroomError(
            "other work on the cluster keeps the place that this one needs",
            where=f"train-{name}",
            remedy=remedy,
        )
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    if isinstance(cause, DarkroomError):
        return cause
    first = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
    remedy = "the same command goes on from the last checkpoint; DARKROOM_DEBUG=1 shows the traceback"
    return DarkroomError(
        f"the training failed: {type(cause).__name__}: {first}"[:400], where=f"train-{name}", remedy=remedy
    )
