"""Variants of the recurrent convolutional network."""

VARIANTS = {
    "gru": {"width": 8, "cell": "gru", "dropout": 0.2},
    "teacher_forcing": {"width": 8, "teacher_forcing_steps": 3, "loss": "mse", "patch_size": 2},
    "l1": {
        "width": 8,
        "loss": "l1",
        "ssim_weight": 9.0,
        "input_frames": 2,
        "num_layers": 3,
        "kernel_size": 5,
    },
    "classify": {"task": "classify", "width": 8, "dropout": 0.2},
    "classify_gru": {"task": "classify", "width": 8, "cell": "gru", "patch_size": 2},
}
