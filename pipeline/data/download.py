"""The stage ``download``: write a source's files to ``data/raw``, and describe them in ``source.json``."""

import shutil
from pathlib import Path
from typing import Any

from pipeline.data import sources
from pipeline.data.folders import PICTURES, arrange, list_files
from pipeline.data.settings import DataSettings
from pipeline.data.transfer import DEFAULT, RetryPolicy, fetch, line_printer
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import atomic_folder, sha256, write_json


def download(
    settings: DataSettings,
    environment: Environment,
    target: Path = Path("data/raw"),
    retry: RetryPolicy = DEFAULT,
) -> dict[str, Any]:
    """Write the files of ``settings.source`` to ``target``; return the content of ``source.json``.

    ``source.json`` always names the published address. A mirror has the same bytes and is not part of the
    experiment. An interrupted download stays in the environment's storage and is resumed.
    """
    source = sources.find(settings.source)
    staging = environment.storage / "downloads" / source.name
    mirrors = [f"{environment.mirror.rstrip('/')}/{source.name}"] if environment.mirror else []
    for file in source.files:
        bases = (*mirrors, *source.addresses)
        fetch(file, [_join(base, file.name, environment.root) for base in bases], staging, retry)
    with atomic_folder(target) as temporary:
        if source.read is None:
            files = _copy_folder(settings.folder, environment.root, temporary)
        else:
            files = {file.name: f"{source.addresses[0]}/{file.name}" for file in source.files}
            for name in files:
                shutil.copyfile(staging / name, temporary / name)
        entries = {
            name: {"sha256": sha256(temporary / name), "bytes": (temporary / name).stat().st_size, "url": url}
            for name, url in files.items()
        }
        about = {"source": source.name, "description": source.description, "licence": source.licence}
        record = {**about, "files": entries}
        write_json(temporary / "source.json", record)
    shutil.rmtree(staging, ignore_errors=True)
    return record


def _copy_folder(folder: str, root: Path, target: Path) -> dict[str, str]:
    """Copy the user's folder or zip. Returns the name and origin of each copy.

    Links would not do, because DVC write-protects the files in its cache.
    """
    if not folder:
        remedy = "set it to a folder or zip with a folder per class"
        raise BadInput(
            "is empty, and the source is 'folder'", where="params.yaml: data.folder", remedy=remedy
        )
    origin = root / folder
    if not origin.exists():
        remedy = "correct data.folder in params.yaml"
        raise BadInput("no such folder or zip", where=str(origin), remedy=remedy)
    layout = arrange(*list_files(origin), where=str(origin))
    names = {".": f"{PICTURES}.zip"}
    if origin.is_dir():
        names = {name: f"{PICTURES}/{name}" for members in layout.splits.values() for name, _ in members}
    show = line_printer()
    for number, (name, copy) in enumerate(sorted(names.items())):
        (target / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin / name, target / copy)
        show(f"copied {number:,} of {len(names):,} files")
    return dict.fromkeys(names.values(), folder)


def _join(base: str, name: str, root: Path) -> str:
    """The address of a file: ``base`` is a URL, or a folder relative to the project's root."""
    return f"{base}/{name}" if ":" in base.split("/")[0] else str(root / base / name)
