"""The versions and aliases of a registered model: ``champion`` serves, ``challenger`` is the candidate."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipeline
from pipeline.core import model_files
from pipeline.core.abilities import Ability, abilities
from pipeline.core.task import DataSpec
from pipeline.estimate import Estimate, missed_floor
from pipeline.files import HASHES, sha256, write_hashes
from pipeline.tracking import identity, model_card
from pipeline.tracking.connection import FILES, get_or_create

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "pillow", "safetensors", "pydantic", "ruamel.yaml")
PYFUNC_MODEL = "pyfunc_model.py"
RESULTS = "darkroom.results"  # a version's tag: its results, by protocol
FIRST = "darkroom.first"  # a version's tag: it became the champion at its registration
UNWANTED = "darkroom.unwanted"  # a version's tag: why it was rolled back, or is no champion
MAX_PROTOCOLS = 5
MAX_DESCRIPTION = 5000  # characters; the database's limit


def find_version(client: "MlflowClient", name: str, wanted: Mapping[str, str]) -> Any | None:
    """The version of ``name`` with this identity, or None.

    Without a digest, as an earlier version of Darkroom recorded it: the oldest with these weights.
    """
    query = f"name = '{name}' and tags.`darkroom.sha256` = '{wanted['sha256']}'"
    found, digest = client.search_model_versions(query, order_by=["version_number ASC"]), wanted.get("digest")
    return next((each for each in found if not digest or _digest(client, each) == digest), None)


def _digest(client: "MlflowClient", version: Any) -> str:
    """The digest of a version. An earlier version of Darkroom recorded none: it is made from the files."""
    if not (digest := identity.of_tags(version.tags)["digest"]):
        with suppress(Exception), tempfile.TemporaryDirectory() as temporary:  # lost or damaged files
            card = model_files.read_card(weights(client, version, Path(temporary)))
            digest = identity.of_card(card)["digest"]
            client.set_model_version_tag(version.name, version.version, "darkroom.digest", digest)
    return digest


def register(
    client: "MlflowClient", run_id: str, folder: Path, name: str, tags: Mapping[str, str], *, undecided: bool
) -> str:
    """Register the model in ``folder``; its version. A model that is registered already keeps its version.

    It becomes ``champion`` if there is none, until its results miss their floor, otherwise ``challenger``.
    ``undecided``: never ``champion``,
    because a retraining decides that. Raises ``BadInput`` if the folder holds no model, ``DarkroomError`` if
    its weights do not fit the code.
    """
    card = model_files.read_card(folder)
    aliases = _registered_model(client, name).aliases
    found = find_version(client, name, identity.of_card(card))
    found = found or _add_version(client, run_id, folder, name, dict(tags), card)
    version = str(found.version)
    if CHAMPION not in aliases and not undecided and UNWANTED not in found.tags:
        client.set_model_version_tag(name, version, FIRST, "yes")
        client.set_registered_model_alias(name, CHAMPION, version)
    elif str(aliases.get(CHAMPION, "")) != version:
        client.set_registered_model_alias(name, CHALLENGER, version)
    return version


def withdraw(client: Any, name: str, version: str, reason: str = "") -> None:
    """Remove the alias ``challenger`` from a version. With ``reason``, no retraining promotes it again."""
    if reason:
        client.set_model_version_tag(name, version, UNWANTED, reason[:500])
    if str(_registered_model(client, name).aliases.get(CHALLENGER, "")) == version:
        client.delete_registered_model_alias(name, CHALLENGER)


def add_results(
    client: "MlflowClient", version: Any, numbers: Mapping[str, Estimate], protocol: str, *, keep_card: bool
) -> None:
    """Store the results of a version by ``protocol`` (a digest) and show them on its card.

    ``keep_card``: do not change a card that shows results already. A champion that became one as the
    first version loses this alias if its first results miss their floor.
    """
    known = {key: value for key, value in results(version).items() if key != protocol}
    newest = [*known.items(), (protocol, numbers)][-MAX_PROTOCOLS:]
    stored = {key: {name: each.to_json() for name, each in value.items()} for key, value in newest}
    client.set_model_version_tag(version.name, version.version, RESULTS, json.dumps(stored))
    if not (known and keep_card):
        card = model_card.measured(version.description or "", numbers, protocol)
        client.update_model_version(version.name, version.version, card[:MAX_DESCRIPTION])
    if not known and FIRST in version.tags and (reason := missed_floor(numbers)):
        name, number = version.name, str(version.version)
        if str(_registered_model(client, name).aliases.get(CHAMPION, "")) == number:
            client.set_model_version_tag(name, number, UNWANTED, reason)
            client.set_registered_model_alias(name, CHALLENGER, number)
            client.delete_registered_model_alias(name, CHAMPION)
            print(f"warning: {name}/{number} is not the champion: {reason}", file=sys.stderr, flush=True)


def results(version: Any) -> dict[str, Mapping[str, Estimate]]:
    """The results of a version on the test split, by the digest of the protocol, the newest last.

    Those that an earlier version of Darkroom recorded in another form are left out.
    """
    recorded = json.loads(version.tags.get(RESULTS, "{}"))
    return {protocol: found for protocol, numbers in recorded.items() if (found := Estimate.read(numbers))}


def weights(client: "MlflowClient", version: Any, folder: Path) -> Path:
    """The folder of a version's model files. Remote ones are downloaded into ``folder``."""
    from mlflow.artifacts import download_artifacts

    uri = client.tracking_uri
    found = Path(download_artifacts(f"{version.source}/artifacts", dst_path=str(folder), tracking_uri=uri))
    return next(found.rglob(model_files.CARD)).parent


def _add_version(
    client: "MlflowClient", run_id: str, folder: Path, name: str, tags: dict[str, str], card: dict[str, Any]
) -> Any:
    from mlflow.entities import LoggedModelOutput

    tags |= {**identity.tags(card), "darkroom.run": run_id}
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name=name, source_run_id=run_id, tags=tags)
    with tempfile.TemporaryDirectory() as temporary:
        _save(Path(temporary, "model"), folder, card, run_id, model.model_id)
        write_hashes(Path(temporary, "model"))
        tags[FILES] = sha256(Path(temporary, "model", HASHES))
        client.log_model_artifacts(model.model_id, str(Path(temporary, "model")))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    # by location: MLflow would resolve a models:/ address with its global store, not with this client
    location, text = model.artifact_location, model_card.text(card)[:MAX_DESCRIPTION]
    return client.create_model_version(
        name, location, run_id, tags=tags, model_id=model.model_id, description=text
    )


def _save(path: Path, folder: Path, card: dict[str, Any], run_id: str, model_id: str) -> None:
    import mlflow.pyfunc
    from mlflow.models import Model

    task = model_files.load(folder)
    signature, example = _signature(abilities(task), task.spec)
    description = Model(artifact_path="model", run_id=run_id, model_id=model_id)
    versions = {name: metadata.version(name).partition("+")[0] for name in REQUIREMENTS}  # without "+cpu"
    mlflow.pyfunc.save_model(
        path,
        mlflow_model=description,
        python_model=str(Path(__file__).with_name(PYFUNC_MODEL)),
        code_paths=[os.path.dirname(pipeline.__file__)],
        artifacts={"model": str(folder.resolve())},
        pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
        signature=signature,
        input_example=example,
        metadata={"sha256": card["sha256"], "model": card["name"]},
    )
    # MLflow only uses the name: do not store the path on this machine
    description.flavors["python_function"]["model_code_path"] = PYFUNC_MODEL
    description.save(path / "MLmodel")
    (path / "README.md").write_text(model_card.text(card), encoding="utf-8")


def _signature(known: frozenset[Ability], spec: DataSpec) -> tuple[Any, Any]:
    """The signature of pyfunc_model.py for a model with these abilities, and an input example.

    None for a model that neither takes nor makes images: it is registered, but not served.
    """
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, DataType

    generates, reconstructs = Ability.GENERATE in known, Ability.RECONSTRUCT in known
    classifies, encodes = Ability.CLASSIFY in known, Ability.ENCODE in known
    segments = Ability.SEGMENT in known
    takes_images = classifies or reconstructs or segments or Ability.COMPLETE in known
    inputs: list[Any] = []
    outputs: list[Any] = []
    params = ParamSchema([ParamSpec("form", "string", "png")])
    if Ability.FORECAST in known:
        _, *frame = spec["clip"].shape
        example = pd.DataFrame({"clip": [np.zeros((1, *frame)).tolist()]})
        inputs, outputs = [ColSpec(AnyType(), "clip")], [ColSpec(AnyType(), "image")]
        return ModelSignature(Schema(inputs), Schema(outputs), params), example
    if not (generates or takes_images):
        return None, None
    vector, always = Array(DataType.double), not (generates and takes_images)
    if takes_images:
        inputs += [ColSpec(AnyType(), "image", required=not generates)]
    if generates or reconstructs:
        outputs += [ColSpec(AnyType(), "image", required=True)]
    if generates:
        inputs += [ColSpec("long", "count", required=not takes_images)]
        inputs += [ColSpec("long", "seed", required=False), ColSpec(AnyType(), "label", required=False)]
        outputs += [ColSpec("long", "label", required=always), ColSpec("string", "class", required=always)]
    if reconstructs:
        outputs += [ColSpec(vector, "code", required=always)] * encodes
        outputs += [ColSpec("double", "anomaly", required=always)]
    if segments:
        outputs = [ColSpec(AnyType(), "mask"), ColSpec(Array(DataType.string), "classes")]
    if classifies:
        outputs = [ColSpec("string", "class"), ColSpec("double", "probability")]
        outputs += [ColSpec(Array(DataType.string), "classes"), ColSpec(vector, "probabilities")]
    if generates:
        example = pd.DataFrame({"count": [2], "seed": [0], "label": [-1]})
    else:
        image = np.full(spec["image"].shape, 0.5)
        example = pd.DataFrame({"image": [image.tolist()]})
    return ModelSignature(Schema(inputs), Schema(outputs), params), example


def _registered_model(client: "MlflowClient", name: str) -> Any:
    """The registered model, created if it is missing."""
    return get_or_create(
        lambda: next(iter(client.search_registered_models(f"name = '{name}'")), None),
        lambda: client.create_registered_model(name),
    )
