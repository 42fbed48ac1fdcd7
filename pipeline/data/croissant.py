"""A data set described in Croissant, MLCommons' JSON-LD for data sets, from its manifest."""

from pathlib import Path
from typing import Any

from pipeline.core.fields import PROCESSED, DataSpec
from pipeline.data import sources
from pipeline.errors import BadInput
from pipeline.files import digest_of, read_json, sha256

RAW = Path("data/raw/source.json")
MAX_FILES = 100  # downloaded files that are listed one by one
BINARY, ENUMERATION = "application/octet-stream", "https://schema.org/Enumeration"
# No media type is registered for .npy files.
NPY = [BINARY, "https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"]
UNKNOWN = ("none stated", sources.find("folder").licence)  # beginnings of what is not a licence


def describe(root: Path, name: str, licence: str = "") -> dict[str, Any]:
    """The description of the data set data/processed/``name`` of the project ``root``, as JSON-LD.

    It has the files with their SHA-256, the fields and classes, the number of examples of each split, and
    the files from which the data was made. ``licence``: of your own pictures; by default that of the source,
    if it is known. Paths are relative to the root. Raises ``BadInput`` if there is no such data set, or if
    mlcroissant is not installed or refuses the description.
    """
    try:
        import mlcroissant as mlc
    except ImportError as error:
        what, remedy = f"the package {error.name} is not installed", "pip install 'darkroom[outward]'"
        raise BadInput(what, where="darkroom describe", remedy=remedy) from None

    folder, path = PROCESSED / name, root / PROCESSED / name / "manifest.json"
    if not path.is_file():
        raise BadInput("no such data set", where=str(PROCESSED / name), remedy="dvc repro, or dvc checkout")
    manifest = read_json(path)
    of_pictures = name == "images" or "pictures" in manifest  # and not of your own clips or label maps
    raw = read_json(root / RAW) if of_pictures and (root / RAW).is_file() else {}
    counts = {split: entry["count"] for split, entry in manifest["splits"].items()}
    files = [
        mlc.FileObject(
            id=file["file"],
            name=file["file"],
            content_url=(folder / file["file"]).as_posix(),
            encoding_formats=NPY,
            sha256=file["sha256"],
        )
        for split in manifest["splits"].values()
        for shard in split["shards"]
        for file in shard.values()
        if isinstance(file, dict)
    ]
    sets, records = _records(mlc, folder, manifest)
    known = licence or raw.get("licence", UNKNOWN[0])
    try:
        return mlc.Metadata(
            name=name,
            description=_about(manifest, raw, counts),
            license=None if known.startswith(UNKNOWN) else [known],
            version=f"1.0.0+{digest_of(manifest)[:12]}",
            distribution=[*files, *sets, *_downloads(mlc, root, raw)],
            record_sets=records,
        ).to_json()
    except mlc.ValidationError as error:
        raise BadInput(f"mlcroissant refuses it: {error}", where=str(folder)) from None


def _about(manifest: dict[str, Any], raw: dict[str, Any], counts: dict[str, int]) -> str:
    examples = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    settings = ", ".join(f"{key}: {value}" for key, value in manifest.get("settings", {}).items())
    made = f"Made from: {raw.get('description', manifest['source'])}. "
    return (
        f"{made}Examples: {examples}. Settings: {settings}. SHA-256 of the manifest: {digest_of(manifest)}."
    )


def _downloads(mlc: Any, root: Path, raw: dict[str, Any]) -> list[Any]:
    """The downloaded files; if they are many, the file that has the SHA-256 of each."""
    files = raw.get("files", {})
    if len(files) > MAX_FILES:
        files = {RAW.name: {"url": RAW.as_posix(), "sha256": sha256(root / RAW)}}
    return [
        mlc.FileObject(
            id=f"raw/{name}",
            name=name,
            content_url=entry["url"],
            content_size=f"{entry['bytes']} B" if "bytes" in entry else None,
            encoding_formats=["application/json" if name == RAW.name else BINARY],
            sha256=entry["sha256"],
        )
        for name, entry in files.items()
    ]


def _records(mlc: Any, folder: Path, manifest: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The sets of files, and the record sets: splits, classes, and each field of each split.

    Fields of one record set with files of their own would need a key that joins them; ours have the order.
    """
    kinds, sets = mlc.DataType, []
    records = [
        _table(mlc, "splits", kinds.SPLIT, {"name": kinds.TEXT}, [[name] for name in manifest["splits"]])
    ]
    if names := manifest["class_names"]:
        columns = {"index": kinds.INTEGER, "name": kinds.TEXT}
        records.append(_table(mlc, "classes", ENUMERATION, columns, [list(row) for row in enumerate(names)]))
    for split, entry in manifest["splits"].items():
        for name, field in DataSpec.from_json(manifest["fields"]).fields.items():
            place, pattern = f"{split}-{name}", (folder / split / f"{name}-*.npy").as_posix()
            sets.append(mlc.FileSet(id=f"{place}-files", encoding_formats=NPY, includes=[pattern]))
            content = mlc.Extract(file_property=mlc.FileProperty.content)
            values = mlc.Field(
                id=f"{place}/values",
                name="values",
                description=f"{field.kind}, integers from 0 to {field.num_values - 1}",
                data_types=[getattr(kinds, field.dtype.name.upper())],
                is_array=bool(field.shape) or None,
                array_shape=",".join(map(str, field.shape)) or None,
                source=mlc.Source(file_set=f"{place}-files", extract=content),
            )
            text = (
                f"{entry['count']} examples: the rows of the files, in the order of all fields of the split"
            )
            records.append(mlc.RecordSet(id=place, name=place, description=text, fields=[values]))
    return sets, records


def _table(mlc: Any, name: str, kind: Any, columns: dict[str, Any], rows: list[list[Any]]) -> Any:
    """A record set with its data; the first column is its key."""
    ids = [f"{name}/{column}" for column in columns]
    fields = [mlc.Field(id=each, name=each, data_types=[type]) for each, type in zip(ids, columns.values())]
    data = [dict(zip(ids, row)) for row in rows]
    return mlc.RecordSet(id=name, name=name, key=ids[0], data_types=[kind], fields=fields, data=data)
