import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.core.noise import Noise, generator
from pipeline.evaluation.evaluators.reconstruction import (
    compression_ratio,
    damaged,
    psnr,
    squared_error,
    ssim,
)

IMAGES = torch.rand(4, 3, 28, 28, generator=generator(0))


def test_psnr_is_its_closed_form_for_each_image():
    others = torch.stack([IMAGES[0] + 0.1, IMAGES[1] - 0.01])
    assert squared_error(IMAGES[:2], others).tolist() == pytest.approx([1e-2, 1e-4], rel=1e-4)
    assert psnr(IMAGES[:2], others).tolist() == pytest.approx([20, 40], abs=1e-3)
    assert psnr(IMAGES, IMAGES).tolist() == [100] * 4  # finite


@pytest.mark.parametrize("size", [1, 4, 8, 28])
def test_ssim_of_equal_images_is_one_at_any_size(size):
    images = IMAGES[..., :size, :size]
    assert ssim(images, images).tolist() == pytest.approx([1] * 4)


def test_ssim_is_symmetric_and_falls_with_noise():
    noise = torch.randn(IMAGES.shape, generator=generator(1))
    values = [ssim(IMAGES, IMAGES + sigma * noise).mean().item() for sigma in (0.02, 0.1, 0.5)]
    assert values == sorted(values, reverse=True)
    assert ssim(IMAGES, IMAGES + noise).tolist() == pytest.approx(ssim(IMAGES + noise, IMAGES).tolist())


def test_ssim_matches_an_independent_computation():
    first, second = IMAGES[0, 0].double().numpy(), IMAGES[1, 0].double().numpy()

    def local(values):
        return gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5]  # 11 pixels, the border left out

    mean1, mean2 = local(first), local(second)
    variance1, variance2 = local(first**2) - mean1**2, local(second**2) - mean2**2
    covariance = local(first * second) - mean1 * mean2
    numerator = (2 * mean1 * mean2 + 1e-4) * (2 * covariance + 9e-4)
    expected = (numerator / ((mean1**2 + mean2**2 + 1e-4) * (variance1 + variance2 + 9e-4))).mean()
    assert ssim(IMAGES[:1, :1], IMAGES[1:2, :1]).item() == pytest.approx(expected, rel=1e-9)


def test_damage_is_seeded_and_stays_within_the_range():
    hurt = damaged(IMAGES, 0.5, Noise.whole(0, 4))
    noisy, nothing = hurt["denoised"]
    assert set(hurt) == {"denoised", "inpainted", "upscaled"} and nothing is None
    assert torch.equal(noisy, damaged(IMAGES, 0.5, Noise.whole(0, 4))["denoised"][0])
    assert noisy.min() >= 0 and noisy.max() <= 1
    hidden, mask = hurt["inpainted"]
    masked = hidden != IMAGES
    assert torch.equal(mask.expand_as(IMAGES) == 0, masked) and (hidden[masked] == 0.5).all()
    small = hurt["upscaled"][0]
    means = IMAGES.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert torch.allclose(small[..., ::2, ::2], means) and torch.equal(
        small[..., 1::2, 1::2], small[..., ::2, ::2]
    )
    assert masked.float().mean().item() == pytest.approx(0.25)
    assert masked[0, 0, 14, 14] and not masked[0, 0, 0, 0]


def test_compression_counts_bytes():
    assert compression_ratio(torch.zeros(2, 1, 28, 28), torch.zeros(2, 14)) == pytest.approx(
        np.prod([28, 28]) / (14 * 4)
    )
