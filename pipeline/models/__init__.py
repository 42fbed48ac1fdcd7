"""The models: ``task.py`` is the contract, each further file that defines a Task is a model of that name."""
