"""Figures as PNG files: image grids, confusion matrices, curves. The same data gives the same bytes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.core.image_grid import grid, to_bytes
from pipeline.data import fonts
from pipeline.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_COLUMNS = 10
FRAME_MILLISECONDS = 150  # of an animation
PAPER, INK, GREY, RED = "#f6f2ea", "#2b2623", "#8d857c", "#b3361f"  # the colours of the report
STYLE: Any = {
    **{f"{each}.facecolor": PAPER for each in ("axes", "figure", "savefig")},
    **{f"{each}.color": GREY for each in ("xtick", "ytick")},
    **{f"{each}.labelcolor": INK for each in ("axes", "legend", "xtick", "ytick")},
    **{f"{each}.labelsize": 8 for each in ("xtick", "ytick")},
    **{f"{each}.major.size": 2 for each in ("xtick", "ytick")},
    **{f"axes.spines.{side}": False for side in ("top", "right")},
    "axes.edgecolor": GREY,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 2.5,
    "savefig.dpi": 144,
}
LINES = (RED, "#2f6f73", "#b8862b", "#5b5a8c", "#6f8f4e", "#8c5a7a")


def columns(num_classes: int) -> np.ndarray:
    """The class of each column of a sample grid with at most ten columns.

    With up to ten classes, all of them, repeated if there is room; else ten evenly spaced ones.
    """
    spaced = np.linspace(0, num_classes - 1, min(num_classes, MOST_COLUMNS)).round()
    classes = np.unique(spaced.astype(np.int64))
    return np.tile(classes, MOST_COLUMNS // len(classes))


def one_of_each(labels: np.ndarray) -> np.ndarray:
    """Indices of up to ten examples: the first of each class, then the second of each, and so on.

    Of more than ten classes, ten are chosen as in :func:`columns`.
    """
    classes = np.unique(labels)
    by_class = [np.flatnonzero(labels == classes[index]) for index in np.unique(columns(len(classes)))]
    in_turn = [indices[turn] for turn in range(MOST_COLUMNS) for indices in by_class if turn < len(indices)]
    return np.array(in_turn[:MOST_COLUMNS])


def save_grid(
    images: Tensor,
    path: Path,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    legend: Sequence[tuple[str, tuple[int, int, int]]] = (),
) -> None:
    """Draw images (R, K, C, H, W) in [0, 1] as R rows and K columns, with their names.

    Small images are enlarged by a whole factor. ``legend``: names and colours, drawn below the images.
    """
    pixels = images.clamp(0, 1).mul(255).round().byte().cpu().numpy()
    height, width = pixels.shape[-2:]
    scale = max(1, round(64 / max(height, width)))
    high, wide, gap = height * scale, width * scale, 4
    drawn, path_of_font = fonts.readable([*columns, *rows, *(name for name, _ in legend)])
    columns, rows, names = (
        drawn[: len(columns)],
        drawn[len(columns) : len(columns) + len(rows)],
        drawn[len(columns) + len(rows) :],
    )
    font = fonts.font_of(path_of_font, 14)
    left = max((int(font.getlength(name)) + 12 for name in rows), default=gap)
    top = 24 if columns else gap
    width, bottom = left + pixels.shape[1] * (wide + gap), top + pixels.shape[0] * (high + gap)
    places, below = _legend_places([font.getlength(name) for name in names], left, width)
    sheet = Image.new("RGB", (width, bottom + below), PAPER)
    draw = ImageDraw.Draw(sheet)
    for (x, y), name, (_, colour) in zip(places, names, legend):
        draw.rectangle((x, bottom + y - 6, x + 12, bottom + y + 6), fill=colour, outline=GREY)
        draw.text((x + 18, bottom + y), name, fill=INK, font=font, anchor="lm")
    for column, name in enumerate(columns):
        centre = (left + column * (wide + gap) + wide / 2, top / 2)
        draw.text(centre, _fitted(name, font, wide), fill=INK, font=font, anchor="mm")
    for row, line in enumerate(pixels):
        y = top + row * (high + gap)
        if rows:
            draw.text((left - 8, y + high / 2), rows[row], fill=INK, font=font, anchor="rm")
        for column, image in enumerate(line):
            picture = Image.fromarray(image[0] if len(image) == 1 else image[:3].transpose(1, 2, 0))
            enlarged = picture.resize((wide, high), Image.Resampling.NEAREST).convert("RGB")
            sheet.paste(enlarged, (left + column * (wide + gap), y))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _legend_places(widths: Sequence[float], left: int, right: int) -> tuple[list[tuple[float, float]], int]:
    """Where each entry of a legend begins, (x, y), in lines between two sides; and the height of all."""
    places, x, y = [], float(left), 14.0
    for width in widths:
        if x > left and x + width + 18 > right:
            x, y = left, y + 22
        places.append((x, y))
        x += width + 34
    return places, int(y + 14) if places else 0


def draw_confusion(table: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw confusion counts (classes, classes). The tone is the share of the row."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.font_manager import FontProperties

    count = len(table)
    names, font = fonts.readable(names)
    side = min(9.0, max(4.2, 0.5 * count + 1.2))
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    colours = LinearSegmentedColormap.from_list("print", [PAPER, INK])
    ticks = range(0, count, max(1, count // 25))
    short = [names[index] if len(names[index]) <= 14 else names[index][:13] + "…" for index in ticks]
    slanted: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    with _figure(path, side, side) as figure:
        axes = figure.subplots()
        axes.imshow(np.sqrt(shares), cmap=colours, vmin=0, vmax=1.1)  # the root makes rare mistakes visible
        for row, column in np.argwhere(table > 0) if count <= 20 else ():
            tone = PAPER if shares[row, column] > 0.35 else INK if row == column else RED
            axes.text(column, row, str(table[row, column]), ha="center", va="center", color=tone, fontsize=9)
        axes.set_xticks(ticks, short, **(slanted if max(map(len, short)) > 3 else {}))
        axes.set_yticks(ticks, short)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()) if font else ():
            label.set_fontproperties(FontProperties(fname=font, size=8))
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")


def draw_curves(table: "pd.DataFrame", path: Path, most: int = 6) -> None:
    """Draw the curves of a training: a chart for each quantity, which is the last part of a metric's name.

    At most ``most`` charts are drawn, those with a validation metric first. ``system/`` metrics are left out.
    """
    groups: dict[str, list[str]] = {}
    for name in table.columns.drop("step"):
        if not name.startswith("system/"):
            groups.setdefault(name.rpartition("/")[2], []).append(name)
    if not groups:
        return

    def priority(quantity: str) -> tuple[bool, bool, int, str]:
        names = groups[quantity]
        has_validation = any(name.startswith("validation/") for name in names)
        return not has_validation, quantity != "loss", -len(names), quantity

    chosen = sorted(groups, key=priority)[:most]
    wide = len(chosen) if len(chosen) <= 4 else 3
    high = -(-len(chosen) // wide)
    with _figure(path, min(11.0, 5.5 * wide), 2.5 * high) as figure:
        for place, quantity in enumerate(chosen, 1):
            axes = figure.add_subplot(high, wide, place)
            axes.set_title(quantity.replace("_", " "))
            for colour, name in zip(LINES, groups[quantity]):
                line = table[["step", name]].dropna()
                style = "-o" if name.startswith("validation") else "-"
                label = name.rpartition("/")[0] or quantity
                axes.plot(line["step"], line[name], style, label=label, color=colour)
            axes.legend()


def draw_truncation(table: "pd.DataFrame", real: Mapping[str, float], path: Path) -> None:
    """Draw precision against recall, a point for each truncation, and those of real images."""
    with _figure(path, 4.6, 3.8) as figure:
        axes = figure.subplots()
        axes.axhline(real["precision"], color=GREY, linewidth=0.8, linestyle="--")
        axes.axvline(real["recall"], color=GREY, linewidth=0.8, linestyle="--")
        axes.plot(table["recall"], table["precision"], "-o", color=RED, markersize=4)
        for row in table.itertuples():
            place: Any = (row.recall, row.precision)
            axes.annotate(f"{row.truncation}", place, (5, 4), textcoords="offset points", fontsize=8)
        axes.set(xlim=(0, 1.05), ylim=(0, 1.05), xlabel="recall (diversity)", ylabel="precision (fidelity)")


def draw_lines(tables: Mapping[str, "pd.DataFrame"], path: Path) -> None:
    """Draw a chart for each table, by title: a line for each column."""
    with _figure(path, 2.75 * len(tables), 2.5) as figure:
        for place, (title, table) in enumerate(tables.items(), 1):
            axes = figure.add_subplot(1, len(tables), place)
            axes.set_title(title)
            for colour, name in zip(LINES, table.columns):
                axes.plot(table.index, table[name], "-o", label=name, color=colour)
        axes.legend()


def save_animation(frames: Tensor, path: Path) -> None:
    """Write images (T, R, K, C, H, W) in [0, 1] as an animation of R rows and K columns: APNG or GIF."""
    pictures = [
        Image.fromarray(grid(to_bytes(each.flatten(0, 1).cpu().numpy()), each.shape[1])) for each in frames
    ]
    with atomic_write(path) as temporary:
        first, others = pictures[0], pictures[1:]
        first.save(temporary, save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """A figure of this size in inches, which is written to ``path``."""
    import matplotlib  # imported here because it takes half a second
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), atomic_write(path) as temporary:
        figure = Figure(figsize=(width, height))
        yield figure
        figure.savefig(temporary, metadata={"Software": None})


def _fitted(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, wide: int) -> str:
    while len(name) > 1 and font.getlength(name) > wide + 2:
        name = name[:-1]
    return name
