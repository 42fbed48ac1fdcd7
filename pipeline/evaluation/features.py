"""The feature space in which images are compared: a classifier's, that of another network, or pixels."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core import model_files
from pipeline.core.abilities import Ability, abilities
from pipeline.core.task import Task
from pipeline.errors import BadInput
from pipeline.files import digest_of, sha256

PIXELS = "pixels"
SETTING = "params.yaml: evaluate.feature_network"


@dataclass(frozen=True)
class FeatureSpace:
    """``function`` maps images (N, C, H, W), float32 in [0, 1], to vectors (N, D).

    Distances in different spaces cannot be compared. ``name`` and ``digest`` identify the network.
    """

    name: str
    digest: str
    function: Callable[[Tensor], Tensor | None]
    device: torch.device

    @classmethod
    def of_classifier(cls, name: str, task: Task, digest: str) -> "FeatureSpace":
        """The input of the last layer of a classifier. Raises ``BadInput`` for a model without features."""
        if Ability.FEATURES not in abilities(task):
            what = f"the model {name!r} has no features to compare images by"
            raise BadInput(what, where="params.yaml: evaluate.classifier", remedy="name a classifier")
        return cls(name, digest, task.features, task.device)

    @classmethod
    def of_network(cls, network: str, shape: tuple[int, ...], device: torch.device) -> "FeatureSpace":
        """The space that ``evaluate.feature_network`` names, for images of ``shape`` (C, H, W).

        ``network`` is "pixels", an ONNX file, or a folder with a trained model that has features (or its
        weights). Raises ``BadInput`` if it is missing or cannot be used.
        """
        if network == PIXELS:
            return cls(PIXELS, PIXELS, lambda images: images.flatten(1), torch.device("cpu"))
        path, where, digest = Path(network), f"{SETTING}: {network}", network_digest(network)
        if path.suffix == ".onnx":
            return cls(path.name, digest, _onnx(path, shape, where), torch.device("cpu"))
        folder = path if path.is_dir() else path.parent
        task = model_files.load(folder, str(device))
        if Ability.FEATURES not in abilities(task):
            remedy = "name a classifier, an ONNX file or pixels"
            raise BadInput("this model has no features to compare images by", where=where, remedy=remedy)
        if task.spec["image"].shape != shape:
            sizes = [" x ".join(map(str, each)) for each in (task.spec["image"].shape, shape)]
            what, remedy = f"it reads images of {sizes[0]}, the data has {sizes[1]}", "name another network"
            raise BadInput(what, where=where, remedy=remedy)
        return cls(folder.name, digest, task.features, task.device)

    def vectors(self, batches: Iterable[Tensor]) -> np.ndarray:
        """Features (N, D), float64, of all images in ``batches``."""
        parts = [self.function(as_saved(images.to(self.device))) for images in batches]
        return np.concatenate([part.double().cpu().numpy() for part in parts if part is not None])


def network_digest(network: str) -> str:
    """A digest of all weights of the network that ``evaluate.feature_network`` names.

    Raises ``BadInput`` if it is missing or cannot be read.
    """
    path, where = Path(network), f"{SETTING}: {network}"
    if network == PIXELS:
        return PIXELS
    if not path.exists():
        raise BadInput("no such file or folder", where=where, remedy="correct it, or leave it empty")
    if path.suffix != ".onnx":
        return model_files.digest(path if path.is_dir() else path.parent)
    try:
        import onnx
        from onnx import external_data_helper as external

        tensors = external._get_all_tensors(onnx.load(path, load_external_data=False))
        kept = {
            external.ExternalDataInfo(each).location for each in tensors if external.uses_external_data(each)
        }
        digests = [sha256(path), *(sha256(path.parent / name) for name in sorted(kept))]
    except ImportError:
        what, remedy = "the package onnx is not installed", "pip install 'darkroom[onnx]'"
        raise BadInput(what, where=where, remedy=remedy) from None
    except Exception as error:  # onnx's and protobuf's exceptions have no common class
        remedy = "export it again; weights in other files must lie next to it"
        raise BadInput(f"cannot be used ({_line(error)})", where=where, remedy=remedy) from None
    return digest_of(digests) if kept else digests[0]


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def as_saved(images: Tensor) -> Tensor:
    """Images rounded to 8 bits, because the real images were files with 8 bits."""
    return images.clamp(0, 1).mul(255).round().div(255)


def _onnx(path: Path, shape: tuple[int, ...], where: str) -> Callable[[Tensor], Tensor]:
    """The first output of an ONNX file, flattened, as a function of images of ``shape`` (C, H, W).

    Its input is (N, C, H, W), in [0, 1], for any N. If it reads another size, images are resized; if it
    reads RGB, grey images are repeated.
    """
    try:
        import onnxruntime
    except ImportError:
        what, remedy = "the package onnxruntime is not installed", "pip install 'darkroom[onnx]'"
        raise BadInput(what, where=where, remedy=remedy) from None
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (wanted,) = session.get_inputs()
        batch, channels, *sides = wanted.shape
    except Exception as error:  # onnxruntime's exceptions have no common class
        what = f"cannot be used ({_line(error)})"
        raise BadInput(what, where=where, remedy="name a network with one input, images") from None
    size = tuple(side if isinstance(side, int) else own for side, own in zip(sides, shape[1:]))
    fits = not isinstance(channels, int) or channels == shape[0] or (channels, shape[0]) == (3, 1)
    if isinstance(batch, int) or len(size) != 2 or not fits:
        what = f"its input is {wanted.shape}, the data has images of {list(shape)}"
        raise BadInput(what, where=where, remedy="export it with an input (N, C, H, W) for any N")

    def features(images: Tensor) -> Tensor:
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        if channels == 3:
            images = images.expand(-1, 3, -1, -1)
        (found, *_) = session.run(None, {wanted.name: images.float().contiguous().numpy()})
        return torch.from_numpy(found).flatten(1)

    return features
