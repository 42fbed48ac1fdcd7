"""Autoencoders: errors between images and reconstructions, compression, and restoration of damaged images.

Images are (N, C, H, W) in [0, 1].
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

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
from pipeline.layers import damage, similarity

SMALLEST_ERROR = 1e-10  # so that an exact copy has 100 dB, not infinity
NUM_UNTRAINED = 1_000  # test images that are restored by a model that was not trained for it


def squared_error(images: Tensor, others: Tensor) -> Tensor:
    """Mean squared error of each image's pixels, (N,), float64."""
    return (images.double() - others.double()).square().mean(dim=(1, 2, 3))


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (N,), in dB; at most 100."""
    return -10 * squared_error(images, others).clamp(min=SMALLEST_ERROR).log10()  # 10 log10(1^2 / MSE)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each image, (N,), float64; at most 1."""
    return similarity.ssim(images.double(), others.double())


def damaged(images: Tensor, sigma: float, noise: Noise) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Damaged images, and the mask of known pixels if some are missing, by restoration.

    They have Gaussian noise; or a grey middle square, with half of the side; or half the resolution.
    """
    middle = torch.full((len(images), 2), 0.5, device=images.device)
    mask = damage.square_mask(images, middle)
    noisy = damage.add_noise(images, sigma, noise)
    hidden, small = damage.hide(images, mask), damage.shrink(images)
    return {"denoised": (noisy, None), "inpainted": (hidden, mask), "upscaled": (small, None)}


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
    """Damaged images and the model's restorations, by the name of the restoration.

    The name says if the model was not trained for it; then they are reconstructions of the damaged images,
    of the first ``NUM_UNTRAINED`` test images.
    """
    restored = {}
    trained, restore = getattr(model.task, "restorations", ()), getattr(model.task, "restore", None)
    hurt = damaged(images, model.settings.noise_sigma, model.noise(len(images), phase, index))
    for (name, (each, mask)), restoration in zip(hurt.items(), damage.RESTORATIONS, strict=True):
        if restore and restoration in trained:
            restored[name] = each, restore(each, mask)
        elif index * BATCH < NUM_UNTRAINED:
            restored[UNTRAINED + name] = each, made(model.task.reconstruct(each))
    return restored


def _draw(model: Context) -> None:
    labels = np.asarray(model.dataset.test.labels)
    shown = figures.one_of_each(labels)
    images = model.images(shown)
    rows = {"original": images, "reconstructed": made(model.task.reconstruct(images))}
    for restoration, (hurt, restored) in _restored(model, images, "pictures").items():
        name = restoration.removeprefix(UNTRAINED)
        rows |= {f"to be {name}": hurt, name if name == restoration else f"{name}, untrained": restored}
    names = [model.dataset.class_names[label] for label in labels[shown]]
    grid = torch.stack(list(rows.values()))
    figures.save_grid(grid, model.picture("reconstructions"), columns=names, rows=list(rows))


MEAN = "the mean training image scores {}"
COMPARISONS = {"mse": squared_error, "psnr": psnr, "ssim": ssim}
# fmt: off
PREFIX, UNTRAINED = "reconstruction_", "untrained_"
RESTORED = {
    "denoised_psnr": Measure("PSNR, denoised", "higher", "the noisy images score {}",
        "Test images with Gaussian noise, after the model has removed it.", "dB"),
    "inpainted_psnr": Measure("PSNR, inpainted", "higher", "the masked images score {}",
        "Test images whose middle square was missing, after the model has filled it.", "dB"),
    "upscaled_psnr": Measure("PSNR, upscaled", "higher", "the shrunk images score {}",
        "Test images of half the resolution, after the model has doubled it.", "dB"),
}
EVALUATOR = Evaluator(Ability.RECONSTRUCT, evaluate, {
    "mse": Measure("Squared error", "lower", MEAN,
        "Mean squared error of pixels in [0, 1] between test images and their reconstructions."),
    "psnr": Measure("PSNR", "higher", MEAN,
        "Peak signal-to-noise ratio of each reconstruction, then averaged over images.", "dB", headline=True),
    "ssim": Measure("SSIM", "higher", MEAN,
        "Luminance, contrast and structure of reconstructions, in small windows; 1 is equality."),
    **RESTORED,
    **{UNTRAINED + name: replace(each, title=f"{each.title} without training for it",
        explanation="Such images passed through a model that was not trained to restore them; at "
            f"most {NUM_UNTRAINED:,}.")
        for name, each in RESTORED.items()},
    "compression_ratio": Measure("Compression ratio", "", "",
        "Bytes of an image (8 bits per value) divided by those of its code (32 bits per value)."),
    **of_other_images(MEASURES, PREFIX, "of reconstructions"),
}, compares=True, pictures={
    "reconstructions": "Test images, one of each class in turn; their reconstructions; damaged images and "
        "their restorations.",
})
