"""Kill `darkroom repro` again and again: ``python -m tests.chaos --kills 301 --seed 1``.

``--stage search`` kills `darkroom search` instead, ``--stage retrain`` `darkroom retrain`.

``--plain`` does the same to `dvc repro`; ``--case train-cnn:17`` repeats one case of a seed;
``--flips 200`` flips bits of the finished project, each of which `darkroom verify` has to name;
``--sequences 50`` runs random sequences of actions, see ``states.py``.
"""

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

FOREIGN = ("DARKROOM_", "MLFLOW_", "DVC_", "RAY_", "GIT_")


@click.command()
@click.option("--kills", default=21, help="Kills over all stages, at least.")
@click.option("--seed", default=1)
@click.option("--stage", "stages", multiple=True, help="Only this one, or search or retrain; repeatable.")
@click.option("--case", "only", default="", help="Only this case: STAGE:NUMBER.")
@click.option("--flips", "num_flips", default=0, help="First, flip so many bits of the finished project.")
@click.option("--sequences", default=0, help="First, run so many random sequences of actions.")
@click.option("--actions", default=10, help="In a sequence, at most.")
@click.option("--minutes", default=600.0, help="Start no case and no ten sequences after this time.")
@click.option("--plain", is_flag=True, help="Kill `dvc repro` instead.")
def main(
    kills: int,
    seed: int,
    stages: tuple[str, ...],
    only: str,
    num_flips: int,
    sequences: int,
    actions: int,
    minutes: float,
    plain: bool,
) -> None:
    """Kill each stage at random moments, check that nothing is lost, and print a table."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", DARKROOM_THREADS="1", SHELL="/bin/sh")
    from pipeline import environment

    environment.prepare()
    from tests.chaos import commands, forks
    from tests.chaos.flips import flips
    from tests.chaos.series import Series
    from tests.chaos.small_project import STAGES

    chosen = stages or ((only.partition(":")[0],) if only else STAGES)
    stages = tuple(name for name in (*commands.OTHERS, *STAGES) if name in chosen)
    if plain and {*stages} & {*commands.OTHERS}:
        raise click.UsageError("dvc has no search and no retraining")
    forks.prepare(*(name for stage in stages for name in commands.find(stage).imports))
    forks.adopt_orphans()
    deadline = time.monotonic() + 60 * minutes
    if sequences:
        print_sequences(sequences, actions, seed, deadline)
    if not (kills or num_flips):
        return
    folder = Path(tempfile.mkdtemp(prefix="chaos-")).resolve()
    series = Series(folder, seed, plain)
    series.measure(stages)
    if num_flips:  # in a process of its own, since it opens MLflow's database, which each case replaces
        child = multiprocessing.get_context("fork").Process(
            target=lambda: print_flips(list(flips(series.project, num_flips, seed)))
        )
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(1)
    cases, number = [], 0
    while sum(case.kills for case in cases) < kills and time.monotonic() < deadline:
        for stage in stages:
            case = series.case(stage, int(only.partition(":")[2]) if only else number)
            cases.append(case)
            state = "; ".join([*case.faults, *(f"stuck: {line}" for line in case.stuck)]) or "ok"
            print(f"{stage}:{case.number} {case.moment}, {case.kills} kills: {state}", flush=True)
        number += 1
        if only:
            break
    if not cases:
        return
    print(f"\n{'dvc' if plain else 'darkroom'}, seed {seed}\n")
    print("| stage | kills by time | at a change | DVC's files damaged | stuck | most steps again | faults |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for stage in (*stages, "all"):
        own = [case for case in cases if stage in (case.stage, "all")]
        kinds = Counter()
        for case in own:
            kinds[case.kind] += case.kills
        numbers = [kinds["clock"], kinds["point"], sum(bool(case.damaged) for case in own)]
        numbers += [sum(bool(case.stuck) for case in own), max(case.redone for case in own)]
        numbers.append(sum(bool(case.faults) for case in own))
        print(f"| {stage} | {' | '.join(map(str, numbers))} |")
    points = {case.moment for case in cases if case.kind == "point"}
    print(f"\n{len(points)} of {sum(len(each.points) for each in series.measured.values())} kinds of changes")
    print(f"{_processor_seconds():.0f} s of processor time")
    failed = [case for case in cases if case.faults or (case.stuck and not plain)]
    for case in failed:
        again = " --plain" * plain
        print(f"again: python -m tests.chaos --seed {seed} --case {case.stage}:{case.number}{again}")
    if failed:
        print(f"the project of the last case is kept in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


def _processor_seconds() -> float:
    usage = [resource.getrusage(each) for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def print_sequences(number: int, actions: int, seed: int, deadline: float) -> None:
    """Run random sequences of actions, and print a table of the actions."""
    from tests.chaos import states

    number, done = states.run(number, actions, seed, deadline)
    print("| action | number |\n| --- | --- |")
    for action, count in [*sorted(done.items()), ("all", done.total())]:
        print(f"| {action} | {count} |")
    print(f"{number} sequences, {_processor_seconds():.0f} s of processor time", flush=True)


def print_flips(found: list[tuple[str, Path, int, bool]]) -> None:
    """Print a table of the bits by kind of file; exit with 1 if one was not named."""
    print("| file | flipped | named |\n| --- | --- | --- |")
    for kind in [*dict.fromkeys(each[0] for each in found), "all"]:
        own = [named for each, *_, named in found if kind in (each, "all")]
        print(f"| {kind} | {len(own)} | {sum(own)} |")
    unseen = [each for each in found if not each[3]]
    for _, file, bit, _ in unseen:
        print(f"not named: bit {bit} of {file}")
    if unseen:
        sys.exit(1)


if __name__ == "__main__":
    main()
