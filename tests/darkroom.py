"""The `darkroom` command as a module, for tests that start it in a process of its own: python -m
tests.darkroom."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
