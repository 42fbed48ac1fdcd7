"""Runs and registered models: sync, trace, verify, reproduce, promote, rollback, compare, seeds."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import click

from pipeline import environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.process import DVC


def _from_root(context: click.Context, parameter: click.Parameter, thing: str) -> str:
    """A path below the current folder as a path from the project's root; anything else as it is."""
    root = environment.find_project(Path())
    return os.path.relpath(thing, root) if root and Path(thing).exists() else thing


@click.command()
def sync() -> None:
    """Send to MLflow what it missed, and follow a moved project.

    It missed runs while its server was away, and stages that DVC restored without running them. Where the project's folder
    was moved or renamed, the addresses in MLflow's local database are corrected.
    """
    from pipeline.tracking import runs

    sent, left = runs.sync(environment.read())
    click.echo(
        f"{sent} runs sent" + (f", {left} are still being made" if left else "; MLflow has everything")
    )


@click.command()
@click.argument("thing", callback=_from_root)
@click.option("--json", "form", flag_value="json", help="As JSON.")
@click.option("--mermaid", "form", flag_value="mermaid", help="As a Mermaid flowchart.")
def trace(thing: str, form: str | None) -> None:
    """Show what THING was made from and what was made from it.

    THING: NAME@ALIAS, NAME/VERSION, a run id, a path or a hash. Each hash is verified.
    """
    from pipeline.tracking import trace as tracing

    found = tracing.trace(environment.read(), thing)
    click.echo({"json": found.as_json, "mermaid": found.as_mermaid}.get(form or "", found.as_text)())
    if found.first_failure:
        sys.exit(DarkroomError.exit_code)


@click.command()
def verify() -> None:
    """Check every recorded file against its hash.

    Checked are the files that DVC and the registry know: in the project, in DVC's cache and in the local registry.
    """
    from pipeline.tracking import trace as tracing

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done:,} of {total:,} objects of DVC's cache", nl=done == total, err=True)

    problems, counts = tracing.verify(environment.read(), progress)
    for problem in problems:
        click.echo(str(problem))
    damaged = [problem for problem in problems if problem.state in ("differs", "absent")]
    looked = ", ".join(f"{number:,} {name}" for name, number in counts.items())
    click.echo(f"{looked}: {f'{len(damaged)} damaged or lost' if damaged else 'as they were recorded'}")
    if damaged:
        sys.exit(DarkroomError.exit_code)


@click.command()
@click.argument("model")
def reproduce(model: str) -> None:
    """Train a registered model again and compare the weights.

    MODEL: NAME@ALIAS or NAME/VERSION. It is trained in a clean worktree of its commit, with its data.
    """
    from pipeline.tracking import outbox, promotion
    from pipeline.tracking import reproduce as again

    where = environment.read()
    client, _ = outbox.connect(where)
    version = promotion.find(client, model)
    verdict = again.reproduce(where, client, version)
    click.echo(f"registered {verdict.expected}\nmade again {verdict.found}")
    for difference in verdict.machine:
        click.echo(f"another machine: {difference}")
    if verdict.same:
        click.echo(f"{version.name}/{version.version}: the same, bit for bit")
        return
    said = f"the largest difference of a weight is {verdict.difference:.2g}; the tolerance {again.TOLERANCE:.0e}, on another machine only"
    if not verdict.passed:
        raise DarkroomError(
            f"not the same: {said}",
            where=f"{version.name}/{version.version}",
            remedy=f"darkroom trace {model}",
        )
    click.echo(f"{version.name}/{version.version}: the same within rounding: {said}")


@click.command()
@click.argument("model")
@click.option(
    "--reason",
    default="",
    help="Why; recorded. A reason overrules the gates: the version is promoted even if a gate fails.",
)
def promote(model: str, reason: str) -> None:
    """Let a version serve as champion, if it passes every gate.

    MODEL: NAME (its challenger), NAME@ALIAS or NAME/VERSION. With --reason it serves even if a gate fails.
    """
    from pipeline.params import read_section
    from pipeline.retraining.gates import GateSettings, judge
    from pipeline.tracking import outbox, promotion, registry

    where, settings = environment.read(), read_section("gates", GateSettings)
    client, _ = outbox.connect(where)
    version = promotion.find(client, model if {"@", "/"} & set(model) else f"{model}@challenger")
    champion = promotion.champion(client, version.name)
    if champion is not None and champion.version == version.version:
        click.echo(f"{version.name}/{version.version} is the champion already")
        return
    gates = judge(registry.results(version), registry.results(champion) if champion else None, settings)
    for gate in gates:
        click.echo(f"{'ok  ' if gate.passed else 'FAIL'}  {gate.name}: {gate.finding}")
    refused = [gate.name for gate in gates if not gate.passed]
    if refused and not reason:
        remedy = "train a better one, or overrule with --reason '...'"
        raise DarkroomError(
            f"not promoted: {', '.join(refused)}", where=f"{version.name}/{version.version}", remedy=remedy
        )
    promotion.promote(
        where, version, reason or "all gates passed", [dataclasses.asdict(gate) for gate in gates]
    )
    click.echo(
        f"champion of {version.name}: version {version.version}"
        + (f", before: {champion.version}" if champion else "")
    )


@click.command()
@click.argument("name")
@click.option("--reason", default="asked for", show_default=True, help="Written down.")
def rollback(name: str, reason: str) -> None:
    """Let the champion of NAME before this one serve again."""
    from pipeline.tracking import promotion

    before, now = promotion.rollback(environment.read(), name, reason)
    click.echo(f"champion of {name}: version {now}, before: {before}")


@click.command()
@click.argument("things", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, resolve_path=True),
    default="comparison.html",
    show_default=True,
    help="The page to write.",
)
def compare(things: tuple[str, ...], out: Path) -> None:
    """Compare trainings: measures, params that differ, pictures.

    THINGS: NAME@ALIAS, NAME/VERSION or run ids. The measures are shown with their intervals.
    """
    from rich.console import Console

    from pipeline.evaluation import side_by_side
    from pipeline.tracking import comparison, outbox

    client, _ = outbox.connect(environment.read())
    compared = comparison.collect(client, list(things))
    Console().print(side_by_side.table(compared))
    side_by_side.write_page(compared, out)
    click.echo(f"with pictures: {out}")


@click.command()
@click.argument("name")
@click.argument("seeds", nargs=-1, type=click.IntRange(0, 2**31 - 1))
def seeds(name: str, seeds: tuple[int, ...]) -> None:
    """Train with several seeds; show mean and standard deviation.

    NAME: a model such as vae. Each of SEEDS that was not trained yet is trained by a DVC experiment outside the workspace.
    """
    from rich.console import Console

    from pipeline.core import model_files
    from pipeline.core.dataset import Dataset
    from pipeline.core.settings import read_training
    from pipeline.evaluation import side_by_side
    from pipeline.tracking import comparison, outbox, runs

    where = environment.read()
    client, experiment = outbox.connect(where)
    settings, config = read_training(name, model_files.find(name).Config)
    params = runs.flatten(
        {"training": settings.model_dump(mode="json"), "model": config.model_dump(mode="json")}
    )
    data = Dataset.open(Path("data/processed")).digest

    def known() -> dict[int, comparison.Compared]:
        return comparison.by_seed(client, experiment, name, params, data)

    for seed in seeds:
        if seed not in known():
            command = [*DVC, "exp", "run", "--temp", "-S", f"++{name}.training.seed={seed}"]
            if subprocess.run(
                command, cwd=where.root, check=False
            ).returncode:  # it takes as long as it takes
                raise DarkroomError(
                    "the experiment failed",
                    where=f"{name}, seed {seed}",
                    remedy="see above; the same command goes on",
                )
    found = known()
    if not found:
        raise BadInput(
            "no finished training",
            where=name,
            remedy=f"dvc repro train-{name}, or name the seeds to train with",
        )
    Console().print(side_by_side.seed_table(found))
