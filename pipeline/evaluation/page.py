"""Self-contained HTML pages from templates."""

from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from pipeline.files import write_text


def write(path: Path, package: str, template: str, **values: Any) -> None:
    """Write the ``template`` of a package; it may include those of pipeline.evaluation, such as style.css."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader(__package__, ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(**values))
