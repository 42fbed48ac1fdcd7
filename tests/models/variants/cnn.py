"""Variants of the classifier."""

SMALL = {"channels": [8, 16], "dense": [16]}
FAST = {"architecture": "fast", "channels": [8, 16]}
RESIDUAL = {"architecture": "residual", "channels": [8, 16]}
VARIANTS = {
    "group": {"normalisation": "group", "dropout": 0.2},
    "weight": {"normalisation": "weight"},
    "class_weights": {"class_weights": "auto"},
    "residual": RESIDUAL | {"depth": 1},
    "residual_group": RESIDUAL | {"normalisation": "group", "dropout": 0.2},
    "residual_weight": RESIDUAL | {"normalisation": "weight"},
    "fast": FAST | {"dropout": 0.2},
    "fast_group": FAST | {"normalisation": "group", "flip": 0.5, "test_time_flip": True},
    "fast_weight": FAST | {"normalisation": "weight", "calibrate": True},
    "mse": SMALL | {"loss": "mse", "label_smoothing": 0.1},
    "huber": SMALL | {"loss": "huber", "class_weights": "auto"},
    "focal": SMALL | {"loss": "focal", "calibrate": True},
    "mixup": SMALL | {"mixup": 0.4, "crop": 2, "label_smoothing": 0.1},
    "cutmix": SMALL | {"cutmix": 1.0, "erase": 0.5, "class_weights": "auto"},
    "private": SMALL | {"dropout": 0.2, "shift": 0.1, "rotate": 10.0, "privacy": {"epsilon": 8.0}},
    "private_residual": RESIDUAL | {"normalisation": "weight", "privacy": {"epsilon": 8.0}},
    "mixup_and_cutmix": SMALL | {"mixup": 1.0, "cutmix": 0.7, "rotate": 10.0},
}
