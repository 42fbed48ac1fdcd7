"""Variants of the autoencoder."""

VARIANTS = {"dense": {"architecture": "dense"}, "huber": {"reconstruction_loss": "huber"}}
