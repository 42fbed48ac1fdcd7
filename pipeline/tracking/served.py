"""A registered model as MLflow loads and serves it. MLflow copies this file and the package into each version: no pickle.

Each row of the input is one request:

    image                an image, as base64 of a PNG, JPEG, BMP or WebP file or as numbers (C, H, W) in [0, 1]
        a classifier     -> class, probability, classes (the names of all classes), probabilities (in the order of ``classes``)
        an autoencoder   -> image (the reconstruction), code, anomaly (mean squared error of the reconstruction)
    count, seed, label   ``count`` new images of class ``label``: its name or its number; -1 or absent: any class
        a generator      -> image, label (the class's number) and class (its name), a row for each image; the same request, the
                            same images. A model without classes takes no label.

Images come back as base64 of PNG files, or with ``params={"form": "array"}`` as float32 arrays (C, H, W) in [0, 1].
"""

import base64
import binascii
import io
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

MAX_COUNT = 10_000  # images for one request
BATCH = 500


def refuse(reason: str) -> MlflowException:
    """The answer to a request that cannot be met: HTTP 400."""
    return MlflowException.invalid_parameter_value(reason)


class Served(PythonModel):
    """A task, loaded from the version's safetensors and verified by its SHA-256."""

    def load_context(self, context: Any) -> None:
        """Called by MLflow before the first prediction."""
        from pathlib import Path

        from pipeline.core import model_files
        from pipeline.core.conditioning import uses_labels

        folder = Path(context.artifacts["model"])
        self.task: Any = model_files.load(folder)
        self.conditional = uses_labels(self.task)
        self.names = model_files.read_card(folder).get("class_names") or [
            str(index) for index in range(self.task.spec.classes)
        ]

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answer each row (see above). Raises ``MlflowException`` for one that is out of range or that this model cannot answer."""
        import torch

        asked = {
            name for name in ("image", "count") if name in model_input and model_input[name].notna().any()
        }
        if len(asked) != 1:
            raise refuse("each row has either an image or a count")
        form = (params or {}).get("form", "png")
        if form not in ("png", "array"):
            raise refuse("form is png or array")
        with torch.no_grad():
            answers = self.draw(model_input) if asked == {"count"} else self.look(list(model_input["image"]))
        if "image" in answers and form == "png":
            answers["image"] = [encode(image) for image in answers["image"]]
        return pd.DataFrame(answers)

    def draw(self, rows: pd.DataFrame) -> dict[str, list[Any]]:
        """New images, row after row."""
        import torch

        from pipeline.core.noise import Noise

        numbers = (
            rows.reindex(columns=["count", "seed"]).fillna({"seed": 0}).astype("int64").to_numpy().tolist()
        )
        labels = [self.label_of(given) for given in rows["label"]] if "label" in rows else [-1] * len(rows)
        wanted = [(count, seed, label) for (count, seed), label in zip(numbers, labels, strict=True)]
        if any(count < 1 or seed < 0 for count, seed, _ in wanted):
            raise refuse("count is 1 or more, seed is 0 or more")
        if sum(count for count, _, _ in wanted) > MAX_COUNT:
            raise refuse(f"at most {MAX_COUNT} images can be asked for at once")
        answers: dict[str, list[Any]] = {"image": [], "label": [], "class": []}
        for count, seed, label in wanted:
            images = self.task.generate(
                None if label < 0 else torch.full((count,), label), count, Noise.whole(seed, count)
            )
            if images is None:
                raise refuse("this model does not generate images: send it some")
            answers["image"] += list(images.clamp(0, 1).numpy())
            answers["label"] += [label] * count
            answers["class"] += [self.names[label] if label >= 0 else ""] * count
        return answers

    def label_of(self, given: Any) -> int:
        """The number of the class that a request names by its name or its number; -1 for any class."""
        if given is None or given != given or given == -1:  # NaN where another row has a label
            return -1
        index = self.names.index(given) if given in self.names else given
        if isinstance(index, float) and index.is_integer():
            index = int(index)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.names):
            names = ", ".join(self.names)[:300]
            raise refuse(
                f"label is 0 to {len(self.names) - 1} or a class name ({names}), or -1 for any class; not {given!r}"
            )
        if not self.conditional:
            raise refuse("this model draws images without regard to classes: leave out label")
        return index

    def look(self, given: list[Any]) -> dict[str, list[Any]]:
        """What the model sees in images."""
        import torch

        pixels = torch.from_numpy(np.stack([self.decode(image) for image in given]))
        answers: dict[str, list[Any]] = {}
        for images in pixels.split(BATCH):
            logits, restored = self.task.classify(images), self.task.reconstruct(images)
            if logits is not None:
                shares = logits.softmax(dim=1)
                found = {
                    "class": [self.names[best] for best in shares.argmax(1)],
                    "probability": shares.amax(1).tolist(),
                }
                found |= {"classes": [self.names] * len(images), "probabilities": shares.tolist()}
            elif restored is not None:
                found = {
                    "image": list(restored.clamp(0, 1).numpy()),
                    "code": self.task.encode(images).tolist(),
                }
                found["anomaly"] = (restored - images).square().mean(dim=(1, 2, 3)).tolist()
            else:
                raise refuse("this model takes no images: send count, seed and label")
            for name, values in found.items():
                answers.setdefault(name, []).extend(values)
        return answers

    def decode(self, image: Any) -> np.ndarray:
        """float32 (C, H, W) in [0, 1] of one image as it was sent."""
        from pipeline.data import images

        spec = self.task.spec
        if isinstance(image, str):
            try:
                data = base64.b64decode(image.rpartition("base64,")[2], validate=True)
                return images.decode(data, spec.channels, spec.size).astype(np.float32) / 255
            except (binascii.Error, images.BrokenImage) as error:
                raise refuse(f"an image is not base64 of a whole picture: {error}") from None
        shape = (spec.channels, spec.size, spec.size)
        try:
            pixels = np.array(image, dtype=np.float32)
        except (TypeError, ValueError):
            pixels = np.empty(0, np.float32)
        if pixels.shape != shape or not (pixels.min() >= 0 and pixels.max() <= 1):
            raise refuse(f"an image is base64 of a picture file, or numbers in [0, 1] of shape {shape}")
        return pixels


def encode(image: np.ndarray) -> str:
    """Base64 of a PNG of float32 (C, H, W) in [0, 1]."""
    from PIL import Image

    values = (image * 255).round().astype(np.uint8)
    beside = io.BytesIO()
    Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0)).save(beside, format="PNG")
    return base64.b64encode(beside.getvalue()).decode()


set_model(Served())
