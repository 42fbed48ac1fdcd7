"""Runs and registered models: sync, trace, verify, sign, reproduce, promote, rollback, compare."""

import dataclasses
import os
import sys
from pathlib import Path

import click

from pipeline.environment import find_project
from pipeline.environment import read as read_environment
from pipeline.errors import DarkroomError
from pipeline.tracking.lineage import redact

key_file = click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True)


def _from_root(context: click.Context, parameter: click.Parameter, thing: str) -> str:
    """An existing path below the current folder as a path from the project's root; other text unchanged."""
    root = find_project(Path())
    return os.path.relpath(thing, root) if root and Path(thing).exists() else thing


@click.command()
def sync() -> None:
    """Send to MLflow what it lacks, and follow a moved project.

    MLflow lacks runs that ended while its server was down, and runs of stages that DVC restored from its
    cache. If the project's folder was moved or renamed, the paths in MLflow's local database are corrected.
    """
    from pipeline.tracking import runs

    sent, left = runs.sync(read_environment())
    click.echo(f"{sent} runs sent" + (f", {left} are still running" if left else "; MLflow has everything"))


@click.command()
@click.argument("thing", callback=_from_root)
@click.option("--json", "form", flag_value="json", help="As JSON.")
@click.option("--mermaid", "form", flag_value="mermaid", help="As a Mermaid flowchart.")
@click.option(
    "--openlineage",
    metavar="FILE|URL",
    callback=lambda context, parameter, value: (
        value if not value or "://" in value else str(Path(value).resolve())
    ),
    help="Also write its stages and runs as OpenLineage events, or send them to a server.",
)
def trace(thing: str, form: str | None, openlineage: str | None) -> None:
    """Show what THING was made from and what was made from it.

    THING: NAME@ALIAS, NAME/VERSION, a run id, a path or a hash. Each hash is verified. OpenLineage needs the
    packages of an extra: pip install 'darkroom[outward]'.
    """
    from pipeline.tracking.trace import trace as find_lineage

    environment = read_environment()
    found = find_lineage(environment, thing)
    if openlineage:
        from pipeline.tracking import openlineage as events

        number = events.send(found, environment.root.name, openlineage)
        click.echo(f"{number} events -> {redact(openlineage)}", err=True)
    click.echo({"json": found.as_json, "mermaid": found.as_mermaid}.get(form or "", found.as_text)())
    if found.first_failure:
        sys.exit(DarkroomError.exit_code)


@click.command()
@click.option("--repair", is_flag=True, help="Run the printed commands, then check again.")
@click.option(
    "--signatures", "key", type=key_file, metavar="KEY", help="Check signatures by this public key."
)
def verify(repair: bool, key: Path | None) -> None:
    """Check every recorded file against its hash.

    These are the files that DVC and the registry know: in the project, in DVC's cache and in the local
    registry; the checkpoints and results of trainings; MLflow's database and the files of its runs; dvc.lock
    and DVC's run cache. What has no recorded hash is counted at the end. With --repair, damaged files are
    moved to .darkroom/damaged, and restored from DVC's cache or remote, git, the registry or a training that
    has a good copy. With
    --signatures the signatures of all registered versions are checked, too; each champion must have one.
    What Python compiled of a local version's code is removed, since no hash covers it; Python makes it again.
    """
    from pipeline.tracking import trace as lineage
    from pipeline.tracking.damaged import DAMAGED
    from pipeline.tracking.integrity import run_remedies
    from pipeline.tracking.trace_tree import FAILED

    environment, moved = read_environment(), set[str]()
    problems, counts = lineage.verify(environment)
    unsigned = _check_signatures(key) if key else []
    for _ in range(2 * repair):  # a damaged object is moved first, and then written or fetched again
        moved |= {each.path for each in problems if each.state in FAILED and DAMAGED in each.remedy}
        failed = [each for each in problems if each.state in FAILED]
        for line in run_remedies(environment.root, failed, environment.storage):
            click.echo(line)
        problems, counts = lineage.verify(environment)
    moved -= {problem.path for problem in problems}
    gone = sorted(path for path in moved if not (environment.root / path).exists())
    for path in gone:
        click.echo(f"{path}: not restored, moved to {DAMAGED}")
    for problem in problems:
        click.echo(str(problem))
    failed = [problem for problem in problems if problem.state in FAILED]
    checked = ", ".join(f"{number:,} {name}" for name, number in counts.items())
    results = [f"{len(failed)} damaged or lost"] * bool(failed)
    results += [f"{len(gone)} not restored, moved to {DAMAGED}"] * bool(gone)
    click.echo(f"{checked}: {', '.join(results) or 'as they were recorded'}")
    if failed or gone or unsigned:
        sys.exit(DarkroomError.exit_code)


def _check_signatures(key: Path) -> list[str]:
    """Print what is found for each registered version; the versions that fail."""
    from pipeline.tracking import connection, promotion, signatures

    client, failed = connection.reader(read_environment()), list[str]()
    if client is None:
        return failed
    for model in client.search_registered_models(max_results=1000):
        champion = promotion.champion(client, model.name)
        for version in client.search_model_versions(f"name = '{model.name}'", max_results=1000):
            name, wrong = f"{model.name}/{version.version}", signatures.check(client, version, key)
            serves = champion is not None and champion.version == version.version
            if wrong is None:
                wrong = "the champion is not signed" if serves else ""
                click.echo(f"{name}: not signed")
            elif not wrong:
                click.echo(f"{name}: signed")
            if wrong:
                failed.append(name)
                click.echo(f"{name}: FAILED: {wrong}")
    return failed


@click.command()
@click.argument("model")
@click.option("--key", type=key_file, required=True, help="The private key: PEM; P-256, P-384 or P-521.")
def sign(model: str, key: Path) -> None:
    """Sign a registered version.

    MODEL: NAME@ALIAS or NAME/VERSION. The signature covers each file of the version. It is kept with the run
    that trained it; the key is not. A version is not signed if it or its run is damaged. If the key is
    encrypted, its password is asked for. This needs the packages of an extra: pip install
    'darkroom[outward]'.
    """
    from pipeline.tracking import connection, promotion, signatures

    encrypted = b"ENCRYPTED" in key.read_bytes()
    password = click.prompt("Password of the key", hide_input=True, err=True) if encrypted else ""
    environment = read_environment()
    client, _ = connection.connect(environment)
    version = promotion.find(client, model)
    place = signatures.sign(environment, version, key, password)
    click.echo(f"{version.name}/{version.version} signed -> {place}")


@click.command()
@click.argument("model")
def reproduce(model: str) -> None:
    """Train a registered model again and compare the weights.

    MODEL: NAME@ALIAS or NAME/VERSION. It is trained in a clean worktree of its commit, with its data.
    """
    from pipeline.tracking import connection, promotion
    from pipeline.tracking import reproduce as training

    environment = read_environment()
    client, _ = connection.connect(environment)
    version = promotion.find(client, model)
    name = f"{version.name}/{version.version}"
    again = training.reproduce(environment, client, version)
    click.echo(f"registered {again.expected}\nreproduced {again.found}")
    for difference in again.machine:
        click.echo(f"the machine differs: {difference}")
    if again.expected == again.found:
        click.echo(f"{name}: the same, bit for bit")
        return
    limit = training.TOLERANCE
    size = f"the largest difference of a weight is {again.difference:.2g}, the tolerance {limit:.0e}"
    if not again.machine or again.difference > limit:
        what = f"not the same: {size} (on another machine only)"
        raise DarkroomError(what, where=name, remedy=f"darkroom trace {model}")
    click.echo(f"{name}: the same within rounding: {size}")


@click.command()
@click.argument("model")
@click.option(
    "--reason",
    default="",
    show_default=False,
    help="Why; recorded. A reason overrules the gates: the version is promoted even if a gate fails.",
)
def promote(model: str, reason: str) -> None:
    """Make a version the champion, if it passes every gate.

    MODEL: NAME (its challenger), NAME@ALIAS or NAME/VERSION. With --reason it is promoted even if a gate
    fails.
    """
    from pipeline.params import read_section
    from pipeline.retraining.champion_challenger import judge_registered
    from pipeline.retraining.gates import GateSettings
    from pipeline.tracking import connection, promotion

    environment, settings = read_environment(), read_section("gates", GateSettings)
    client, experiment = connection.connect(environment)
    version = promotion.find(client, model if {"@", "/"} & set(model) else f"{model}@challenger")
    name = f"{version.name}/{version.version}"
    champion = promotion.champion(client, version.name)
    if champion is not None and champion.version == version.version:
        click.echo(f"{name} is the champion already")
        return
    gates = judge_registered(client, experiment, version, champion, settings)
    for gate in gates:
        click.echo(f"{'ok  ' if gate.passed else 'FAIL'}  {gate.name}: {gate.finding}")
    failed = [gate.name for gate in gates if not gate.passed]
    if failed and not reason:
        remedy = "train a better one, or overrule the gates with --reason '...'"
        raise DarkroomError(f"not promoted: {', '.join(failed)}", where=name, remedy=remedy)
    recorded = [dataclasses.asdict(gate) for gate in gates]
    promotion.promote(environment, version, reason or "all gates passed", recorded)
    previous = f", before: {champion.version}" if champion else ""
    click.echo(f"champion of {version.name}: version {version.version}{previous}")


@click.command()
@click.argument("name")
@click.option("--reason", default="no reason given", help="Why; recorded.")
def rollback(name: str, reason: str) -> None:
    """Restore the previous champion of NAME."""
    from pipeline.tracking import promotion

    before, now = promotion.rollback(read_environment(), name, reason)
    click.echo(f"champion of {name}: version {now}, before: {before}")


@click.command()
@click.argument("things", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, resolve_path=True),
    default="comparison.html",
    help="The page to write.",
)
def compare(things: tuple[str, ...], out: Path) -> None:
    """Compare trainings: results, params that differ, pictures.

    THINGS: NAME@ALIAS, NAME/VERSION or run ids. The results are shown with their intervals.
    """
    from rich.console import Console

    from pipeline.evaluation.side_by_side import table, write_page
    from pipeline.tracking import connection, run_comparison

    client, _ = connection.connect(read_environment())
    compared = run_comparison.collect(client, list(things))
    Console().print(table(compared))
    write_page(compared, out)
    click.echo(f"with pictures: {out}")
