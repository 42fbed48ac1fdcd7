"""Measure the wall time and peak memory of a command and its children: python benchmarks/peak.py make repro

Memory is the proportional set size, in which shared pages count once, summed over the processes twice a
second.
"""

import subprocess
import sys
import time

import psutil


def memory(process: psutil.Process) -> int:
    """The memory of ``process`` and its descendants, in bytes."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def main() -> None:
    """Run the command, then print its time and memory."""
    began, peak = time.monotonic(), 0
    command = subprocess.Popen(sys.argv[1:])
    process = psutil.Process(command.pid)
    while command.poll() is None:
        try:
            peak = max(peak, memory(process))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    print(f"exit code {command.wait()}, {time.monotonic() - began:.1f} s, {peak / 1e9:.2f} GB at the peak")
    sys.exit(command.returncode)


if __name__ == "__main__":
    main()
