"""The report of an inspection as text."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

MAX_CLASSES = 40
MAX_GROUPS = 10
SHOWN = 5  # examples
KINDS = {
    "dark": "much darker than the others",
    "bright": "much brighter than the others",
    "blurred": "with much weaker edges than the others (blurred or empty)",
    "small": "much smaller than the others",
    "large": "much larger than the others",
}


def text(report: Mapping[str, Any]) -> str:
    """The whole report; the verdict is at its end, where a terminal shows it."""
    return "\n\n".join(part for part in _parts(report) if part) + "\n"


def verdict(report: Mapping[str, Any]) -> str:
    """Whether it can be trained on."""
    if report["trainable"]:
        return "It can be trained on."
    count = len(report["faults"])
    return f"It cannot be trained on yet: {count} {_plural('fault', count)}."


def some(listed: Mapping[str, Any], shown: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    names, more = listed["examples"][:shown], listed["count"] - min(shown, len(listed["examples"]))
    return ", ".join([*names, *([f"and {more:,} more"] if more else [])])


def facts(report: Mapping[str, Any]) -> list[str]:
    """Sentences about pictures, splits, formats and sizes."""
    drawn = ", as they would be drawn" if report["drawn_splits"] else ""
    count, classes = report["pictures"], len(report["classes"])
    lines = [f"{count:,} {_plural('picture', count)} in {classes:,} {_plural('class', classes)}"]
    if report["splits"]:
        lines.append(f"splits{drawn}: {_numbers(report['splits'])}")
    lines += [f"{what}: {_numbers(report[what])}" for what in ("formats", "modes") if report[what]]
    if sizes := report["sizes"]:
        least, middle, most = ("{} x {}".format(*sizes[name]) for name in ("smallest", "median", "largest"))
        lines.append(f"sizes: {least} to {most}, median {middle}; {sizes['not_square']:.0%} are not square")
    if report["imbalance"]["ratio"] > 1:
        imbalance = report["imbalance"]
        lines.append(
            f"largest class: {imbalance['largest']}, with {imbalance['ratio']:g} times the pictures of the "
            f"smallest, {imbalance['smallest']}"
        )
    return lines


def _parts(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"{report['path']}\n" + "\n".join(f"  {line}" for line in facts(report))
    yield _classes(report["classes"])
    if skipped := report["skipped"]:
        yield "Skipped\n" + "\n".join(
            f"  {why}: {each['count']:,} ({some(each)})" for why, each in skipped.items()
        )
    if report["warnings"]:
        yield "Warnings\n" + "\n".join(f"  {warning}" for warning in report["warnings"])
    yield _near_duplicates(report["near_duplicates"])
    for kind, rows in report["outliers"].items():
        names = {"count": len(rows), "examples": [row["path"] for row in rows]}
        yield f"Pictures {KINDS[kind]}\n  {some(names)}"
    suspected = report["suspected_labels"]
    if suspected["pictures"]:
        lines = [
            f"  {row['path']}: {row['class']} ({row['probability']:.1%}), looks like {row['predicted']}"
            for row in suspected["pictures"]
        ]
        yield f"Suspected labels, {suspected['note']}\n" + "\n".join(lines)
    if report["params"]:
        yield "For params.yaml\n" + "\n".join(f"  {line}" for line in report["params"].splitlines())
    for fault in report["faults"]:
        concerned = f": {some(fault)}" if fault["count"] else ""
        yield f"FAULT  {fault['what']}{concerned}\n       -> {fault['remedy']}"
    yield verdict(report)


def _classes(classes: list[dict[str, Any]]) -> str:
    if not classes:
        return ""
    table = Table(*classes[0], box=None, header_style="")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in classes[:MAX_CLASSES]:
        table.add_row(*(str(value) for value in row.values()))
    console = Console(file=io.StringIO(), width=110, color_system=None, markup=False, highlight=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    left_out = len(classes) - MAX_CLASSES
    more = f"\n  and {left_out:,} more classes" if left_out > 0 else ""
    return "\n".join(f" {line}".rstrip() for line in console.file.getvalue().rstrip().splitlines()) + more


def _near_duplicates(found: Mapping[str, Any]) -> str:
    if not found["count"]:
        return ""
    lines = []
    for group in found["groups"][:MAX_GROUPS]:
        places = [f"in the classes {', '.join(group['classes'])}"] if len(group["classes"]) > 1 else []
        places += [f"in the splits {', '.join(group['splits'])}"] if len(group["splits"]) > 1 else []
        names = {"count": len(group["pictures"]), "examples": group["pictures"]}
        lines.append(f"  {some(names)}{' - ' if places else ''}{', '.join(places)}")
    head = (
        f"Near-duplicates: {found['count']:,} groups, {found['across_classes']:,} in several classes, "
        f"{found['across_splits']:,} in several splits"
    )
    return "\n".join([head, *lines])


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + ("es" if word.endswith("s") else "s")


def _numbers(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
