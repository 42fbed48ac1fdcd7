"""D4: folders of pictures, their classes and tables of labels."""

import os
from pathlib import Path

from tests.bad_input.case import Build, Case, with_data, write
from tests.data.conftest import encoded
from tests.data.layout_rows import AB, ROWS, Row
from tests.data.layouts import flat, folder, table, zipped

BOTH = ("download", "preprocess")
FOUND_WHEN_DECODED = ("broken pictures are named by reason", "16 bits, 12 are set")
LABELS = [("file", "label"), *((name, "ab"[number % 2]) for number, name in enumerate(flat(12)))]
SPLITS = [("file", "label", "split"), *((*row, "holiday") for row in LABELS[1:])]


def _row(row: Row) -> Build:
    def build(root: Path) -> None:
        name = row.build(root).name
        name = "own/00.png" if row.name == "neither folder nor archive" else name
        write(root, data=with_data(source="folder", folder=name, **row.settings))

    return build


def _link(name: str, target: str) -> Build:
    """Class folders with a link."""

    def build(root: Path) -> Path:
        path = folder(AB)(root)
        os.symlink(target, path / name)
        return path

    return build


def _itself(root: Path) -> Path:
    os.symlink("own", root / "own")
    return root / "own"


def _fifo(root: Path) -> Path:
    path = folder({})(root)
    (path / "a").mkdir(parents=True)
    os.mkfifo(path / "a/00.png")
    return path


def _garbled(root: Path) -> Path:
    path = folder(AB)(root)
    Path(os.fsdecode(os.fsencode(path) + b"/a/\xff.png")).write_bytes(encoded(1))
    return path


def _empty(root: Path) -> Path:
    path = folder(AB)(root)
    (path / "c").mkdir()
    return path


def _csv(*rows: tuple[str, ...], more: str = "") -> Build:
    return folder({".": 12}, {"labels.csv": table(",", *rows) + more})


MORE = [
    Row("an empty class folder", _empty, refusal="contains class folders without images: 'c'|fill or remove"),
    Row("an empty folder", folder({}, {".keep": ""}), refusal="contains no images"),
    Row("only hidden pictures", folder({".a": 6}), refusal="contains no images"),
    Row(
        "10,001 classes of one picture",
        zipped({f"{n:05d}": 1 for n in range(10_001)}),
        refusal="5 are needed",
    ),
    Row(
        "two folders for one split",
        folder({"train/a": 6, "training/a": 6, "test/a": 2}),
        refusal="several folders for one split: 'train', 'training'|merge them",
    ),
    Row("no training split", folder({"val/a": 6, "test/a": 6}), refusal="or train/ and test/ with a folder"),
    Row("a link to itself as the folder", _itself, refusal="no such folder or archive"),
    Row("a link to itself as a picture", _link("a/x.png", "x.png"), refusal="'a/x.png'|links to files"),
    Row(
        "a link to nothing",
        _link("a/x.png", "nowhere.png"),
        refusal="links to files that are missing: 'a/x.png'",
    ),
    Row(
        "a link to the folder above",
        _link("a/up", ".."),
        refusal="links to folders or to files outside: 'a/up'",
    ),
    Row("a link to /etc/passwd", _link("a/x.png", "/etc/passwd"), refusal="to files outside: 'a/x.png'"),
    Row("a FIFO as a picture", _fifo, refusal="contains no images"),
    Row("a name that is not UTF-8", _garbled, refusal="contains names that are not UTF-8|rename the files"),
    Row(
        "a picture with two classes",
        _csv(*LABELS, ("00.png", "b")),
        refusal="several classes in its table: '00.png'|keep one line for each",
    ),
    Row(
        "a picture without a class",
        _csv(*LABELS[:-1], (LABELS[-1][0], " ")),
        refusal="without a class in its table",
    ),
    Row("an unknown split", _csv(*SPLITS), refusal="unknown splits in its table: 'holiday'"),
    Row(
        "a table that is cut off",
        _csv(("file", "label"), more='00.png,"a\n'),
        settings={"labels": "labels.csv"},
        refusal="has a table that cannot be read",
    ),
    Row(
        "a table of null bytes",
        folder({".": 12}, {"labels.csv": bytes(500)}),
        settings={"labels": "labels.csv"},
        refusal="labels.csv",
    ),
    Row(
        "an empty table",
        folder({".": 12}, {"labels.csv": ""}),
        settings={"labels": "labels.csv"},
        refusal="has a table that cannot be read",
    ),
    Row(
        "JSON lines that are none",
        folder({".": 12}, {"labels.jsonl": "{]\n"}),
        settings={"labels": "labels.jsonl"},
        refusal="has a table that cannot be read",
    ),
    Row(
        "a group without its column",
        _csv(*LABELS),
        settings={"labels": "labels.csv", "group": "column:patient"},
        refusal="has no column 'patient' in its table; its columns are 'file', 'label'",
    ),
    Row(
        "all pictures of one group",
        folder({"a/p": 6, "b/p": 6}),
        settings={"group": "/(p)/"},
        refusal="data.group|add groups or remove the classes",
    ),
    Row("no size", folder(AB), settings={"image_size": 0}, refusal="data.image_size: is required"),
]
LATE = (
    *FOUND_WHEN_DECODED,
    "10,001 classes of one picture",
    "all pictures of one group",
    "no size",
    "small classes are named at once",
)

CASES = [
    Case(row.name, _row(row), row.refusal, BOTH if row.name in LATE else BOTH[:1])
    for row in (*ROWS, *MORE)
    if row.refusal
]
