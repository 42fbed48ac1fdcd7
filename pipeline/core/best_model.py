"""Keep the weights of the best validation, and end a training that no longer improves."""

import math

import torch
from torch import Tensor

from pipeline.core.settings import TrainingSettings
from pipeline.core.task import Task
from pipeline.errors import BadInput


class BestModel:
    """The best value of the monitored metric so far and, with ``keep: best``, the weights that had it.

    It is part of each checkpoint, so a resumed training decides like an uninterrupted one.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        self.value = math.inf if settings.monitor_mode == "min" else -math.inf
        self.step = 0
        self.num_without = 0  # validations since the best one
        self.weights: dict[str, Tensor] = {}

    @property
    def exhausted(self) -> bool:
        """Whether the training has to end."""
        return self.settings.patience is not None and self.num_without >= self.settings.patience

    def update(self, step: int, metrics: dict[str, float], task: Task) -> None:
        """Take note of a validation. Raises ``BadInput`` if the monitored metric is not among ``metrics``."""
        if not (name := self.settings.monitor):
            return
        if name not in metrics:
            where, remedy = "params.yaml: training.monitor", f"choose one of: {', '.join(sorted(metrics))}"
            raise BadInput(f"the model has no metric '{name}'", where=where, remedy=remedy)
        value, best = metrics[name], self.value
        better = value < best if self.settings.monitor_mode == "min" else value > best
        self.num_without = 0 if better else self.num_without + 1
        if better:
            self.value, self.step = value, step
            if self.settings.keep == "best":
                self.weights = {key: value.clone() for key, value in task.state_dict().items()}

    def restore(self, task: Task) -> None:
        """Load the best weights into ``task``, if they were kept."""
        if self.weights:
            task.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as named tensors; empty if no metric is monitored."""
        if not self.settings.monitor:
            return {}
        numbers = torch.tensor([self.value, self.step, self.num_without], dtype=torch.float64)
        return {"numbers": numbers} | {f"weights/{key}": value for key, value in self.weights.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what :meth:`state_dict` returned."""
        if state:
            value, step, num_without = state["numbers"].tolist()
            self.value, self.step, self.num_without = value, int(step), int(num_without)
            weights = {key: value for key, value in state.items() if key != "numbers"}
            self.weights = {key.removeprefix("weights/"): value for key, value in weights.items()}
