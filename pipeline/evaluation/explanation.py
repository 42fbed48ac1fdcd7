"""Maps of the pixels that speak for a class, and whether they depend on the weights of the classifier.

Integrated Gradients: Sundararajan et al. 2017. Grad-CAM: Selvaraju et al. 2017. Occlusion: Zeiler & Fergus
2014. Captum computes them, of the logit of the class. Sanity check: Adebayo et al. 2018.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.noise import generator
from pipeline.core.task import Task
from pipeline.layers.similarity import ssim

METHODS = {"gradients": "Integrated Gradients", "grad-cam": "Grad-CAM", "occlusion": "Occlusion"}
STEPS = 32  # of Integrated Gradients; squares that are hidden at once
MOST_PIXELS = 2**18  # of the images that the network sees at once, ``STEPS`` for each map
WINDOWS = 4  # side of an image, in sides of the hidden square
SHOWN = 0.99  # quantile of the absolute values of a map that is drawn in full colour
NUM_CHECKED = 16  # images of the sanity check
NUM_RANDOM = 3  # networks with shuffled weights
SIMILAR = 0.5  # rank correlation, from which on maps hardly differ
LEGEND = (("speaks for the class", (255, 70, 40)), ("speaks against it", (70, 150, 255)))


@dataclass(frozen=True)
class Explainer:
    """Maps of a classifier."""

    task: Task

    def map(self, method: str, images: Tensor, labels: Tensor) -> Tensor:
        """How much each pixel of images (N, C, H, W) speaks for the classes ``labels`` (N,): (N, 1, H, W).

        Negative values speak against it. ``method``: one of :attr:`methods`.
        """
        compute: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "gradients": self._integrated_gradients,
            "grad-cam": self._grad_cam,
            "occlusion": self._occlusion,
        }
        size = max(1, MOST_PIXELS // (STEPS * images[0, 0].numel()))
        with torch.inference_mode(False), torch.enable_grad():
            parts = zip(images.clone().split(size), labels.clone().split(size))
            return torch.cat([compute[method](*part).sum(1, keepdim=True).detach() for part in parts])

    @cached_property
    def methods(self) -> list[str]:
        """The methods that can be used: only occlusion without gradients; Grad-CAM with a :attr:`layer`."""
        with torch.inference_mode(False), torch.enable_grad():
            logits = self.task.classify(self._black().requires_grad_())
        differentiable = logits is not None and logits.requires_grad
        able = {"gradients": differentiable, "grad-cam": differentiable and self.layer is not None}
        return [method for method in METHODS if able.get(method, True)]

    @cached_property
    def layer(self) -> tuple[str, nn.Module, tuple[int, int]] | None:
        """The last layer whose output is maps of more than one value: its name, itself, height and width.

        It need not be a convolution: after residual blocks it is their sum. None if there is no such layer.
        """
        found: list[tuple[str, nn.Module, tuple[int, int]]] = []

        def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
            def note(module: nn.Module, inputs: object, output: object) -> None:
                if isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
                    found.append((name, module, (output.shape[2], output.shape[3])))

            return module.register_forward_hook(note)

        hooks = [watch(*named) for named in self.task.named_modules()]
        with torch.no_grad():
            self.task.classify(self._black())
        for hook in hooks:
            hook.remove()
        return found[-1] if found else None

    def _black(self) -> Tensor:
        return torch.zeros(1, *self.task.spec["image"].shape, device=self.task.device)

    def source(self, method: str) -> str:
        """What the map is computed from, in words."""
        if method == "grad-cam" and self.layer:
            return "{}, {} x {} values".format(self.layer[0], *self.layer[2])
        side = _window(self.task.spec.size)
        return f"squares of {side} x {side} pixels" if method == "occlusion" else "each pixel"

    def _integrated_gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        from captum.attr import IntegratedGradients  # imported here because it takes half a second

        method = IntegratedGradients(self.task.classify)
        return method.attribute(images, blank(images), labels, n_steps=STEPS)

    def _grad_cam(self, images: Tensor, labels: Tensor) -> Tensor:
        from captum.attr import LayerGradCam

        assert self.layer
        method = LayerGradCam(self.task.classify, self.layer[1])
        maps = method.attribute(images, labels)
        if getattr(self.task.config, "test_time_flip", False):  # Captum sees the mirror image, which is last
            maps = maps.flip(-1) + method.attribute(images.flip(-1), labels)
        return F.interpolate(F.relu(maps), images.shape[2:], mode="bilinear")

    def _occlusion(self, images: Tensor, labels: Tensor) -> Tensor:
        from captum.attr import Occlusion

        channels, side = images.shape[1], _window(images.shape[2])
        square, steps = (channels, side, side), (channels, (side + 1) // 2, (side + 1) // 2)
        method = Occlusion(self.task.classify)
        maps = method.attribute(images, square, steps, blank(images), labels, perturbations_per_eval=STEPS)
        return maps[:, :1]  # a square hides all channels


def _window(side: int) -> int:
    return max(1, side // WINDOWS)


def blank(images: Tensor) -> Tensor:
    """Images (N, C, H, W) of one colour: in each channel, the median of the border of the image."""
    border = (images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1])
    return torch.cat(border, 2).quantile(0.5, 2)[..., None, None].expand_as(images)


def sheet(explainer: Explainer, images: Tensor, labels: Tensor, methods: Sequence[str]) -> Tensor:
    """The images and their maps on them, in the colours of ``LEGEND``: (N, 1 + methods, 3, H, W)."""
    grey = images.mean(1, keepdim=True) / 3
    drawn = [images[:, :3].expand(-1, 3, -1, -1)]
    speaks_for, against = (torch.tensor(rgb, device=images.device)[:, None, None] / 255 for _, rgb in LEGEND)
    for method in methods:
        maps = explainer.map(method, images, labels)
        largest = maps.abs().flatten(1).quantile(SHOWN, 1).clamp_min(1e-12)[:, None, None, None]
        painted = torch.where(maps > 0, speaks_for, against)
        drawn.append(grey + (maps.abs() / largest).clamp_max(1) * (painted - grey))
    return torch.stack(drawn, 1)


def headings(methods: Sequence[str]) -> list[str]:
    """The names of the columns of a :func:`sheet`."""
    return ["image", *(METHODS[method].split()[-1] for method in methods)]


@dataclass(frozen=True)
class Similarity:
    """How alike maps of two networks are, averaged over images; 1 for the same, about 0 for unrelated."""

    rank_correlation: float  # Spearman's; NaN if there is no pair of maps with content
    of_absolute_values: float
    ssim: float

    @classmethod
    def between(cls, maps: Tensor, others: Tensor) -> "Similarity":
        """The similarity of maps (N, 1, H, W). Pairs of maps that are both empty count for nothing."""
        filled = (maps != 0).flatten(1).any(1) | (others != 0).flatten(1).any(1)
        maps, others = maps[filled], others[filled]
        pairs = maps.flatten(1).cpu().numpy(), others.flatten(1).cpu().numpy()
        first, second = (each / (2 * _largest(each)) + 0.5 for each in (maps, others))
        return cls(
            _rank_correlation(*pairs),
            _rank_correlation(*map(np.abs, pairs)),
            float(ssim(first, second).mean()),
        )

    @property
    def reading(self) -> str:
        """What the similarity to maps of networks with random weights means."""
        if math.isnan(self.rank_correlation):
            return "cannot be checked: the maps are empty"
        if self.rank_correlation >= SIMILAR:
            return "says little: it hardly differs from a map of random weights"
        if self.of_absolute_values >= SIMILAR:
            return "mostly its signs depend on the weights"
        return "depends on the weights"


def _largest(maps: Tensor) -> Tensor:
    return maps.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of the rows (N, D), averaged; NaN if one of each pair is constant."""
    import pandas as pd

    ranks, others = (pd.DataFrame(rows).rank(axis=1) for rows in (first, second))
    return float(ranks.corrwith(others, axis=1).mean())  # NaN where a row is constant: mean() skips it


def randomised(task: Task, seed: int, index: int = 0) -> Task:
    """A copy of ``task`` in which the values of each tensor of weights are shuffled."""
    with torch.inference_mode(False), torch.no_grad():
        other = copy.deepcopy(task)
        for name, values in other.state_dict().items():
            order = torch.randperm(values.numel(), generator=generator(seed, "shuffled weights", index, name))
            values.copy_(values.flatten()[order.to(values.device)].view_as(values))
    return other


def sanity_check(
    explainer: Explainer, images: Tensor, labels: Tensor, methods: Sequence[str], seed: int = 0
) -> dict[str, Similarity]:
    """How similar the maps of each method are to those of ``NUM_RANDOM`` networks with shuffled weights.

    It takes the first ``NUM_CHECKED`` images (N, C, H, W).
    """
    images, labels = images[:NUM_CHECKED], labels[:NUM_CHECKED]
    others = [Explainer(randomised(explainer.task, seed, index)) for index in range(NUM_RANDOM)]
    found = {}
    for method in methods:
        maps = explainer.map(method, images, labels).repeat(NUM_RANDOM, 1, 1, 1)
        found[method] = Similarity.between(
            maps, torch.cat([each.map(method, images, labels) for each in others])
        )
    return found
