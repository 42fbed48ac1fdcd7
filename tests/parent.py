"""A parent that starts a module and waits, as DVC does with a stage."""

import subprocess
import sys

subprocess.run([sys.executable, "-m", *sys.argv[1:]], check=False)
