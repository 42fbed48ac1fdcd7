"""The stage ``download``: write a source's files to ``data/raw``, and describe them in ``source.json``."""

import shutil
import time
from pathlib import Path
from typing import Any

from pipeline.data import sources
from pipeline.data.archives import list_zip
from pipeline.data.folders import PICTURES, arrange, list_folder
from pipeline.data.settings import DataSettings
from pipeline.data.transfer import REPORT_SECONDS, RetryPolicy, fetch
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import atomic_folder, sha256, write_json


def download(
    settings: DataSettings,
    environment: Environment,
    target: Path = Path("data/raw"),
    retry: RetryPolicy | None = None,
) -> dict[str, Any]:
    """Write the files of ``settings.source`` to ``target``; return the content of ``source.json``.

    ``source.json`` always names the published address. A mirror has the same bytes and is not part of the
    experiment. An interrupted download stays in the environment's storage and is resumed.
    """
    source = sources.find(settings.source)
    if source.read is None:
        return _copy_folder(source, settings.folder, environment.root, target)
    staging = environment.storage / "downloads" / source.name
    mirrors = [f"{environment.mirror.rstrip('/')}/{source.name}"] if environment.mirror else []
    for file in source.files:
        bases = (*mirrors, *source.addresses)
        fetch(file, [_join(base, file.name, environment.root) for base in bases], staging, retry)
    with atomic_folder(target) as temporary:
        files = {}
        for file in source.files:
            shutil.copyfile(staging / file.name, temporary / file.name)
            url = f"{source.addresses[0]}/{file.name}"
            files[file.name] = {"sha256": file.sha256, "bytes": file.num_bytes, "url": url}
        record = _write_record(source, files, temporary)
    shutil.rmtree(staging)
    return record


def _copy_folder(source: sources.Source, folder: str, root: Path, target: Path) -> dict[str, Any]:
    """Copy the user's folder or zip.

    Links would not do, because DVC write-protects the files in its cache.
    """
    if not folder:
        what, remedy = (
            "is empty, and the source is 'folder'",
            "set it to a folder or zip with a folder per class",
        )
        raise BadInput(what, where="params.yaml: data.folder", remedy=remedy)
    origin = root / folder
    if not origin.exists():
        remedy = "correct data.folder in params.yaml"
        raise BadInput("no such folder or zip", where=str(origin), remedy=remedy)
    layout = arrange(*(list_folder(origin) if origin.is_dir() else list_zip(origin)), where=str(origin))
    with atomic_folder(target) as temporary:
        if origin.is_dir():
            names = {name: f"{PICTURES}/{name}" for members in layout.splits.values() for name, _ in members}
        else:
            names = {".": f"{PICTURES}.zip"}
        files, last = {}, time.monotonic()
        for number, (name, copy) in enumerate(sorted(names.items())):
            path = temporary / copy
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / name, path)
            files[copy] = {"sha256": sha256(path), "bytes": path.stat().st_size, "url": folder}
            if time.monotonic() - last > REPORT_SECONDS:
                last = time.monotonic()
                print(f"copied {number + 1:,} of {len(names):,} files", flush=True)
        return _write_record(source, files, temporary)


def _write_record(source: sources.Source, files: dict[str, Any], folder: Path) -> dict[str, Any]:
    record = {
        "source": source.name,
        "description": source.description,
        "licence": source.licence,
        "files": files,
    }
    write_json(folder / "source.json", record)
    return record


def _join(base: str, name: str, root: Path) -> str:
    """The address of a file: ``base`` is a URL, or a folder relative to the project's root."""
    return f"{base}/{name}" if ":" in base.split("/")[0] else str(root / base / name)
