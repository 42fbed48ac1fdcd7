"""Time and memory of the stages that refuse bad input. Usage:

    PYTHONPATH=. python benchmarks/bad_input.py [GROUP ...]

Each case of tests/bad_input runs in a forked process. Prints a table for docs/reliability.md: by group, the
number of cases, how many ended as expected, and the largest processor time and memory beyond the start of a
stage. That start, with all its imports, is the same for every case and is measured once.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bad_input.case import Case, run, write
from tests.bad_input.groups import GROUPS

START = next(case for case in GROUPS["params"].CASES if case.name == "a misspelt key")
LIMIT_SECONDS, LIMIT_MB = 2.0, 256.0
MB = 1e6 / 1024  # in the unit of ru_maxrss on Linux


def start_of_a_stage() -> tuple[float, float]:
    """Processor seconds and peak memory in MB of a stage that refuses the first setting that it reads."""
    with tempfile.TemporaryDirectory() as name:
        START.build(Path(name))
        here = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "stages.download"]
        process = subprocess.Popen(command, cwd=name, env=here, stderr=subprocess.DEVNULL)
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
        return used.ru_utime + used.ru_stime, used.ru_maxrss / MB


def measure(case: Case) -> tuple[bool, float, float]:
    """Whether the last stage of ``case`` ended as expected, its processor seconds and the MB added."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        case.build(folder)
        *before, last = case.stages
        for stage in before:
            run(folder, stage, **case.variables)
        read, write_end = os.pipe()
        if not (child := os.fork()):
            before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB
            code, error = run(folder, last, **case.variables)
            well = code == (2 if case.words else 0) and all(part in error for part in case.words.split("|"))
            added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB - before_mb
            os.write(write_end, str(added).encode())
            os._exit(not well)
        _, status, used = os.wait4(child, 0)
        os.close(write_end)
        with open(read, "rb") as pipe:
            added = float(pipe.read() or -1)
        return status == 0, used.ru_utime + used.ru_stime, added


def main() -> None:
    """Measure the groups that are named, or all."""
    seconds, mb = min(start_of_a_stage() for _ in range(3))
    print(f"start of a stage: {seconds:.1f} s of a processor, {mb:.0f} MB\n")
    measure(START)  # imports
    with tempfile.TemporaryDirectory() as name:
        START.build(Path(name))
        run(Path(name), "train cnn")
    print("| group | cases | as expected | most seconds | most MB |\n| --- | --- | --- | --- | --- |")
    beyond = []
    for group in sys.argv[1:] or GROUPS:
        rows = {case.name: measure(case) for case in GROUPS[group].CASES}
        for name, (well, seconds, mb) in rows.items():
            if not well or seconds > LIMIT_SECONDS or mb > LIMIT_MB:
                outcome = "as expected" if well else "not as expected"
                beyond.append(f"{group}, {name}: {outcome}, {seconds:.1f} s, {mb:.0f} MB")
        wells, times, sizes = zip(*rows.values())
        print(f"| {group} | {len(rows)} | {sum(wells)} | {max(times):.2f} | {max(sizes):.0f} |", flush=True)
    print("\n" + ("\n".join(beyond) or f"none beyond {LIMIT_SECONDS:g} s and {LIMIT_MB:g} MB"))


if __name__ == "__main__":
    main()
