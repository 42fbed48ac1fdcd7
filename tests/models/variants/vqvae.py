"""Variants of the vector-quantised autoencoder."""

SMALL = {"width": 8, "code_size": 4, "num_codes": 8}
VARIANTS = {
    "one_halving": SMALL | {"halvings": 1, "num_blocks": 0},
    "three_halvings": SMALL | {"halvings": 3, "reconstruction_loss": "ssim"},
    "without_revival": SMALL | {"revive_below": 0.0, "reconstruction_loss": "huber"},
    "slow_codebook": SMALL | {"codebook_decay": 0.995, "commitment": 1.0, "reconstruction_loss": "l1"},
}
