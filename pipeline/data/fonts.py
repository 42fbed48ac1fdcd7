"""Draw the names of classes in any script: with a font that has their letters, or by other names."""

import functools
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from PIL import ImageFont

PLAIN = frozenset(map(chr, range(0x20, 0x7F)))  # Pillow's own font has little else
REMEDY = "install a font that has them, such as the package fonts-noto-cjk, fonts-noto-core or fonts-symbola"


def readable(names: Iterable[str], quiet: bool = False) -> tuple[list[str], str]:
    """The names as they can be drawn, and the file of a font that has their letters ('': any has them).

    Of the installed fonts the one with most names is chosen. A name that it lacks becomes ASCII, or the codes
    of its letters; unless ``quiet``, standard error says so.
    """
    names = list(names)
    odd = [frozenset(name) - PLAIN for name in names]
    if not any(odd):
        return names, ""
    best, most = "", sum(not each for each in odd)
    for path in _installed():
        letters = _letters(path)
        if (count := sum(each <= letters for each in odd)) > most and _opens(path):
            best, most = path, count
        if most == len(odd):
            break
    letters = _letters(best) if best else frozenset[str]()
    drawn = [name if each <= letters else _in_ascii(name) for name, each in zip(names, odd)]
    replaced = [f"{name} as {new}" for name, new in zip(names, drawn) if name != new]
    if replaced and not quiet:
        some = ", ".join(replaced[:3]) + ", ..." * (len(replaced) > 3)
        print(
            f"no font has the letters of {len(replaced):,} class names, drawn {some}; {REMEDY}",
            file=sys.stderr,
        )
    return drawn, best


def font_of(path: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font in the file ``path``, or Pillow's own for ''."""
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def _in_ascii(name: str) -> str:
    """The name without accents, with the codes of letters that ASCII lacks."""
    plain = unicodedata.normalize("NFKD", name)
    kept = (letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else f"U+{ord(letter):04X}" for letter in kept)


def _installed() -> list[str]:
    """The files of the installed regular fonts, and of those that come with matplotlib; its own first."""
    from matplotlib import font_manager

    fonts = [
        one.fname
        for one in font_manager.fontManager.ttflist
        if one.style == "normal" and str(one.weight) in ("400", "normal", "regular")
    ]
    named = lambda path, word: word in Path(path).name
    usable = [path for path in fonts if not named(path, "LastResort")]  # it has only boxes
    return sorted(
        set(usable), key=lambda path: (not named(path, "DejaVuSans."), not named(path, "Sans"), path)
    )


@functools.cache
def _letters(path: str) -> frozenset[str]:
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            return frozenset(map(chr, font.getBestCmap() or {}))
    except (OSError, TTLibError, KeyError, AssertionError):
        return frozenset()


def _opens(path: str) -> bool:
    """Whether Pillow can draw with the font; it cannot with some colour fonts."""
    try:
        ImageFont.truetype(path, 14)
    except OSError:
        return False
    return Path(path).is_file()
