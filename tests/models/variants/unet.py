"""Variants of the segmentation network."""

VARIANTS = {
    "group_normalised": {"normalisation": "group", "width": 8, "depth": 2},
    "blocks": {"num_blocks": 2, "skips": "add", "width": 8, "depth": 2},
    "dice": {"loss": "dice", "width": 8, "depth": 2},
    "focal": {"loss": "focal", "focal_gamma": 1.5, "width": 8, "depth": 1},
    "sum": {"loss": "sum", "width": 8, "depth": 3, "class_weights": "auto"},
    "augmented": {"flip": 0.5, "crop": 2, "width": 8, "depth": 2},
}
