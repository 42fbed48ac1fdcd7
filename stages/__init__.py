"""The stages of dvc.yaml: each reads its params and the environment, and calls the library."""
