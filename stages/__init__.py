"""The stages of dvc.yaml. Each reads its params and the environment, and calls the library."""
