"""The report of an inspection as one self-contained HTML page."""

import base64
import io
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pandas as pd
from PIL import Image

from pipeline.data.images import from_array
from pipeline.data.preprocess import MAX_ROWS, NUM_SAMPLES, contact_sheet
from pipeline.evaluation import page
from pipeline.inspection.inspect import Inspection
from pipeline.inspection.measurements import thumbnail
from pipeline.inspection.text import KINDS, facts, some, verdict

MAX_SHOWN = 24  # pictures of a section
MAX_GROUPS = 24


def write(inspection: Inspection, source: Path, path: Path) -> None:
    """Write the page ``path``. Its pictures are read from ``source``, the folder or archive."""
    report = inspection.report
    groups = report["near_duplicates"].get("groups", [])[:MAX_GROUPS]
    page.write(
        path,
        __package__,
        "inspection.html",
        report=report,
        verdict=verdict(report),
        facts=facts(report),
        some=some,
        kinds=KINDS,
        classes=pd.DataFrame(report["classes"]).to_html(index=False, border=0, classes="plain"),
        sheet=_contact_sheet(inspection, source),
        groups=[(group, _thumbnails(source, inspection.bits, group["pictures"][:4])) for group in groups],
        outliers={
            kind: _thumbnails(source, inspection.bits, [row["path"] for row in rows[:MAX_SHOWN]])
            for kind, rows in report["outliers"].items()
        },
        suspects=[
            (row, picture)
            for row in report["suspected_labels"]["pictures"]
            for _, picture in _thumbnails(source, inspection.bits, [row["path"]])
        ],
    )


def _thumbnails(source: Path, bits: int, names: Iterable[str]) -> list[tuple[str, str]]:
    """Names and pictures, as data addresses."""
    found = []
    for name in names:
        with suppress(ValueError, OSError):  # a name that is not text was changed in the report
            found.append((name, _address(from_array(thumbnail(source, name, bits)))))
    return found


def _contact_sheet(inspection: Inspection, source: Path) -> str:
    names: dict[str, list[str]] = {}
    for picture in inspection.pictures:
        some = names.setdefault(picture.entry.label, [])
        if len(some) < NUM_SAMPLES:
            some.append(picture.entry.path)
    shown = [name for name in inspection.class_names if name in names][:MAX_ROWS]
    if not shown:
        return ""
    samples = {
        row: [thumbnail(source, name, inspection.bits) for name in names[label]]
        for row, label in enumerate(shown)
    }
    return _address(contact_sheet(samples, tuple(shown)))


def _address(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
