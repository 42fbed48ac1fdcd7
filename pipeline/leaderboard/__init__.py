"""Leaderboards: variants of a model, trained with several seeds at an equal budget, in one table."""
