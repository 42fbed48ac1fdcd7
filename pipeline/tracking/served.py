"""A registered model as MLflow loads and serves it. MLflow copies this file and the package into each version: no pickle.

A version serves one ability over HTTP and through ``mlflow.pyfunc.load_model(...).predict``:

    classify       images float32 (N, C, H, W) in [0, 1] -> class probabilities float32 (N, classes)
    generate       table of count, seed, label (-1: any class) -> images uint8 (sum of counts, C, H, W), row after row
    reconstruct    images float32 (N, C, H, W) in [0, 1] -> images float32 (N, C, H, W) in [0, 1]

Its task may have more of them (an autoencoder that also generates); in Python all are at hand:
``load_model(...).unwrap_python_model().task``.
"""

from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelConfig, set_model
from mlflow.pyfunc import PythonModel

MAX_COUNT = 10_000  # pictures for one request
BATCH = 500


class Served(PythonModel):
    """What all abilities share: the task, loaded from the version's safetensors and verified by its SHA-256."""

    def load_context(self, context: Any) -> None:
        """Called by MLflow before the first prediction."""
        from pathlib import Path

        from pipeline.models import store

        self.task: Any = store.load(Path(context.artifacts["model"]))

    def in_batches(self, function: Any, images: np.ndarray) -> np.ndarray:
        """``function`` over batches of ``images``, as one array."""
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
        with torch.no_grad():
            return np.concatenate([function(batch).float().numpy() for batch in pixels.split(BATCH)])


class Classifier(Served):
    """Images to class probabilities."""

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Images float32 (N, C, H, W) in [0, 1] -> probabilities (N, classes)."""
        return self.in_batches(lambda images: self.task.classify(images).softmax(dim=1), model_input)


class Autoencoder(Served):
    """Images to what remains of them."""

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Images float32 (N, C, H, W) in [0, 1] -> images of the same shape."""
        return self.in_batches(self.task.reconstruct, model_input)


class Generator(Served):
    """Rows of (count, seed, label) to pictures; the same row gives the same pictures."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """Images uint8 (sum of counts, C, H, W). Raises ``MlflowException`` (HTTP 400) for a row out of range."""
        rows = [(int(row["count"]), int(row["seed"]), int(row["label"])) for row in model_input.to_dict("records")]
        classes = self.task.spec.classes
        if (
            any(count < 1 or seed < 0 or not -1 <= label < classes for count, seed, label in rows)
            or sum(row[0] for row in rows) > MAX_COUNT
        ):
            raise MlflowException.invalid_parameter_value(
                f"count is 1 to {MAX_COUNT} in all, seed is 0 or more, label is 0 to {classes - 1}, or -1 for any class"
            )
        return np.concatenate([self.draw(*row) for row in rows])

    def draw(self, count: int, seed: int, label: int) -> np.ndarray:
        """``count`` pictures, uint8 (count, C, H, W)."""
        import torch

        from pipeline.noise import Noise

        labels = None if label < 0 else torch.full((count,), label)
        with torch.no_grad():
            images = self.task.generate(labels, count, Noise.whole(seed, count))
        return (images * 255).round().clamp(0, 255).to(torch.uint8).numpy()


KINDS: dict[str, Any] = {"classify": Classifier, "generate": Generator, "reconstruct": Autoencoder}
set_model(KINDS[ModelConfig().get("ability")]())
