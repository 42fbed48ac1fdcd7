"""The metrics: title, direction of improvement, explanation, unit, and whether they are headlines."""

from dataclasses import dataclass, replace

PREFIXES = {"reconstruction_": " of reconstructions"}


@dataclass(frozen=True)
class Measure:
    """How a metric is shown."""

    title: str
    better: str = ""  # "higher", "lower" or empty
    floor: str = ""  # a sentence about the baseline, with {} for its value
    explanation: str = ""
    unit: str = ""
    percent: bool = False
    headline: bool = False  # shown in the report's summary and in `dvc metrics show`, which has room for few

    @property
    def suffix(self) -> str:
        """The text after the number."""
        return " %" if self.percent else f" {self.unit}" if self.unit else ""

    def show(self, value: float) -> str:
        """The number with three digits and its unit."""
        digits = f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
        if self.percent:
            digits = f"{100 * value:.1f}"
        return digits.replace("-", "−") + self.suffix


REAL = "real against real scores {}"
MEAN = "the mean training image scores {}"
# fmt: off
MEASURES = {
    "accuracy": Measure("Accuracy", "higher", "always answering the most frequent class scores {}",
        "The share of test images whose class is recognised.", percent=True, headline=True),
    "cross_entropy": Measure("Cross-entropy", "lower", "answering the class frequencies scores {}",
        "-log p(y | x) of the true class, averaged over images. Confident mistakes raise it most.", "nats"),
    "calibration_error": Measure("Calibration error", "lower", "",
        "The difference between confidence and accuracy, averaged over 15 bins of confidence. At 0, "
        "predictions with a confidence of 90 % are right nine times in ten.", percent=True),
    "fid": Measure("Fréchet distance (FID)", "lower", REAL,
        "The distance between the means and covariances of the features of generated and of real images. It "
        "is higher for fewer images: compare it with real against real under the same protocol, and only "
        "with a FID from the same feature network.", headline=True),
    "kid": Measure("Kernel distance (KID)", "lower", REAL,
        "Squared maximum mean discrepancy, cubic kernel. Its expectation does not depend on the number of "
        "images. It may be negative."),
    "precision": Measure("Precision", "higher", REAL,
        "Fidelity: the share of generated images that are close to real ones.", percent=True),
    "recall": Measure("Recall", "higher", REAL,
        "Diversity: the share of real images that are close to generated ones. It is low if a generator "
        "repeats itself.", percent=True, headline=True),
    "density": Measure("Density", "higher", REAL,
        "The number of real neighbourhoods that contain a generated image, divided by k. Like precision, but "
        "less sensitive to real outliers. It may exceed 1."),
    "coverage": Measure("Coverage", "higher", REAL,
        "The share of real images with a generated one in their neighbourhood. Like recall, but less "
        "sensitive to generated outliers.", percent=True),
    "memorisation": Measure("Nearness to training images", "", "unseen real images score {}",
        "The probability that a generated image is nearer to its nearest training image than an unseen real "
        "image is. Near 100 %: copies, or images that are all close to the average. Below 50 %: images "
        "unlike the training images.", percent=True),
    "label_agreement": Measure("Label agreement", "higher", "the classifier agrees with {} of real labels",
        "The share of generated images to which the classifier assigns the requested class.", percent=True),
    "mse": Measure("Squared error", "lower", MEAN,
        "Mean squared error of pixels in [0, 1] between test images and their reconstructions."),
    "mae": Measure("Absolute error", "lower", "",
        "Mean absolute error of pixels in [0, 1] between test images and their reconstructions."),
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
    "negative_elbo": Measure("Negative ELBO", "lower", "",
        "An upper bound of -log p(x) per image: the reconstruction loss plus the KL divergence.",
        "nats", headline=True),
    "reconstruction": Measure("Reconstruction loss", "lower", "",
        "-log p(x | z) per image, the loss of the decoder for the image's code z.", "nats"),
    "kl": Measure("KL divergence", "", "",
        "The distance between the encoder's distribution of codes and the prior of the image's class, per "
        "image: the information in the code. 0: none, the decoder ignores the code.", "nats"),
    "real_accuracy": Measure("Discriminator, real images", "", "",
        "The share of real images that the discriminator classifies as real. Near 100 %, for real and for "
        "generated images, its task is too easy; near 50 % it cannot tell them apart.", percent=True),
    "generated_accuracy": Measure("Discriminator, generated images", "", "",
        "The share of generated images that the discriminator classifies as generated.", percent=True),
}
# fmt: on
HEADLINES = tuple(name for name, entry in MEASURES.items() if entry.headline)


def base(name: str) -> str:
    """The key of ``name`` in ``MEASURES``: ``fid`` for ``reconstruction_fid``."""
    for prefix in PREFIXES:
        if name not in MEASURES and name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def measure(name: str) -> Measure:
    """The measure ``name``. One that is not in ``MEASURES``, such as a loss, gets its name as title."""
    for prefix, addition in PREFIXES.items():
        if (known := MEASURES.get(name.removeprefix(prefix))) is not None and name.startswith(prefix):
            return replace(known, title=known.title + addition, headline=False)
    return MEASURES.get(name) or Measure(name.replace("_", " ").capitalize())
