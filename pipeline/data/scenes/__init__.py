"""The stage ``compose-scenes``: images and their label maps, composed of pictures or from a user's folder."""

from pathlib import Path
from typing import Any

from pipeline.core.dataset import SPLITS, Dataset
from pipeline.core.fields import PROCESSED
from pipeline.data.scenes.composed import compose, spec_of
from pipeline.data.scenes.folder import open_folder
from pipeline.data.scenes.settings import SceneSettings
from pipeline.data.shards import write_dataset


def write_scenes(
    settings: SceneSettings,
    pictures: Path = PROCESSED / "images",
    target: Path = PROCESSED / "scenes",
    root: Path = Path(),
) -> dict[str, Any]:
    """Write the data set ``target`` with the fields ``image`` and ``mask``; return its manifest.

    Composed scenes of a split have ``pictures`` of the same split only. The same settings and files give the
    same bytes. A folder is relative to ``root``. Raises ``BadInput`` before anything is written.
    """
    about: dict[str, Any] = {"settings": settings.model_dump(mode="json")}
    if settings.source == "folder":
        spec, names, splits = open_folder(settings, root)
        return write_dataset(target, spec, splits, about | {"source": "own scenes", "class_names": names})
    data = Dataset.open(pictures)
    spec = spec_of(data.spec, settings)
    counts = (settings.num_train, settings.num_validation, settings.num_test)
    parts = dict(zip(SPLITS, (data.train, data.validation, data.test)))
    composed = {
        name: compose(name, split, count, spec, settings)
        for (name, split), count in zip(parts.items(), counts)
    }
    about |= {"source": f"scenes of {data.source}", "pictures": data.digest}
    about |= {"class_names": ["background", *data.class_names]}
    return write_dataset(target, spec, composed, about)
