"""Autoencoders: errors between images and reconstructions, compression, and restoration of damaged images.

SSIM: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity". Images are
(N, C, H, W) in [0, 1].
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.abilities import Ability
from pipeline.core.dataset import Split
from pipeline.core.noise import Noise
from pipeline.estimate import Estimate
from pipeline.evaluation import averages, figures
from pipeline.evaluation.context import Context, made
from pipeline.evaluation.distances import BATCH, MEASURES
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.evaluators.generation import finite
from pipeline.evaluation.measure import Measure, of_other_images

SMALLEST_ERROR = 1e-10  # so that an exact copy has 100 dB, not infinity


def squared_error(images: Tensor, others: Tensor) -> Tensor:
    """Mean squared error of each image's pixels, (N,), float64."""
    return (images.double() - others.double()).square().mean(dim=(1, 2, 3))


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (N,), in dB; at most 100."""
    return -10 * squared_error(images, others).clamp(min=SMALLEST_ERROR).log10()  # 10 log10(1^2 / MSE)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each image, (N,), at most 1, averaged over channels.

    The Gaussian window has 11 pixels (sigma 1.5), or the largest odd number of pixels that fits.
    """
    first, second = images.double(), others.double()
    across, along = (_blur(side, min(images.shape[-2:]), images.device) for side in images.shape[-2:])

    def local(values: Tensor) -> Tensor:
        return across @ values @ along.T  # a convolution of float64 takes forty times as long

    mean1, mean2 = local(first), local(second)
    variance1, variance2 = local(first * first) - mean1.square(), local(second * second) - mean2.square()
    covariance = local(first * second) - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean1 * mean2 + c1) / (mean1.square() + mean2.square() + c1)
    structure = (2 * covariance + c2) / (variance1 + variance2 + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _blur(side: int, smallest: int, device: torch.device) -> Tensor:
    """The matrix (side - size + 1, side) of the Gaussian window along one axis; see :func:`ssim`."""
    size = min(11, (smallest - 1) // 2 * 2 + 1)
    offsets = torch.arange(size, dtype=torch.float64, device=device) - size // 2
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    count = side - size + 1
    padded = F.pad(line / line.sum(), (0, count))  # its repetition, cut into rows, moves by one with each row
    return padded.repeat(count)[: count * side].view(count, side)


def damaged(images: Tensor, sigma: float, noise: Noise) -> dict[str, Tensor]:
    """Damaged images by the name of the restoration: with Gaussian noise; with a grey middle square."""
    noisy = (images + sigma * noise.normal("damage", *images.shape[1:])).clamp(0, 1)
    height, width = images.shape[-2:]
    masked = images.clone()
    masked[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = 0.5
    return {"denoised": noisy, "inpainted": masked}


def compression_ratio(images: Tensor, code: Tensor) -> float:
    """Bytes of an image (8 bits per value) divided by bytes of its code (D,) as float32."""
    return images[0].numel() / (4 * code[0].numel())


def evaluate(model: Context) -> dict[str, Estimate]:
    """The measures of an autoencoder. Also draws originals, reconstructions and restorations."""
    _draw(model)
    measured = dict[str, Estimate]()
    if Ability.ENCODE in model.abilities:
        first = model.images(np.arange(1))
        measured["compression_ratio"] = Estimate(compression_ratio(first, made(model.task.encode(first))))
    mean_image = model.once("mean image", model.task.dataset, lambda: _mean_image(model.dataset.train))
    values: dict[str, list[np.ndarray]] = {}
    floors: dict[str, list[np.ndarray]] = {}

    def batches() -> Iterator[Tensor]:
        for index, batch in enumerate(model.batches("reconstructed images")):
            images, rebuilt = batch.images, made(model.task.reconstruct(batch.images))
            trivial = mean_image.to(images).expand_as(images)
            compared = {name: (compare, rebuilt, trivial) for name, compare in COMPARISONS.items()}
            for name, (hurt, restored) in _restored(model, images, "restoration", index).items():
                compared[f"{name}_psnr"] = (psnr, restored, hurt)
            for name, (compare, output, rule) in compared.items():
                values.setdefault(name, []).append(compare(images, output.clamp(0, 1)).cpu().numpy())
                floors.setdefault(name, []).append(compare(images, rule).cpu().numpy())
            yield rebuilt

    labels = np.asarray(model.dataset.test.labels)
    distances = model.reference_set.measures(finite(batches(), model.name), labels)
    for name, each in values.items():
        measured[name] = averages.mean(each).with_floor(averages.mean(floors[name]).value)
    return measured | {PREFIX + name: estimate for name, estimate in distances.items()}


def _mean_image(split: Split) -> Tensor:
    """The mean (C, H, W), in [0, 1]."""
    total = sum(rows["image"].astype(np.float64).sum(axis=0) for rows in split.chunks(BATCH))
    return torch.from_numpy(np.asarray(total / (255 * len(split))))


def _restored(model: Context, images: Tensor, phase: str, index: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Damaged images and the model's restorations, by the name of the restoration."""
    hurt = damaged(images, model.settings.noise_sigma, model.noise(len(images), phase, index))
    return {name: (each, made(model.task.reconstruct(each))) for name, each in hurt.items()}


def _draw(model: Context) -> None:
    labels = np.asarray(model.dataset.test.labels)
    shown = figures.one_of_each(labels)
    images = model.images(shown)
    rows = {"original": images, "reconstructed": made(model.task.reconstruct(images))}
    for restoration, (hurt, restored) in _restored(model, images, "pictures").items():
        rows |= {f"to be {restoration}": hurt, restoration: restored}
    names = [model.dataset.class_names[label] for label in labels[shown]]
    grid = torch.stack(list(rows.values()))
    figures.save_grid(grid, model.picture("reconstructions"), columns=names, rows=list(rows))


MEAN = "the mean training image scores {}"
COMPARISONS = {"mse": squared_error, "psnr": psnr, "ssim": ssim}
PREFIX = "reconstruction_"
# fmt: off
EVALUATOR = Evaluator(Ability.RECONSTRUCT, evaluate, {
    "mse": Measure("Squared error", "lower", MEAN,
        "Mean squared error of pixels in [0, 1] between test images and their reconstructions."),
    "psnr": Measure("PSNR", "higher", MEAN,
        "Peak signal-to-noise ratio of each reconstruction, then averaged over images.", "dB", headline=True),
    "ssim": Measure("SSIM", "higher", MEAN,
        "Luminance, contrast and structure of reconstructions, in small windows; 1 is equality."),
    "denoised_psnr": Measure("PSNR, denoised", "higher", "the noisy images score {}",
        "Test images with Gaussian noise, passed through the model.", "dB"),
    "inpainted_psnr": Measure("PSNR, inpainted", "higher", "the masked images score {}",
        "Test images with a grey middle square, passed through the model.", "dB"),
    "compression_ratio": Measure("Compression ratio", "", "",
        "Bytes of an image (8 bits per value) divided by those of its code (32 bits per value)."),
    **of_other_images(MEASURES, PREFIX, "of reconstructions"),
}, compares=True, pictures={
    "reconstructions": "Test images, one of each class in turn; their reconstructions; damaged images and "
        "their restorations.",
})
