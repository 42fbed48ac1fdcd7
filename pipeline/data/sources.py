"""The catalogue of data sources, the values of ``data.source`` in params.yaml.

Checksums and sizes are from TensorFlow Datasets (the files ``url_checksums`` of tensorflow/datasets); those
of ``digits`` are from the RECORD of scikit-learn's wheel. For MNIST they were compared with files that have
the MD5s published by torchvision. KMNIST's class names are also from torchvision.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.data import formats
from pipeline.errors import BadInput

# Folder of raw files -> class names, arrays by split.
Read = Callable[[Path], tuple[tuple[str, ...], dict[str, formats.Arrays]]]


@dataclass(frozen=True)
class RemoteFile:
    """A published file, its exact size and its hex SHA-256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """A published data set.

    ``addresses`` are URLs of folders, in order of preference; 'package:' means a folder of an installed
    package.
    """

    name: str
    description: str
    licence: str
    shape: tuple[int, int, int]  # channels, height, width
    read: Read | None = None  # None: image files in class folders
    addresses: tuple[str, ...] = ()
    files: tuple[RemoteFile, ...] = ()


def find(name: str) -> Source:
    """The source ``name``. Raises ``BadInput`` that suggests the most similar name."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = difflib.get_close_matches(name.lower(), CATALOGUE, 1)
    remedy = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(CATALOGUE)}"
    raise BadInput(f"there is no source '{name}'", where="params.yaml: data.source", remedy=remedy)


def _files(text: str) -> tuple[RemoteFile, ...]:
    """One file on each line: name, number of bytes, SHA-256."""
    rows = (line.split() for line in text.strip().splitlines())
    return tuple(RemoteFile(name, int(num_bytes), sha256) for name, num_bytes, sha256 in rows)


def _read_digits(raw: Path) -> tuple[tuple[str, ...], dict[str, formats.Arrays]]:
    return DIGITS, {"train": formats.read_digits(raw / "digits.csv.gz")}


def _mnist(class_names: tuple[str, ...]) -> Read:
    def read(raw: Path, part: str) -> formats.Arrays:
        paths = raw / f"{part}-images-idx3-ubyte.gz", raw / f"{part}-labels-idx1-ubyte.gz"
        return formats.read_idx_pair(*paths, shape=(1, 28, 28), classes=len(class_names))

    return lambda raw: (class_names, {"train": read(raw, "train"), "test": read(raw, "t10k")})


def _cifar(archive: str, folder: str, splits: dict[str, list[str]], names: str, label_bytes: int) -> Read:
    members = {split: [f"{folder}/{name}" for name in parts] for split, parts in splits.items()}
    names = f"{folder}/{names}"
    return lambda raw: formats.read_cifar(raw / archive, members, label_bytes, (3, 32, 32), names)


DIGITS = tuple("0123456789")
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
CIFAR = ("https://www.cs.toronto.edu/~kriz",)
CIFAR_LICENCE = (
    "none stated; the publisher asks to cite 'Learning Multiple Layers of Features from Tiny Images', 2009"
)
CIFAR10 = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR100 = {"train": ["train.bin"], "test": ["test.bin"]}

SOURCES = (
    Source(
        "digits",
        "1,797 handwritten digits of 8 x 8 pixels, shipped with scikit-learn; needs no network",
        "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
        (1, 8, 8),
        _read_digits,
        ("package:sklearn/datasets/data",),
        _files("""
digits.csv.gz 57523 09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22
"""),
    ),
    Source(
        "mnist",
        "70,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes, Burges)",
        "CC BY-SA 3.0",
        (1, 28, 28),
        _mnist(DIGITS),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
        ),
        _files("""
train-images-idx3-ubyte.gz 9912422 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
train-labels-idx1-ubyte.gz 28881 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
t10k-images-idx3-ubyte.gz 1648877 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
t10k-labels-idx1-ubyte.gz 4542 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
"""),
    ),
    Source(
        "fashion-mnist",
        "70,000 pictures of clothes of 28 x 28 pixels (Zalando Research)",
        "MIT",
        (1, 28, 28),
        _mnist(CLOTHES),
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com",
        ),
        _files("""
train-images-idx3-ubyte.gz 26421880 3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84
train-labels-idx1-ubyte.gz 29515 a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845
t10k-images-idx3-ubyte.gz 4422102 346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073
t10k-labels-idx1-ubyte.gz 5148 67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5
"""),
    ),
    Source(
        "kmnist",
        "70,000 Japanese characters of 28 x 28 pixels (CODH, adapted from the Kuzushiji Dataset)",
        "CC BY-SA 4.0",
        (1, 28, 28),
        _mnist(KANA),
        ("https://codh.rois.ac.jp/kmnist/dataset/kmnist",),
        _files("""
train-images-idx3-ubyte.gz 18165135 51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4
train-labels-idx1-ubyte.gz 29497 e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17
t10k-images-idx3-ubyte.gz 3041136 edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5
t10k-labels-idx1-ubyte.gz 5120 20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c
"""),
    ),
    Source(
        "cifar10",
        "60,000 colour pictures of 32 x 32 pixels in 10 classes (Krizhevsky)",
        CIFAR_LICENCE,
        (3, 32, 32),
        _cifar("cifar-10-binary.tar.gz", "cifar-10-batches-bin", CIFAR10, "batches.meta.txt", label_bytes=1),
        CIFAR,
        _files("""
cifar-10-binary.tar.gz 170052171 c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd
"""),
    ),
    Source(
        "cifar100",
        "60,000 colour pictures of 32 x 32 pixels in 100 classes (Krizhevsky)",
        CIFAR_LICENCE,
        (3, 32, 32),
        _cifar(
            "cifar-100-binary.tar.gz", "cifar-100-binary", CIFAR100, "fine_label_names.txt", label_bytes=2
        ),
        CIFAR,
        _files("""
cifar-100-binary.tar.gz 168513733 58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec
"""),
    ),
    Source(
        "folder",
        "your own pictures: the folder or archive at data.folder",
        "whatever holds for your pictures",
        (3, 0, 0),
    ),
)
CATALOGUE = {source.name: source for source in SOURCES}
