"""The stage ``download``: a source's files as published, in ``data/raw``, with ``source.json`` that says what they are."""

import shutil
import time
from pathlib import Path
from typing import Any

from pipeline.data import sources
from pipeline.data.archives import list_zip
from pipeline.data.folders import PICTURES, arrange, list_folder
from pipeline.data.settings import DataSettings
from pipeline.data.transfer import REPORT_SECONDS, Patience, fetch
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import atomic_folder, sha256, write_json


def download(
    settings: DataSettings,
    environment: Environment,
    target: Path = Path("data/raw"),
    patience: Patience | None = None,
) -> dict[str, Any]:
    """Make ``target`` hold the files of ``settings.source``; returns what ``source.json`` says.

    The address recorded is the published one, wherever the bytes came from: they are the same, and a mirror is no part of the
    experiment. Interrupted downloads wait in the environment's storage.
    """
    source = sources.find(settings.source)
    if source.read is None:
        return _take(source, settings.folder, environment.root, target)
    waiting = environment.storage / "downloads" / source.name
    bases = ([environment.mirror.rstrip("/") + f"/{source.name}"] if environment.mirror else []) + list(
        source.addresses
    )
    for file in source.files:
        fetch(file, [_under(base, file.name, environment.root) for base in bases], waiting, patience)
    with atomic_folder(target) as beside:
        for file in source.files:
            shutil.copyfile(waiting / file.name, beside / file.name)
        files = {
            file.name: {
                "sha256": file.sha256,
                "bytes": file.num_bytes,
                "url": f"{source.addresses[0]}/{file.name}",
            }
            for file in source.files
        }
        record = _record(source, files, beside)
    shutil.rmtree(waiting)
    return record


def _take(source: sources.Source, folder: str, root: Path, target: Path) -> dict[str, Any]:
    """Copy a user's folder of pictures, or zip. Copied, not linked, since DVC write-protects what it keeps."""
    if not folder:
        raise BadInput(
            "is empty, and the source is 'folder'",
            where="params.yaml: data.folder",
            remedy="name a folder or zip with a sub-folder for each class",
        )
    origin = root / folder
    if not origin.exists():
        raise BadInput(
            "no such folder or zip", where=str(origin), remedy="correct data.folder in params.yaml"
        )
    layout = arrange(*(list_folder(origin) if origin.is_dir() else list_zip(origin)), where=str(origin))
    with atomic_folder(target) as beside:
        if origin.is_dir():
            names = {name: f"{PICTURES}/{name}" for members in layout.splits.values() for name, _ in members}
        else:
            names = {".": f"{PICTURES}.zip"}
        files, last = {}, time.monotonic()
        for number, (name, copy) in enumerate(sorted(names.items())):
            (beside / copy).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / name, beside / copy)
            files[copy] = {
                "sha256": sha256(beside / copy),
                "bytes": (beside / copy).stat().st_size,
                "url": folder,
            }
            if time.monotonic() - last > REPORT_SECONDS:
                last = time.monotonic()
                print(f"copied {number + 1:,} of {len(names):,} files", flush=True)
        return _record(source, files, beside)


def _record(source: sources.Source, files: dict[str, Any], folder: Path) -> dict[str, Any]:
    record = {
        "source": source.name,
        "description": source.description,
        "licence": source.licence,
        "files": files,
    }
    write_json(folder / "source.json", record)
    return record


def _under(base: str, name: str, root: Path) -> str:
    """The address of a file under a base URL, or under a folder relative to the project's root."""
    return f"{base}/{name}" if ":" in base.split("/")[0] else str(root / base / name)
