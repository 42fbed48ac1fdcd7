"""Variants of the generative adversarial network: every architecture, loss, penalty and augmentation."""

TINY = {"latent_size": 8, "width": 8}
FREE = {**TINY, "spectral_normalisation": False}
# Adam makes a whole step of the rounding of a gradient that is zero.
SGD = {"kind": "sgd", "learning_rate": 0.01}
PLAIN = {"generator_optimizer": SGD, "discriminator_optimizer": SGD}
WASSERSTEIN = {**FREE, **PLAIN, "adversarial_loss": "wasserstein"}
STYLE = {**FREE, "architecture": "style", "r1": 1.0, "penalty_every": 2}
AUGMENTED = {**TINY, "flip": 0.5, "shift": 0.1, "color": 0.3, "cutout": 0.4}

VARIANTS = {
    "lazy_gradient_penalty": {**WASSERSTEIN, "gradient_penalty": 10.0, "penalty_every": 2},
    "hinge": {"adversarial_loss": "hinge"},
    "without_spectral_normalisation": {"spectral_normalisation": False},
    "mlp_minimax": {**FREE, "architecture": "mlp", "adversarial_loss": "minimax"},
    "mlp_historical_averaging": {**TINY, "architecture": "mlp", "historical_averaging": 0.1},
    "dcgan_least_squares": {**TINY, "architecture": "dcgan", "adversarial_loss": "least_squares"},
    "dcgan_weight_clipping": {**WASSERSTEIN, "architecture": "dcgan", "weight_clipping": 0.05},
    "dcgan_unconditional": {**FREE, "architecture": "dcgan", "conditional": False, "truncation": 0.7},
    "residual_hinge": {**TINY, **PLAIN, "architecture": "residual", "adversarial_loss": "hinge"},
    "residual_gradient_penalty": {**WASSERSTEIN, "architecture": "residual", "gradient_penalty": 10.0},
    "style": {**STYLE, "style_mixing": 0.9, "path_length": 2.0, "path_length_every": 2},
    "style_unconditional": {**STYLE, "conditional": False, "truncation": 0.7},
    "r3": {**FREE, **PLAIN, "architecture": "r3", "adversarial_loss": "relativistic", "r1": 1.0, "r2": 1.0},
    "augmented": AUGMENTED,
    "adaptive": {**AUGMENTED, **PLAIN, "adaptive_target": 0.6, "adaptive_step": 0.01, "adaptive_every": 2},
}
