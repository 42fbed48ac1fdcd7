"""A registered model as MLflow loads and serves it. MLflow copies this file into each version: no pickle.

Each row of the input is one request:

    image               an image: base64 of a PNG, JPEG, BMP or WebP file, or numbers (C, H, W) in [0, 1]
        classifier      -> class, probability, classes (all names), probabilities (in the order of classes)
        autoencoder     -> image (the reconstruction), code (if it has one), anomaly (its mean squared error)
        segmentation    -> mask (the class number of each pixel), classes (all names)
        transformer     -> image, whose upper half is kept and whose lower half is drawn (seed, label: below)
    count, seed, label  count: images to generate; label: a class name or number, -1 or missing: any class
        generator       -> image, label (class number), class (class name); one row for each image
    clip                numbers (T, C, H, W) in [0, 1]: the frames of a clip, at least one. The model
                        reads the last of them, as many as in its training
        forecaster      -> image; one row for each of the next frames, as many as in the training

The same request gives the same images. A model without classes takes no label. Images are returned as base64
of PNG files; with ``params={"form": "array"}`` as float32 arrays (C, H, W) in [0, 1], masks as (H, W).
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

MAX_COUNT = 10_000  # images per request
BATCH = 500


def bad_request(reason: str) -> MlflowException:
    """The error for an invalid request: HTTP 400."""
    return MlflowException.invalid_parameter_value(reason)


class PyfuncModel(PythonModel):
    """A task, loaded from the version's safetensors and verified by SHA-256."""

    def load_context(self, context: Any) -> None:
        """Called by MLflow before the first prediction."""
        from pathlib import Path

        from pipeline.core import model_files
        from pipeline.core.abilities import abilities

        folder = Path(context.artifacts["model"])
        self.task: Any = model_files.load(folder)
        self.abilities = {ability.name for ability in abilities(self.task)}
        card, labels = model_files.read_card(folder), self.task.spec.fields.get("label")
        self.names = card.get("class_names") or [
            str(number) for number in range(labels.num_values if labels else 0)
        ]
        self.bits = card.get("bit_depth", 16)
        self.fit = card.get("fit", "crop")  # how images that are not square were made square for the training

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """The result of each row, see above. Raises ``MlflowException`` for an invalid row."""
        import torch

        columns = [
            name
            for name in ("image", "count", "clip")
            if name in model_input and model_input[name].notna().any()
        ]
        if len(columns) != 1:
            raise bad_request("each row has either an image, a count or a clip")
        form = (params or {}).get("form", "png")
        if form not in ("png", "array"):
            raise bad_request("form is png or array")
        with torch.no_grad():
            answers = {"clip": self.forecast, "count": self.generate, "image": self.of_images}
            found = answers[columns[0]](model_input)
        if "image" in found and form == "png":
            found["image"] = [encode(image) for image in found["image"]]
        if "mask" in found and form == "png":
            found["mask"] = [png(mask) for mask in found["mask"]]
        return pd.DataFrame(found)

    def generate(self, rows: pd.DataFrame) -> dict[str, list[Any]]:
        """Generated images, row by row."""
        import torch

        from pipeline.core.noise import Noise

        if "GENERATE" not in self.abilities:
            raise bad_request("this model does not generate images: send images instead of a count")
        counts, seeds_and_labels = rows["count"].astype("int64").tolist(), self.seeds_and_labels(rows)
        requests = [(count, *each) for count, each in zip(counts, seeds_and_labels, strict=True)]
        if any(count < 1 for count in counts):
            raise bad_request("count is 1 or more")
        if sum(counts) > MAX_COUNT:
            raise bad_request(f"a request can generate at most {MAX_COUNT} images")
        found: dict[str, list[Any]] = {"image": [], "label": [], "class": []}
        for count, seed, label in requests:
            classes = None if label < 0 else torch.full((count,), label)
            images = self.task.generate(classes, count, Noise.whole(seed, count))
            found["image"] += list(images.clamp(0, 1).numpy())
            found["label"] += [label] * count
            found["class"] += [self.names[label] if label >= 0 else ""] * count
        return found

    def complete(self, rows: pd.DataFrame) -> dict[str, list[Any]]:
        """Images with a new lower half, row by row."""
        import torch

        from pipeline.core.noise import Noise
        from pipeline.layers.damage import upper_half

        found: dict[str, list[Any]] = {"image": []}
        for given, (seed, label) in zip(rows["image"], self.seeds_and_labels(rows), strict=True):
            image = torch.from_numpy(self.decode(given))[None]
            classes = None if label < 0 else torch.full((1,), label)
            completed = self.task.complete(image, upper_half(image), Noise.whole(seed, 1), classes)
            found["image"].append(completed[0].clamp(0, 1).numpy())
        return found

    def seeds_and_labels(self, rows: pd.DataFrame) -> list[tuple[int, int]]:
        """The seed and the class number, or -1, of each row."""
        seeds = rows.reindex(columns=["seed"]).fillna(0)["seed"].astype("int64").tolist()
        if min(seeds) < 0:
            raise bad_request("seed is 0 or more")
        labels = [self.label_of(given) for given in rows["label"]] if "label" in rows else [-1] * len(rows)
        return list(zip(seeds, labels, strict=True))

    def label_of(self, given: Any) -> int:
        """The number of the class that a request gives by name or number; -1 for any class."""
        if given is None or given != given or given == -1:  # NaN if only other rows have a label
            return -1
        index = self.names.index(given) if given in self.names else given
        if isinstance(index, float) and index.is_integer():
            index = int(index)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.names):
            names = ", ".join(self.names)[:300]
            raise bad_request(
                f"label is 0 to {len(self.names) - 1} or a class name ({names}), or -1 for any class; "
                f"not {given!r}"
            )
        if "USES_LABELS" not in self.abilities:
            raise bad_request("this model generates images without regard to classes: leave out label")
        return index

    def of_images(self, rows: pd.DataFrame) -> dict[str, list[Any]]:
        """Completions by a model that completes; else classes, masks or reconstructions."""
        return self.complete(rows) if "COMPLETE" in self.abilities else self.predict_images(rows)

    def predict_images(self, rows: pd.DataFrame) -> dict[str, list[Any]]:
        """Classes, masks or reconstructions of images."""
        import torch

        if not {"CLASSIFY", "RECONSTRUCT", "SEGMENT"} & self.abilities:
            raise bad_request("this model takes no images: send count, seed and label")
        pixels = torch.from_numpy(np.stack([self.decode(image) for image in rows["image"]]))
        results: dict[str, list[Any]] = {}
        for images in pixels.split(BATCH):
            if "CLASSIFY" in self.abilities:
                probabilities = self.task.classify(images).softmax(dim=1)
                found = {
                    "class": [self.names[best] for best in probabilities.argmax(1)],
                    "probability": probabilities.amax(1).tolist(),
                    "classes": [self.names] * len(images),
                    "probabilities": probabilities.tolist(),
                }
            elif "SEGMENT" in self.abilities:
                from pipeline.layers.label_maps import answers

                masks = answers(self.task.segment, images).byte().numpy()
                found = {"mask": list(masks), "classes": [self.names] * len(images)}
            else:
                reconstructed = self.task.reconstruct(images)
                found = {"image": list(reconstructed.clamp(0, 1).numpy())}
                if "ENCODE" in self.abilities:
                    found["code"] = self.task.encode(images).tolist()
                found["anomaly"] = (reconstructed - images).square().mean(dim=(1, 2, 3)).tolist()
            for name, values in found.items():
                results.setdefault(name, []).extend(values)
        return results

    def forecast(self, rows: pd.DataFrame) -> dict[str, list[Any]]:
        """The next frames of each clip, in order."""
        import torch

        if "FORECAST" not in self.abilities:
            raise bad_request("this model takes no clips")
        num_frames, *shape = self.task.spec["clip"].shape
        known = getattr(self.task, "input_frames", num_frames // 2)
        found: dict[str, list[Any]] = {"image": []}
        for clip in rows["clip"]:
            frames = numbers(clip)
            if frames.ndim != 4 or list(frames.shape[1:]) != shape or not in_range(frames):
                raise bad_request(f"a clip is numbers in [0, 1] of shape (T, {', '.join(map(str, shape))})")
            following = self.task.forecast(torch.from_numpy(frames[-known:])[None], num_frames - known)
            found["image"] += list(following[0].clamp(0, 1).numpy())
        return found

    def decode(self, image: Any) -> np.ndarray:
        """An image of a request as float32 (C, H, W) in [0, 1]."""
        from pipeline.data import images

        spec = self.task.spec
        if isinstance(image, str):
            try:
                data = base64.b64decode(image.rpartition("base64,")[2], validate=True)
                return images.decode(data, spec.channels, spec.size, self.fit, self.bits) / np.float32(255)
            except (binascii.Error, images.BrokenImage) as error:
                raise bad_request(f"an image is not base64 of a complete image file: {error}") from None
        shape = (spec.channels, spec.size, spec.size)
        pixels = numbers(image)
        if pixels.shape != shape or not in_range(pixels):
            raise bad_request(f"an image is base64 of an image file, or numbers in [0, 1] of shape {shape}")
        return pixels


def numbers(given: Any) -> np.ndarray:
    """The nested lists of a request as float32; empty if they are not numbers."""
    try:
        return np.array(given, dtype=np.float32)
    except (TypeError, ValueError):
        return np.empty(0, np.float32)


def in_range(pixels: np.ndarray) -> bool:
    """Whether there are pixels and all are in [0, 1]."""
    return bool(pixels.size and pixels.min() >= 0 and pixels.max() <= 1)


def encode(image: np.ndarray) -> str:
    """Base64 of a PNG file of float32 (C, H, W) in [0, 1]."""
    values = (image * 255).round().astype(np.uint8)
    return png(values[0] if len(values) == 1 else values.transpose(1, 2, 0))


def png(values: np.ndarray) -> str:
    """Base64 of a PNG file of uint8 (H, W) or (H, W, 3)."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


set_model(PyfuncModel())
