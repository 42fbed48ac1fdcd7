"""Self-contained HTML pages, and other texts, from templates."""

from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

from pipeline.files import write_text


def render(package: str, template: str, **values: Any) -> str:
    """The ``template`` of a package with ``values``; it may include those of pipeline.evaluation."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader(__package__, ".")]),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write(path: Path, package: str, template: str, **values: Any) -> None:
    """Write what :func:`render` returns."""
    write_text(path, render(package, template, **values))
