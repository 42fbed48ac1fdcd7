"""A model's versions and aliases: ``champion`` serves, ``challenger`` waits for its gates."""

import json
import os
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipeline
from pipeline.core import model_files
from pipeline.core.task import Task
from pipeline.tracking import model_card

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
REQUIREMENTS = (
    "mlflow",
    "torch",
    "numpy",
    "pandas",
    "pillow",
    "safetensors",
    "pydantic",
    "ruamel.yaml",
)  # what a served model imports
RESULTS = "darkroom.results"  # a version's tag: what was measured of it, by protocol
UNWANTED = "darkroom.unwanted"  # a version's tag: why it was rolled back
MAX_PROTOCOLS = 5
MAX_DESCRIPTION = 5000  # characters; the database's limit


def find_version(client: "MlflowClient", name: str, sha256: str) -> Any | None:
    """The version of ``name`` that holds the weights with this SHA-256, or None."""
    found = client.search_model_versions(
        f"name = '{name}' and tags.`darkroom.sha256` = '{sha256}'", max_results=1
    )
    return found[0] if found else None


def register(
    client: "MlflowClient",
    run_id: str,
    folder: Path,
    name: str,
    tags: Mapping[str, str],
    *,
    waits: bool = False,
) -> str:
    """The version of ``name`` for the model in ``folder``: the one that holds these weights already, or a new one.

    It becomes ``challenger``, or ``champion`` where there is none; not so one that ``waits`` for a decision. Raises ``BadInput`` for
    a folder that holds no model.
    """
    card = model_files.read_card(folder)
    found = find_version(client, name, card["sha256"])
    version = str(found.version) if found else _add(client, run_id, folder, name, tags, card)
    aliases = _model(client, name).aliases
    if CHAMPION not in aliases and not waits:
        client.set_registered_model_alias(name, CHAMPION, version)
    elif str(aliases.get(CHAMPION, "")) != version:
        client.set_registered_model_alias(name, CHALLENGER, version)
    return version


def withdraw(client: Any, name: str, version: str, reason: str = "") -> None:
    """Take the alias ``challenger`` from this version, if it has it; with a ``reason`` no retraining promotes it again."""
    if reason:
        client.set_model_version_tag(name, version, UNWANTED, reason[:500])
    if str(_model(client, name).aliases.get(CHALLENGER, "")) == version:
        client.delete_registered_model_alias(name, CHALLENGER)


def describe(
    client: "MlflowClient", version: Any, numbers: Mapping[str, float], protocol: str, *, aside: bool
) -> None:
    """Keep what was measured of a version by ``protocol`` (a digest), and put it onto its card.

    ``aside`` is for an experiment with another model, which measured this one in passing: it does not change a card that has numbers.
    """
    known = {
        key: value for key, value in json.loads(version.tags.get(RESULTS, "{}")).items() if key != protocol
    }
    kept = dict([*known.items(), (protocol, dict(numbers))][-MAX_PROTOCOLS:])
    client.set_model_version_tag(version.name, version.version, RESULTS, json.dumps(kept))
    if not (known and aside):
        card = model_card.measured(version.description or "", numbers, protocol)
        client.update_model_version(version.name, version.version, card[:MAX_DESCRIPTION])


def results(version: Any) -> dict[str, dict[str, float]]:
    """What was measured of a version on the test split, by the digest of the protocol, the newest last."""
    return json.loads(version.tags.get(RESULTS, "{}"))


def weights(client: "MlflowClient", version: Any, beside: Path) -> Path:
    """The folder with a version's model.safetensors and model.json, fetched into ``beside`` where the store is not a local folder."""
    from mlflow.artifacts import download_artifacts

    uri = client.tracking_uri
    folder = Path(download_artifacts(f"{version.source}/artifacts", dst_path=str(beside), tracking_uri=uri))
    return next(folder.rglob(model_files.CARD)).parent


def requirements() -> list[str]:
    """The pinned packages of a served model; without local labels such as ``+cpu``, which no index knows."""
    return [f"{package}=={metadata.version(package).partition('+')[0]}" for package in REQUIREMENTS]


def _add(
    client: "MlflowClient",
    run_id: str,
    folder: Path,
    name: str,
    tags: Mapping[str, str],
    card: dict[str, Any],
) -> str:
    from mlflow.entities import LoggedModelOutput

    tags = {**tags, "darkroom.sha256": card["sha256"], "darkroom.run": run_id}
    _model(client, name)
    model = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, name=name, source_run_id=run_id, tags=tags
    )
    with tempfile.TemporaryDirectory() as beside:
        _save(Path(beside, "model"), folder, card, run_id, model.model_id)
        client.log_model_artifacts(model.model_id, str(Path(beside, "model")))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    # by its folder: MLflow would look a models:/ address up in the process-wide store, not in this client's
    version = client.create_model_version(
        name,
        model.artifact_location,
        run_id,
        tags=tags,
        model_id=model.model_id,
        description=model_card.text(card)[:MAX_DESCRIPTION],
    )
    return str(version.version)


def _save(path: Path, folder: Path, card: dict[str, Any], run_id: str, model_id: str) -> None:
    import mlflow.pyfunc
    from mlflow.models import Model

    signature, example = _signature(card)
    description = Model(artifact_path="model", run_id=run_id, model_id=model_id)
    mlflow.pyfunc.save_model(
        path,
        mlflow_model=description,
        python_model=str(Path(__file__).with_name("served.py")),
        code_paths=[os.path.dirname(pipeline.__file__)],
        artifacts={"model": str(folder.resolve())},
        pip_requirements=requirements(),
        signature=signature,
        input_example=example,
        metadata={"sha256": card["sha256"], "model": card["name"]},
    )
    description.flavors["python_function"]["model_code_path"] = (
        "served.py"  # only its name is used, so the local path is left out
    )
    description.save(path / "MLmodel")
    (path / "README.md").write_text(model_card.text(card), encoding="utf-8")


def _signature(card: Mapping[str, Any]) -> tuple[Any, Any]:
    """The signature of served.py for this model, and an input that fits it."""
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, DataType

    kind, spec = model_files.find(card["name"]), card["spec"]
    generates, classifies, restores = (
        getattr(kind, able) is not getattr(Task, able) for able in ("generate", "classify", "reconstruct")
    )
    looks = classifies or restores
    asked: list[Any] = [ColSpec(AnyType(), "image", required=not generates)] if looks else []
    asked += [ColSpec("long", "count", required=not looks)] if generates else []
    asked += (
        [ColSpec("long", "seed", required=False), ColSpec(AnyType(), "label", required=False)]
        if generates
        else []
    )
    vector, never = Array(DataType.double), not (generates and looks)
    answers: list[Any] = [ColSpec(AnyType(), "image", required=True)] if generates or restores else []
    answers += (
        [ColSpec("long", "label", required=never), ColSpec("string", "class", required=never)]
        if generates
        else []
    )
    answers += (
        [ColSpec(vector, "code", required=never), ColSpec("double", "anomaly", required=never)]
        if restores
        else []
    )
    if classifies:
        answers = [ColSpec("string", "class"), ColSpec("double", "probability")]
        answers += [ColSpec(Array(DataType.string), "classes"), ColSpec(vector, "probabilities")]
    example = pd.DataFrame({"count": [2], "seed": [0], "label": [-1]})
    if not generates:
        example = pd.DataFrame(
            {"image": [np.full((spec["channels"], spec["size"], spec["size"]), 0.5).tolist()]}
        )
    return ModelSignature(
        Schema(asked), Schema(answers), ParamSchema([ParamSpec("form", "string", "png")])
    ), example


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
