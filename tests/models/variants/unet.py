"""Variants of the segmentation network."""

VARIANTS = {
    "group_normalised": {"normalisation": "group", "width": 8, "depth": 2},
    "blocks": {"num_blocks": 2, "skips": "add", "width": 8, "depth": 2},
    "patches": {"patch_size": 2, "decoder_blocks": 1, "width": 8, "max_width": 12, "depth": 2},
    "muon": {"optimizer": {"kind": "muon"}, "width": 8, "depth": 1},
    "dice": {"loss": "dice", "width": 8, "depth": 2},
    "focal": {"loss": "focal", "focal_gamma": 1.5, "width": 8, "depth": 1},
    "sum": {"loss": "sum", "width": 8, "depth": 3, "class_weights": "auto"},
    "augmented": {"flip": 0.5, "crop": 2, "width": 8, "depth": 2},
}
