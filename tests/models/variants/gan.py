"""Variants of the generative adversarial network."""

VARIANTS = {
    "hinge": {"adversarial_loss": "hinge"},
    "without_spectral_normalisation": {"spectral_normalisation": False},
}
