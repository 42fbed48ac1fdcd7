"""The catalogue of data sources, the values of ``data.source`` in params.yaml.

Checksums and sizes are from TensorFlow Datasets (the files ``url_checksums`` of tensorflow/datasets); those
of ``digits`` are from the RECORD of scikit-learn's wheel. For MNIST they were compared with files that have
the MD5s published by torchvision. KMNIST's class names are also from torchvision.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.data import formats
from pipeline.errors import BadInput

# folder of raw files -> class names, arrays by split
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
    addresses: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    shape: tuple[int, int, int]  # channels, height, width
    read: Read | None  # None: image files in class folders


def find(name: str) -> Source:
    """The source ``name``. Raises ``BadInput`` that suggests the most similar name."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = difflib.get_close_matches(name.lower(), CATALOGUE, 1)
    remedy = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(CATALOGUE)}"
    raise BadInput(f"there is no source '{name}'", where="params.yaml: data.source", remedy=remedy)


def _read_digits(raw: Path) -> tuple[tuple[str, ...], dict[str, formats.Arrays]]:
    return DIGITS, {"train": formats.read_digits(raw / "digits.csv.gz")}


def _read_mnist(class_names: tuple[str, ...], raw: Path) -> tuple[tuple[str, ...], dict[str, formats.Arrays]]:
    def read(part: str) -> formats.Arrays:
        paths = raw / f"{part}-images-idx3-ubyte.gz", raw / f"{part}-labels-idx1-ubyte.gz"
        return formats.read_idx_pair(*paths, shape=(1, 28, 28), classes=len(class_names))

    return class_names, {"train": read("train"), "test": read("t10k")}


def _read_cifar10(raw: Path) -> tuple[tuple[str, ...], dict[str, formats.Arrays]]:
    members = [
        f"cifar-10-batches-bin/{name}.bin"
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    ]
    names = "cifar-10-batches-bin/batches.meta.txt"
    class_names, arrays = formats.read_cifar(raw / "cifar-10-binary.tar.gz", members, 1, (3, 32, 32), names)
    images, labels = (np.concatenate(parts) for parts in zip(*arrays[:-1]))
    return class_names, {"train": (images, labels), "test": arrays[-1]}


def _read_cifar100(raw: Path) -> tuple[tuple[str, ...], dict[str, formats.Arrays]]:
    members = [f"cifar-100-binary/{split}.bin" for split in ("train", "test")]
    names = "cifar-100-binary/fine_label_names.txt"
    class_names, arrays = formats.read_cifar(raw / "cifar-100-binary.tar.gz", members, 2, (3, 32, 32), names)
    return class_names, dict(zip(("train", "test"), arrays))


DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
CIFAR = ("https://www.cs.toronto.edu/~kriz",)
CIFAR_LICENCE = (
    "none stated; the publisher asks to cite 'Learning Multiple Layers of Features from Tiny Images', 2009"
)

CATALOGUE = {
    source.name: source
    for source in (
        Source(
            name="digits",
            description="1,797 handwritten digits of 8 x 8 pixels, shipped with scikit-learn; "
            "needs no network",
            licence="CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
            addresses=("package:sklearn/datasets/data",),
            files=(
                RemoteFile(
                    "digits.csv.gz",
                    57_523,
                    "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
                ),
            ),
            shape=(1, 8, 8),
            read=_read_digits,
        ),
        Source(
            name="mnist",
            description="70,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes, Burges)",
            licence="CC BY-SA 3.0",
            addresses=(
                "https://ossci-datasets.s3.amazonaws.com/mnist",
                "https://storage.googleapis.com/cvdf-datasets/mnist",
            ),
            files=(
                RemoteFile(
                    "train-images-idx3-ubyte.gz",
                    9_912_422,
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                ),
                RemoteFile(
                    "train-labels-idx1-ubyte.gz",
                    28_881,
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                ),
                RemoteFile(
                    "t10k-images-idx3-ubyte.gz",
                    1_648_877,
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                ),
                RemoteFile(
                    "t10k-labels-idx1-ubyte.gz",
                    4_542,
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            ),
            shape=(1, 28, 28),
            read=partial(_read_mnist, DIGITS),
        ),
        Source(
            name="fashion-mnist",
            description="70,000 pictures of clothes of 28 x 28 pixels (Zalando Research)",
            licence="MIT",
            addresses=(
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
                "https://fashion-mnist.s3.eu-central-1.amazonaws.com",
            ),
            files=(
                RemoteFile(
                    "train-images-idx3-ubyte.gz",
                    26_421_880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                RemoteFile(
                    "train-labels-idx1-ubyte.gz",
                    29_515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                RemoteFile(
                    "t10k-images-idx3-ubyte.gz",
                    4_422_102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                RemoteFile(
                    "t10k-labels-idx1-ubyte.gz",
                    5_148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            ),
            shape=(1, 28, 28),
            read=partial(_read_mnist, CLOTHES),
        ),
        Source(
            name="kmnist",
            description="70,000 cursive Japanese characters of 28 x 28 pixels "
            "(CODH, adapted from the Kuzushiji Dataset)",
            licence="CC BY-SA 4.0",
            addresses=("https://codh.rois.ac.jp/kmnist/dataset/kmnist",),
            files=(
                RemoteFile(
                    "train-images-idx3-ubyte.gz",
                    18_165_135,
                    "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
                ),
                RemoteFile(
                    "train-labels-idx1-ubyte.gz",
                    29_497,
                    "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
                ),
                RemoteFile(
                    "t10k-images-idx3-ubyte.gz",
                    3_041_136,
                    "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
                ),
                RemoteFile(
                    "t10k-labels-idx1-ubyte.gz",
                    5_120,
                    "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
                ),
            ),
            shape=(1, 28, 28),
            read=partial(_read_mnist, KANA),
        ),
        Source(
            name="cifar10",
            description="60,000 colour pictures of 32 x 32 pixels in 10 classes (Krizhevsky)",
            licence=CIFAR_LICENCE,
            addresses=CIFAR,
            files=(
                RemoteFile(
                    "cifar-10-binary.tar.gz",
                    170_052_171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                ),
            ),
            shape=(3, 32, 32),
            read=_read_cifar10,
        ),
        Source(
            name="cifar100",
            description="60,000 colour pictures of 32 x 32 pixels in 100 classes (Krizhevsky)",
            licence=CIFAR_LICENCE,
            addresses=CIFAR,
            files=(
                RemoteFile(
                    "cifar-100-binary.tar.gz",
                    168_513_733,
                    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                ),
            ),
            shape=(3, 32, 32),
            read=_read_cifar100,
        ),
        Source(
            name="folder",
            description="your own pictures: the folder or zip at data.folder, a sub-folder for each class",
            licence="whatever holds for your pictures",
            addresses=(),
            files=(),
            shape=(3, 0, 0),
            read=None,
        ),
    )
}
