"""The models. Each file defines one Task (see ``pipeline/core/task.py``) and gives the model its name."""
