"""Hyperparameter search: trials of a model with different settings, compared on the validation split."""
