"""The stage ``download``: write a source's files to ``data/raw``, and describe them in ``source.json``."""

import shutil
import tarfile
from pathlib import Path
from typing import Any

from pipeline.data import sources
from pipeline.data.archives import write_plain_tar
from pipeline.data.findings import FULL_LIST
from pipeline.data.folders import ARCHIVES, PICTURES, seen_by_dvc
from pipeline.data.reading import Layout, read_layout
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
        reading = {}
        if source.read is None:
            files, layout = _copy_folder(settings, environment.root, temporary)
            reading = {"reading": layout.summary()}
        else:
            files = {file.name: f"{source.addresses[0]}/{file.name}" for file in source.files}
            for name in files:
                shutil.copyfile(staging / name, temporary / name)
        entries = {
            name: {"sha256": sha256(temporary / name), "bytes": (temporary / name).stat().st_size, "url": url}
            for name, url in files.items()
        }
        about = {"source": source.name, "description": source.description, "licence": source.licence}
        record = {**about, "files": entries, **reading}
        write_json(temporary / "source.json", record)
    shutil.rmtree(staging, ignore_errors=True)
    return record


def _copy_folder(settings: DataSettings, root: Path, target: Path) -> tuple[dict[str, str], Layout]:
    """Copy the user's folder or archive. Returns the name and origin of each copy, and the layout.

    Links would not do, because DVC write-protects the files in its cache.
    """
    if not settings.folder:
        remedy = "set it to a folder or archive of pictures"
        raise BadInput(
            "is empty, and the source is 'folder'", where="params.yaml: data.folder", remedy=remedy
        )
    origin = seen_by_dvc(root / settings.folder, root)
    if not origin.exists():
        remedy = "correct data.folder in params.yaml"
        raise BadInput("no such folder or archive", where=str(origin), remedy=remedy)
    layout = read_layout(origin, settings)
    layout.refuse(str(origin), root / FULL_LIST)
    names = layout.sidecars + ([] if layout.arrays else [entry.path for entry in layout.entries])
    copies = {origin / name: f"{PICTURES}/{name}" for name in sorted(names)}
    if not origin.is_dir():
        is_tar = tarfile.is_tarfile(origin)
        suffix = ".tar" if is_tar else origin.suffix.lower() if origin.suffix.lower() in ARCHIVES else ".zip"
        copies = {origin: PICTURES + suffix}
    if layout.table:
        copies[layout.table] = layout.table.name
    show = line_printer()
    for number, (path, copy) in enumerate(copies.items()):
        (target / copy).parent.mkdir(parents=True, exist_ok=True)
        if copy == f"{PICTURES}.tar":
            with open(target / copy, "wb") as file:
                write_plain_tar(path, file)
        else:
            shutil.copyfile(path, target / copy)
        show(f"copied {number:,} of {len(copies):,} files")
    return dict.fromkeys(copies.values(), settings.folder), layout


def _join(base: str, name: str, root: Path) -> str:
    """The address of a file: ``base`` is a URL, or a folder relative to the project's root."""
    return f"{base}/{name}" if ":" in base.split("/")[0] else str(root / base / name)
