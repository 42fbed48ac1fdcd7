"""Variants of the classifier."""

VARIANTS = {"group": {"normalisation": "group", "dropout": 0.2}, "class_weights": {"class_weights": "auto"}}
