"""Folders and archives that people have, and what is expected of each, for ``test_layouts.py``."""

from dataclasses import dataclass, field

from .layouts import (
    Build,
    all_formats,
    arrays,
    decomposed,
    flat,
    folder,
    json_lines,
    labels,
    large_metadata,
    linked,
    members,
    pixels,
    table,
    tarred,
    twelve_bits,
    zipped,
)

AB = {"a": 6, "b": 6}
LABELS = [("file", "label"), *((name, "ab"[number % 2]) for number, name in enumerate(flat(12)))]
SPLIT_LABELS = [("name", "class", "split")] + [
    (name, "ab"[number % 2], "train" if number < 10 else "test") for number, name in enumerate(flat(14))
]
STEMS = [("id", "breed"), *((name[:2], "ab"[number % 2]) for number, name in enumerate(flat(12)))]
PATIENTS = [("path", "label", "patient")] + [
    (f"scans/{name}", "ab"[number % 2], f"p{number // 2}") for number, name in enumerate(flat(24))
]
ANNOTATIONS = table("\t", *((name, "ab"[number % 2], "0", "0") for number, name in enumerate(flat(4))))
TINY = {"train/a/images": 6, "train/b/images": 6, "val/images": 4, "test/images": 3}
JAPANESE = {"犬の写真": 6, "猫": 6}
SYSTEM = "hidden, or made by the operating system"


@dataclass(frozen=True)
class Row:
    """A folder or archive, and what is expected of it."""

    name: str
    build: Build
    classes: str = "a b"  # separated by blanks
    counts: dict[str, int] = field(default_factory=lambda: {"train": 12})
    settings: dict[str, object] = field(default_factory=dict)
    warning: str = ""  # a part of one
    skipped: dict[str, int] = field(default_factory=dict)
    refusal: str = ""  # parts of the message, separated by |


def splits(train: str, *others: str, prefix: str = "") -> Build:
    names = {f"{prefix}{train}/{label}": 6 for label in "ab"}
    return folder(names | {f"{prefix}{other}/{label}": 2 for other in others for label in "ab"})


TWO = {"train": 12, "test": 4}
THREE = {"train": 12, "validation": 4, "test": 4}
ROWS = [
    # Class folders and splits.
    Row("class folders", folder(AB)),
    Row("class folders in an enclosing folder", folder({"x/y/a": 6, "x/y/b": 6})),
    Row("sub-folders of classes", folder({"a/2020": 3, "a/2021": 3, "b/2020": 6})),
    Row("train and test", splits("train", "test"), counts=TWO),
    Row("train, val, test", splits("train", "val", "test"), counts=THREE),
    Row("Training, Testing", splits("Training", "Testing"), counts=TWO),
    Row("Train, Valid, Test", splits("Train", "Valid", "Test"), counts=THREE),
    Row("TRAIN, TEST enclosed", splits("TRAIN", "TEST", prefix="x/"), counts=TWO),
    Row("seg_train, seg_test", splits("seg_train", "seg_test"), counts=TWO),
    Row(
        "seg_train twice, seg_test twice",
        folder({f"seg_{s}/seg_{s}/{c}": 6 if s == "train" else 2 for s in ("train", "test") for c in "ab"}),
        counts=TWO,
    ),
    Row("training_set, test_set", splits("training_set", "test_set"), counts=TWO),
    Row("train2017, val2017", splits("train2017", "val2017"), counts={"train": 12, "validation": 4}),
    Row("a class of trains", folder({"train": 6, "bus": 6}), "bus train"),
    Row(
        "the same sub-folders everywhere",
        folder({f"{site}/{label}": 6 for site in ("north", "south") for label in "ab"}),
        refusal="has the same sub-folders (a, b) in each of its folders: 'north', 'south'|data.labels",
    ),
    Row(
        "splits among classes",
        folder({"seg_train/a": 6, "seg_test/a": 2, "seg_pred/x": 3}),
        refusal="some look like splits, some like classes: 'seg_pred', 'seg_test', 'seg_train'",
    ),
    Row(
        "a class that a split lacks",
        folder({"train/a": 6, "train/b": 6, "test/a": 2}),
        refusal="no images in the split 'test' of the classes: 'b'|data.min_images_per_class",
    ),
    # One class.
    Row("no class folders", folder({".": 12}), "all", warning="are of one class, 'all'"),
    Row("no class folders, enclosed", folder({"x/y": 12}), "y", warning="are of one class, 'y'"),
    Row("splits without class folders", folder({"train": 12, "test": 4}), "all", TWO, warning="one class"),
    Row("a single class folder", folder({"a": 12}), "a", warning="are of one class, 'a'"),
    Row(
        "loose pictures next to classes",
        folder({"a": 6, "b": 6, ".": 2}),
        refusal="not in a class folder: '00.png'",
    ),
    # Small classes.
    Row(
        "small classes are dropped",
        folder({**AB, **{f"person {number}": 1 + number % 4 for number in range(30)}}),
        settings={"min_images_per_class": 5},
        warning="30 classes with fewer than 5 pictures, or none in a split, are left out: 'person 0' (1)",
        skipped={"in classes with fewer than 5 pictures": sum(1 + number % 4 for number in range(30))},
    ),
    Row(
        "small classes are named at once",
        folder({**AB, "c": 1, "d": 4}),
        refusal="5 are needed: 'c' has 1, 'd' has 4|data.min_images_per_class: 5",
    ),
    Row(
        "only small classes",
        folder({"a": 2}),
        settings={"min_images_per_class": 5},
        refusal="has no class with 5",
    ),
    # Labels in a file.
    Row(
        "Tiny ImageNet",
        folder(TINY, {"val/val_annotations.txt": ANNOTATIONS, "wnids.txt": "a\nb\n"}),
        counts={"train": 12, "validation": 4},
        warning="the 3 pictures of the split 'test' have no classes",
        skipped={"in the split 'test', without a class": 3, "not pictures: .txt": 2},
    ),
    Row(
        "labels.csv is found",
        folder({".": 12}, {"labels.csv": table(",", *LABELS)}),
        warning="columns file, label",
    ),
    Row(
        "labels.csv is named", folder({".": 12}, {"x.csv": table(";", *LABELS)}), settings={"labels": "x.csv"}
    ),
    Row(
        "a table with splits",
        folder({".": 14}, {"l.tsv": table("\t", *SPLIT_LABELS)}),
        counts={"train": 10, "test": 4},
        warning="columns name, class, split",
    ),
    Row(
        "names without suffix",
        folder({"train": 12}, {"labels.csv": table(",", *STEMS)}),
        settings={"labels": "labels.csv"},
    ),
    Row(
        "JSON lines",
        folder({".": 12}, {"metadata.jsonl": json_lines(12)}),
        warning="columns file_name, label",
    ),
    Row(
        "pictures that the table lacks",
        folder({".": 14}, {"labels.csv": table(",", *LABELS)}),
        warning="columns file, label",
        skipped={"not in labels.csv": 2, "not pictures: .csv": 1},
    ),
    Row(
        "a table of other pictures",
        folder({".": 3}, {"labels.csv": "file,label\nx.png,a\n"}),
        refusal="has none of the pictures that its table names: 'x.png'",
    ),
    Row(
        "a table without labels",
        folder({".": 3}, {"t.csv": "file,width,height\n00.png,3,4\n"}),
        settings={"labels": "t.csv"},
        refusal="a column of paths or of labels; its columns are 'file', 'width', 'height'|name the columns",
    ),
    Row(
        "a table that is missing",
        folder({".": 3}),
        settings={"labels": "t.csv"},
        refusal="there is no table 't.csv'",
    ),
    Row(
        "two tables",
        folder({".": 12}, {"a.csv": table(",", *LABELS), "b.csv": table(",", *LABELS)}),
        refusal="several tables that may have its classes: 'a.csv', 'b.csv'|set data.labels",
    ),
    # Archives.
    Row("a zip", zipped(AB)),
    Row("a zip with backslashes", zipped(AB, lambda name: name.replace("/", "\\"))),
    Row("a zip with ./", zipped({"x/a": 6, "x/b": 6}, lambda name: f"./{name}")),
    Row("a zip from macOS", zipped(AB, more=["__MACOSX/a/._00.png", "a/.DS_Store"]), skipped={SYSTEM: 2}),
    Row("a zip in Shift-JIS", zipped(JAPANESE, raw="cp932"), "犬の写真 猫", warning="read as cp932"),
    Row("a zip in code page 437", zipped({"Löwe": 6, "café": 6}, raw="cp437"), "Löwe café"),
    Row("a zip in unmarked UTF-8", zipped(JAPANESE, raw="utf-8"), "犬の写真 猫"),
    Row("a zip in UTF-8", zipped(JAPANESE), "犬の写真 猫"),
    Row("a zip that leads outside", zipped(AB, lambda name: f"..\\{name}"), refusal="lead outside"),
    Row("a tar", tarred(AB, "", ".tar")),
    Row("a .tar.gz with ./", tarred(AB, "gz", ".tar.gz", "./")),
    Row("a .tgz", tarred(AB, "gz", ".tgz")),
    Row("a .tar.xz", tarred(AB, "xz", ".tar.xz")),
    Row("a tar that leads outside", tarred(AB, "gz", ".tgz", "../"), refusal="lead outside"),
    Row(
        "neither folder nor archive",
        lambda root: folder({".": 1})(root) / "00.png",
        refusal="is not a valid zip",
    ),
    # Arrays.
    Row(
        "MedMNIST's form",
        arrays(
            train_images=pixels(30, 8, 8),
            train_labels=labels(30, True),
            val_images=pixels(6, 8, 8),
            val_labels=labels(6, True),
            test_images=pixels(9, 8, 8),
            test_labels=labels(9, True),
        ),
        "0 1 2",
        {"train": 30, "validation": 6, "test": 9},
    ),
    Row(
        "Keras' form in colour",
        arrays(x_train=pixels(30, 8, 8, 3), y_train=labels(30), x_test=pixels(6, 8, 8, 3), y_test=labels(6)),
        "0 1 2",
        {"train": 30, "test": 6},
    ),
    Row(
        ".npy files, channels first, floats",
        arrays(".npy", images=pixels(30, 3, 8, 8) / 255, labels=labels(30)),
        "0 1 2",
        {"train": 30},
    ),
    Row(
        "an array without labels", arrays(images=pixels(30, 8, 8)), "all", {"train": 30}, warning="one class"
    ),
    Row(
        "labels that do not fit",
        arrays(images=pixels(30, 8, 8), labels=labels(29)),
        refusal="has 29 labels for 30 pictures: 'images', 'labels'",
    ),
    Row(
        "volumes",
        arrays(images=pixels(9, 8, 8, 8), labels=labels(9)),
        refusal="array of the shape (9, 8, 8, 8)",
    ),
    # Names.
    Row(
        "names in both Unicode forms",
        folder({"café": 6, decomposed("café"): 6, "b": 6}),
        refusal="only in their Unicode form|(composed)|(decomposed)",
    ),
    Row("decomposed names", folder({decomposed("café"): 6, "b": 6}), "b café"),
    Row(
        "names that differ in case", folder({"Cat": 6, "cat": 6}), refusal="differ only in case: 'Cat', 'cat'"
    ),
    # What is skipped.
    Row(
        "folders of the system",
        folder(
            {**AB, "@eaDir": 5, "a/@eaDir/x": 2, "#recycle": 3, ".thumbnails": 4, ".ipynb_checkpoints": 1},
            {"a/Thumbs.db": "x", "desktop.ini": "x"},
        ),
        skipped={SYSTEM: 7},
    ),
    Row(
        "other files",
        folder(AB, {"notes.txt": "x", "a/clip.mp4": "x", "b/LICENSE": "x"}),
        skipped={"not pictures: .txt": 1, "not pictures: .mp4": 1, "not pictures: without a suffix": 1},
    ),
    Row(
        "formats that are not read",
        folder(AB, {"a/x.heic": "x", "b/y.psd": "x"}),
        refusal="not supported: 'a/x.heic', 'b/y.psd'",
    ),
    Row("no pictures", folder({}, {"a/x.txt": "x", "a/y.txt": "y"}), refusal="contains no images|'2 .txt'"),
    # Pictures.
    Row("every format, also under .jpg", folder({}, all_formats()), counts={"train": 48}),
    Row("12 bits in 16", folder({}, twelve_bits(4095)), counts={"train": 24}),
    Row(
        "16 bits, 12 are set",
        folder({}, twelve_bits(65535)),
        settings={"bit_depth": 12},
        refusal="value 65535, more than 12 bits",
    ),
    Row("large and broken metadata", folder(AB, large_metadata()), counts={"train": 18}),
    Row(
        "broken pictures are named by reason",
        folder(AB, {"a/x.jpg": "x", "b/y.png": members({"a": 1})["a/00.png"][:-60], "b/z.gif": "x"}),
        refusal="3 images are broken|cannot be decoded: b/y.png|of a supported format: a/x.jpg, b/z.gif",
    ),
    # Links.
    Row("a link into DVC's cache", linked("cache/files/md5/ab/" + "c" * 30), counts={"train": 13}),
    Row(
        "a link that leads outside",
        linked("elsewhere.png"),
        refusal="links to folders or to files outside: 'a/link.png'",
    ),
    # Groups.
    Row(
        "patients in the path",
        folder({f"{label}/p{number}": 3 for label in "ab" for number in range(8)}),
        counts={"train": 48},
        settings={"group": r"/(p\d+)/"},
    ),
    Row(
        "patients in a table",
        folder({"scans": 24}, {"labels.csv": table(",", *PATIENTS)}),
        counts={"train": 24},
        settings={"labels": "labels.csv", "group": "column:patient"},
    ),
    Row(
        "a pattern that does not fit",
        folder(AB),
        settings={"group": r"(p\d+)/"},
        refusal="pictures without a group: 'a/00.png'|correct the pattern data.group",
    ),
    Row(
        "groups in two of the source's splits",
        splits("train", "test"),
        counts=TWO,
        settings={"group": r"(\d)\.png"},
        warning="2 groups are in more than one of the source's splits: 0, 1",
    ),
]
