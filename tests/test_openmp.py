"""Threads on a busy machine. How much faster they are is measured by benchmarks/busy.py."""

import subprocess
import sys

import pytest

from tests.project import ROOT

COUNT = """
import os, time
import torch
from pipeline import limits, openmp

torch.set_num_threads(3)
torch.zeros(openmp.TEAM_VALUES).sin()  # the first team
openmp.POLL_SECONDS = 0.02
limits.is_busy = lambda num_threads: busy[0] and num_threads == 3
count = lambda: len(os.listdir("/proc/self/task"))

def wait_for(expected):
    end = time.monotonic() + 30
    while count() != expected and time.monotonic() < end:
        time.sleep(0.02)
    return count() == expected

before, busy = count(), [False]
with openmp.short_waits_if_busy():
    print(wait_for(before + 1), end=" ")  # the watch
    busy[0] = True
    print(wait_for(before + 4), end=" ")  # and a team of three
    busy[0] = False
    print(wait_for(before + 1), end=" ")
    busy[0] = True
    print(wait_for(before + 4), end=" ")
print(wait_for(before))
"""


def run(code, **variables):
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there is the load known")
def test_a_second_team_of_threads_is_there_while_the_machine_is_busy():
    assert run(COUNT, OMP_NUM_THREADS="3") == ["True"] * 5


VARIABLES = [
    "GOMP_SPINCOUNT",
    *(pytest.param(name, marks=pytest.mark.nightly) for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")),
]


@pytest.mark.parametrize("variable", VARIABLES)
def test_nothing_is_watched_where_the_user_decides_or_there_is_one_thread(variable):
    code = "import threading, torch\nfrom pipeline import openmp\n"
    code += "with openmp.short_waits_if_busy():\n    print(threading.active_count())"
    values = {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    assert run(code, **{variable: values[variable]}) == ["1"]


def test_the_end_of_the_block_waits_for_no_poll():
    code = "from pipeline import openmp\nopenmp.POLL_SECONDS = 3600\n"
    code += "with openmp.short_waits_if_busy():\n    print('in')\nprint('out')"
    assert run(code, OMP_NUM_THREADS="2") == ["in", "out"]
