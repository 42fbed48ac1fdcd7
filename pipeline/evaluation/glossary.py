"""What each measure is called, which way it improves, how it is read, and whether it is one of the headline numbers."""

from dataclasses import dataclass, replace

PREFIXES = {"reconstruction_": " of reconstructions"}


@dataclass(frozen=True)
class Measure:
    """``better`` is "higher", "lower" or empty; ``floor`` is a sentence about the baseline, with {} in place of its number.

    A ``headline`` stands in the report's summary and in ``metrics/evaluation.json``, which ``dvc metrics show`` prints as one row:
    there is room for few.
    """

    title: str
    better: str = ""
    floor: str = ""
    explanation: str = ""
    unit: str = ""
    percent: bool = False
    headline: bool = False

    @property
    def suffix(self) -> str:
        """What stands behind the number."""
        return " %" if self.percent else f" {self.unit}" if self.unit else ""

    def show(self, value: float) -> str:
        """The number as a person wants it: three digits, and its unit."""
        digits = (
            f"{100 * value:.1f}" if self.percent else f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
        )
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
        "The difference between confidence and accuracy, averaged over 15 bins of confidence. At 0, answers given with a "
        "confidence of 90 % are right nine times in ten.", percent=True),
    "fid": Measure("Fréchet distance (FID)", "lower", REAL,
        "The distance between the means and covariances of the features of generated and of real images. It is higher for "
        "fewer images: compare it with real against real under the same protocol, and only with a FID from the same "
        "feature network.", headline=True),
    "kid": Measure("Kernel distance (KID)", "lower", REAL,
        "Squared maximum mean discrepancy, cubic kernel. Its expectation does not depend on the number of images; it may be below zero."),
    "precision": Measure("Precision", "higher", REAL,
        "The share of generated images that lie among the real ones: fidelity.", percent=True),
    "recall": Measure("Recall", "higher", REAL,
        "The share of real images that lie among the generated ones: diversity. It is low where a generator repeats itself.",
        percent=True, headline=True),
    "density": Measure("Density", "higher", REAL,
        "The number of real neighbourhoods that a generated image lies in, divided by k. Like precision, but less sensitive to "
        "real outliers; it may exceed 1."),
    "coverage": Measure("Coverage", "higher", REAL,
        "The share of real images with a generated one in their neighbourhood. Like recall, but less sensitive to generated "
        "outliers.", percent=True),
    "memorisation": Measure("Nearness to training images", "", "unseen real images score {}",
        "The probability that a generated image lies nearer to its nearest training image than an unseen real image does. Near "
        "100 %: copies, or images that are all close to the average. Below 50 %: images unlike the training images.", percent=True),
    "label_agreement": Measure("Label agreement", "higher", "the classifier agrees with {} of real labels",
        "The share of images generated as a class that the pipeline's own classifier assigns to that class.", percent=True),
    "mse": Measure("Squared error", "lower", MEAN, "Mean squared error of pixels in [0, 1] between test images and their reconstructions."),
    "mae": Measure("Absolute error", "lower", "",
        "Mean absolute error of pixels in [0, 1] between test images and their reconstructions."),
    "psnr": Measure("PSNR", "higher", MEAN,
        "Peak signal-to-noise ratio of each reconstruction, then averaged over images.", "dB", headline=True),
    "ssim": Measure("SSIM", "higher", MEAN, "Luminance, contrast and structure of reconstructions, in small windows; 1 is equality."),
    "denoised_psnr": Measure("PSNR, denoised", "higher", "the noisy images score {}",
        "Test images under Gaussian noise, passed through the model.", "dB"),
    "inpainted_psnr": Measure("PSNR, inpainted", "higher", "the masked images score {}",
        "Test images with a grey middle square, passed through the model.", "dB"),
    "compression_ratio": Measure("Compression ratio", "", "", "Bytes of an image (8 bits a value) over those of its code (32 bits)."),
    "negative_elbo": Measure("Negative ELBO", "lower", "",
        "An upper bound of -log p(x), for each image: the reconstruction loss plus the KL divergence.", "nats", headline=True),
    "reconstruction": Measure("Reconstruction loss", "lower", "",
        "-log p(x | z) for each image: how improbable the decoder finds the image, given its code z.", "nats"),
    "kl": Measure("KL divergence", "", "",
        "How far the encoder's distribution of codes is from the prior of the image's class, for each image: the information "
        "that the code carries. 0: none, the decoder ignores the code.", "nats"),
    "real_accuracy": Measure("Discriminator, real images", "", "",
        "The share of real images that the discriminator takes for real. Near 100 %, here and for generated images, it wins "
        "easily; near 50 % it cannot tell the two apart.", percent=True),
    "generated_accuracy": Measure("Discriminator, generated images", "", "",
        "The share of generated images that the discriminator takes for generated.", percent=True),
}
# fmt: on
HEADLINES = tuple(name for name, entry in MEASURES.items() if entry.headline)


def base(name: str) -> str:
    """The name under which ``MEASURES`` explains the measure ``name``: ``fid`` for ``reconstruction_fid``."""
    for prefix in PREFIXES:
        if name not in MEASURES and name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def measure(name: str) -> Measure:
    """The measure called ``name``; one that only its model knows is shown by its bare name."""
    for prefix, addition in PREFIXES.items():
        if (known := MEASURES.get(name.removeprefix(prefix))) is not None and name.startswith(prefix):
            return replace(known, title=known.title + addition, headline=False)
    return MEASURES.get(name) or Measure(name.replace("_", " ").capitalize())
