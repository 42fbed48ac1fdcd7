"""Runs and registered models: sync, trace, verify, reproduce, promote, rollback, compare, seeds."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import click

from pipeline import environment
from pipeline.errors import BadInput, DarkroomError


@click.command()
def sync() -> None:
    """Send to MLflow what it missed: runs while its server was away, and stages that DVC restored without running them."""
    from pipeline.tracking import runs

    sent, left = runs.sync(environment.read())
    click.echo(f"{sent} runs sent" + (f", {left} are still being made" if left else "; MLflow has everything"))


@click.command()
@click.argument("thing")
@click.option("--json", "form", flag_value="json", help="As JSON.")
@click.option("--mermaid", "form", flag_value="mermaid", help="As a Mermaid flowchart.")
def trace(thing: str, form: str | None) -> None:
    """What THING was made from and what was made from it, each hash verified. THING: NAME@ALIAS, NAME/VERSION, a run id, a path, a hash."""
    from pipeline.tracking import trace as tracing

    found = tracing.trace(environment.read(), thing)
    click.echo({"json": found.as_json, "mermaid": found.as_mermaid}.get(form or "", found.as_text)())
    if found.first_failure:
        sys.exit(DarkroomError.exit_code)


@click.command()
def verify() -> None:
    """Check every file that DVC and the registry know, in the project and in DVC's cache, against its hash."""
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
    """Train MODEL (NAME@ALIAS or NAME/VERSION) again, in a clean worktree of its commit with its data, and compare the weights."""
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
        raise DarkroomError(f"not the same: {said}", where=f"{version.name}/{version.version}", remedy=f"darkroom trace {model}")
    click.echo(f"{version.name}/{version.version}: the same within rounding: {said}")


@click.command()
@click.argument("model")
@click.option("--reason", default="", help="Promote although a gate is not passed; written down.")
def promote(model: str, reason: str) -> None:
    """Let a version of MODEL serve as champion. MODEL: NAME (its challenger), NAME@ALIAS or NAME/VERSION. Every gate must be passed."""
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
        raise DarkroomError(f"not promoted: {', '.join(refused)}", where=f"{version.name}/{version.version}", remedy=remedy)
    promotion.promote(where, version, reason or "all gates passed", [dataclasses.asdict(gate) for gate in gates])
    click.echo(f"champion of {version.name}: version {version.version}" + (f", before: {champion.version}" if champion else ""))


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
    "--out", type=click.Path(path_type=Path, dir_okay=False), default="comparison.html", show_default=True, help="The page to write."
)
def compare(things: tuple[str, ...], out: Path) -> None:
    """Lay trainings side by side: measures with intervals, params that differ, pictures. THINGS: NAME@ALIAS, NAME/VERSION or run ids."""
    from rich.console import Console

    from pipeline.evaluation import compare as side_by_side
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
    """Train and measure model NAME with each of SEEDS (DVC experiments, aside), then show mean and standard deviation over its seeds."""
    from rich.console import Console

    from pipeline.core import model_files
    from pipeline.core.dataset import Dataset
    from pipeline.core.settings import read_training
    from pipeline.evaluation import compare as side_by_side
    from pipeline.tracking import comparison, outbox, runs

    where = environment.read()
    client, experiment = outbox.connect(where)
    settings, config = read_training(name, model_files.find(name).Config)
    params = runs.flatten({"training": settings.model_dump(mode="json"), "model": config.model_dump(mode="json")})
    data = Dataset.open(Path("data/processed")).digest

    def known() -> dict[int, comparison.Compared]:
        return comparison.by_seed(client, experiment, name, params, data)

    for seed in seeds:
        if seed not in known():
            command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "-S", f"{name}.training.seed={seed}"]
            if subprocess.run(command, cwd=where.root, check=False).returncode:  # it takes as long as it takes
                raise DarkroomError("the experiment failed", where=f"{name}, seed {seed}", remedy="see above; the same command goes on")
    found = known()
    if not found:
        raise BadInput("no finished training", where=name, remedy=f"dvc repro train-{name}, or name the seeds to train with")
    Console().print(side_by_side.seed_table(found))
