"""A model's versions and aliases: ``champion`` serves, ``challenger`` waits for its gates."""

import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipeline
from pipeline.errors import BadInput

if TYPE_CHECKING:
    from mlflow import MlflowClient

ABILITIES = ("classify", "generate", "reconstruct")
REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "safetensors", "pydantic", "ruamel.yaml")  # what a served model imports


def check(folder: Path, ability: str = "") -> tuple[dict[str, Any], str]:
    """The card of the model in ``folder`` and what it is served for: ``ability``, or the first that it has.

    Raises ``BadInput`` where there is no model, or none with this ability.
    """
    from pipeline.models import store
    from pipeline.models.task import Task

    card = store.read_card(folder)
    able = [known for known in ABILITIES if getattr(store.find(card["name"]), known) is not getattr(Task, known)]
    if not able or (ability and ability not in able):
        raise BadInput(f"cannot {ability or 'be served'}", where=str(folder), remedy=f"it can: {', '.join(able) or 'nothing'}")
    return card, ability or able[0]


def find_version(client: "MlflowClient", name: str, sha256: str) -> str | None:
    """The version of ``name`` that holds the weights with this SHA-256, or None."""
    found = client.search_model_versions(f"name = '{name}' and tags.`darkroom.sha256` = '{sha256}'", max_results=1)
    return str(found[0].version) if found else None


def run_of(client: "MlflowClient", name: str, sha256: str) -> str | None:
    """The run that trained the registered weights with this SHA-256, or None."""
    version = find_version(client, name, sha256)
    return client.get_model_version(name, version).run_id if version else None


def register(client: "MlflowClient", run_id: str, folder: Path, name: str, tags: dict[str, str], ability: str = "") -> str:
    """The version of ``name`` for the model in ``folder``: the one that holds these weights already, or a new one.

    It becomes ``challenger``, and ``champion`` where there is none. ``ability`` is what it is served for (see served.py), by
    default the first that it has. Raises ``BadInput`` for a folder that holds no servable model.
    """
    card, ability = check(folder, ability)
    version = find_version(client, name, card["sha256"]) or _add(client, run_id, folder, name, tags, ability, card)
    aliases = _model(client, name).aliases
    if str(aliases.get("champion", "")) != version:
        client.set_registered_model_alias(name, "challenger", version)
    if "champion" not in aliases:
        client.set_registered_model_alias(name, "champion", version)
    return version


def register_kept(client: "MlflowClient", run_id: str, model: dict[str, str], fingerprint: str, data: str) -> dict[str, str]:
    """Register what a run's record keeps of its model (folder, name, ability, sha256), unless the folder holds other weights by now.

    Returns the tags that tell the run what became of it.
    """
    try:
        kept = check(Path(model["folder"]))[0]["sha256"] == model["sha256"]
    except BadInput:
        kept = False
    if not kept:
        return {"darkroom.model": model["name"], "darkroom.version": "none: the weights were gone before a server answered"}
    tags = {"darkroom.fingerprint": fingerprint, "darkroom.data": data}
    version = register(client, run_id, Path(model["folder"]), model["name"], tags, model["ability"])
    return {"darkroom.model": model["name"], "darkroom.version": version, "darkroom.sha256": model["sha256"]}


def requirements() -> list[str]:
    """The pinned packages of a served model; without local labels such as ``+cpu``, which no index knows."""
    return [f"{package}=={metadata.version(package).partition('+')[0]}" for package in REQUIREMENTS]


def _add(client: "MlflowClient", run_id: str, folder: Path, name: str, tags: dict[str, str], ability: str, card: dict[str, Any]) -> str:
    from mlflow.entities import LoggedModelOutput

    tags = {**tags, "darkroom.sha256": card["sha256"], "darkroom.run": run_id}
    _model(client, name)
    model = client.create_logged_model(client.get_run(run_id).info.experiment_id, name=name, source_run_id=run_id, tags=tags)
    with tempfile.TemporaryDirectory() as beside:
        _save(Path(beside, "model"), folder, card, ability, run_id, model.model_id)
        client.log_model_artifacts(model.model_id, str(Path(beside, "model")))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    # by its folder: MLflow would look a models:/ address up in the process-wide store, not in this client's
    return str(client.create_model_version(name, model.artifact_location, run_id, tags=tags, model_id=model.model_id).version)


def _save(path: Path, folder: Path, card: dict[str, Any], ability: str, run_id: str, model_id: str) -> None:
    import mlflow.pyfunc
    from mlflow.models import Model

    signature, example = _signature(ability, card["spec"])
    description = Model(artifact_path="model", run_id=run_id, model_id=model_id)
    mlflow.pyfunc.save_model(
        path,
        mlflow_model=description,
        python_model=str(Path(__file__).with_name("served.py")),
        model_config={"ability": ability},
        code_paths=[os.path.dirname(pipeline.__file__)],
        artifacts={"model": str(folder.resolve())},
        pip_requirements=requirements(),
        signature=signature,
        input_example=example,
        metadata={"sha256": card["sha256"], "model": card["name"]},
    )
    description.flavors["python_function"]["model_code_path"] = "served.py"  # only its name is used; the path is nobody's business
    description.save(path / "MLmodel")


def _signature(ability: str, spec: dict[str, int]) -> tuple[Any, Any]:
    """The signature and an input that fits it."""
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    shape = (spec["channels"], spec["size"], spec["size"])
    if ability == "generate":
        columns = Schema([ColSpec("long", key) for key in ("count", "seed", "label")])
        return ModelSignature(columns, Schema([TensorSpec(np.dtype("uint8"), (-1, *shape))])), pd.DataFrame(
            {"count": [2], "seed": [0], "label": [-1]}
        )
    out = (-1, spec["classes"]) if ability == "classify" else (-1, *shape)
    images, answers = (Schema([TensorSpec(np.dtype("float32"), dimensions)]) for dimensions in ((-1, *shape), out))
    return ModelSignature(images, answers), np.full((2, *shape), 0.5, np.float32)


def _model(client: "MlflowClient", name: str) -> Any:
    """The registered model, made if it is missing."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    try:
        return client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_registered_model(name)
