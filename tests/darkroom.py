"""The `darkroom` command as a module: python -m tests.darkroom."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
