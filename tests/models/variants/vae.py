"""Variants of the variational autoencoder."""

VARIANTS = {"gaussian": {"likelihood": "gaussian"}}
