"""Variants of the recurrent convolutional network."""

SMALL = {"width": 8, "num_layers": 2, "filter_size": 3}
PIXELS = {"width": 8, "output": "pixels"}
VARIANTS = {
    "gru": SMALL | {"cell": "gru", "dropout": 0.2},
    "teacher_forcing": SMALL | {"teacher_forcing_steps": 3, "loss": "bce", "patch_size": 2},
    "pixels": PIXELS | {"loss": "l1", "input_frames": 2, "num_layers": 3},
    "pixels_gru": PIXELS | {"cell": "gru", "loss": "bce", "kernel_size": 5},
    "classify": {"task": "classify", "width": 8, "dropout": 0.2},
    "classify_gru": {"task": "classify", "width": 8, "cell": "gru", "patch_size": 2},
}
