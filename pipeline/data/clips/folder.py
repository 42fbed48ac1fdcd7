"""A user's clips: each a folder of numbered frames, an animation, or part of an array (N, T, H, W[, C]).

The folders above the clips are their classes, and above these the splits, as for pictures.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pipeline.data.arrays import CHANNELS, Pictures
from pipeline.data.findings import Findings
from pipeline.data.folders import list_files, read_file
from pipeline.data.images import REFUSED_SUFFIXES, SINGLE, SUFFIXES, BrokenImage, flatten, frames, open_image
from pipeline.data.threads import in_order

ARRAYS = (".npy", ".npz")
ANIMATIONS = (".gif", ".apng")  # other files are animations if they have more than one frame
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
REMEDY = "make each clip a folder of numbered frames, a GIF, WebP or APNG, or save (N, T, H, W[, C]) as .npy"
SCALES = "save all of them as uint8, or all with values in [0, 1]"

BROKEN, SIZES = "contains clips that cannot be read", "contains clips whose frames differ in size"
SHORT = "contains clips with too few frames"
ReadFrames = Callable[..., Iterator[Image.Image]]  # the frames [start, stop) or all; raises ``BrokenImage``


def find_clips(path: Path, findings: Findings) -> dict[str, ReadFrames]:
    """The clips in a folder, or in an animation or array, by name. Adds what is wrong to ``findings``."""
    names, root = [path.name], path.parent
    if path.is_dir():
        listing, root = list_files(path), path
        names = listing.files
        findings.skipped |= listing.skipped
        findings.faults |= listing.faults
        findings.remedies |= listing.remedies
    clips, stills, refused = dict[str, ReadFrames](), defaultdict[str, list[str]](list), list[str]()
    arrays = dict[str, Pictures]()
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix in ARRAYS:
            clips |= _of_array(root, name, arrays, findings)
        elif suffix in SUFFIXES:
            if suffix in ANIMATIONS or _num_frames(root, name) > 1:
                clips[name] = partial(_read, root, [name])
            else:
                stills[name.rpartition("/")[0]].append(name)
        elif suffix in REFUSED_SUFFIXES or suffix in VIDEOS:
            refused.append(name)
        else:
            findings.skip(f"not clips: {suffix or 'without a suffix'}", [name])
    findings.fault("contains files in formats that are not supported", refused, REMEDY)
    if len({(array.factor, array.type) for array in arrays.values()}) > 1:
        names = [f"{key} ({array.array.dtype}, up to {array.array.max()})" for key, array in arrays.items()]
        findings.fault("contains arrays whose values would be scaled differently", names, SCALES)
    parents = {parent for name in (*clips, *stills) for parent in PurePosixPath(name).parents}
    for folder, files in stills.items():
        inside = PurePosixPath(folder) in parents
        what = "contains pictures next to clips or folders of clips"
        _add(findings, what, files * inside, REMEDY)
        clips[folder or "."] = partial(_read, root, _in_order(folder, files, findings))
    findings.fault("contains no clips", [] if clips or findings.faults else [str(path)], REMEDY)
    return dict(sorted(clips.items()))


def check(clips: Mapping[str, ReadFrames], num_frames: int, findings: Findings) -> dict[str, int]:
    """Decode all clips, and return how many frames each has.

    Which cannot be used for clips of ``num_frames`` is added to ``findings``.
    """
    examine = partial(_examine, num_frames=num_frames)
    results = in_order(examine, [*clips.values()], "clips", "checking: clips")
    lengths, found = dict[str, int](), list[tuple[str, str, str]]()
    for (fault, detail, length), name in zip(results, clips):
        lengths[name] = length
        if fault:
            found.append((name, fault, detail))
    remedies = {
        BROKEN: "replace or remove them",
        SIZES: "give all frames of a clip one size",
        SHORT: "leave these clips out, or set clips.num_frames lower",
    }
    for what, remedy in remedies.items():
        names = [f"{name} ({detail})" for name, fault, detail in found if fault == what]
        _add(findings, what, names, remedy)
    return lengths


def _examine(read: ReadFrames, num_frames: int) -> tuple[str, str, int]:
    """The fault of a clip and its details, which are empty if it has none; and its number of frames."""
    sizes = Counter[tuple[int, int]]()
    try:
        for frame in read():
            sizes[frame.size] += 1
    except (BrokenImage, OSError) as error:
        return BROKEN, str(error), 0
    length = sizes.total()
    if len(sizes) > 1:
        return SIZES, ", ".join(f"{width} x {height}" for width, height in sizes), length
    if length < num_frames:
        return SHORT, f"{length}, {num_frames} are needed", length
    return "", "", length


def _read(root: Path, names: list[str], start: int = 0, stop: int | None = None) -> Iterator[Image.Image]:
    if len(names) > 1:  # a frame each
        names, start, stop = names[start:stop], 0, None
    for name in names:
        try:
            yield from itertools.islice(frames(read_file(root, name)), start, stop)
        except ValueError as error:  # also a BrokenImage
            raise BrokenImage(f"{name} {error}") from None


def _num_frames(root: Path, name: str) -> int:
    with suppress(Exception), open_image(read_file(root, name)) as image:
        return 1 if image.format in SINGLE else getattr(image, "n_frames", 1)
    return 1  # `check` finds out what is wrong


def _in_order(folder: str, names: list[str], findings: Findings) -> list[str]:
    """The frames of a clip by number: the last digits of their names. Numbers that are missing are faults."""
    found = {name: re.findall(r"\d+", Path(name).stem) for name in names}
    unnumbered = [name for name, digits in found.items() if not digits]
    _add(findings, "contains frames without a number", unnumbered, "number them")
    numbers = {name: int(digits[-1]) for name, digits in found.items() if digits}
    counts = Counter(numbers.values())
    twice = [name for name, number in numbers.items() if counts[number] > 1]
    _add(findings, "contains several frames of one number", twice, "keep one of them")
    gaps = (range(before + 1, after) for before, after in itertools.pairwise(sorted(counts)))
    missing = list(itertools.islice(itertools.chain.from_iterable(gaps), 6))  # there may be billions
    what = f"{folder or '.'} ({', '.join(map(str, missing[:5]))}{', ...' if len(missing) > 5 else ''})"
    _add(
        findings,
        "contains clips whose frames have gaps in their numbers",
        [what] * bool(missing),
        "add the missing frames, or number them anew",
    )
    return sorted(numbers, key=numbers.__getitem__)


def _add(findings: Findings, what: str, names: list[str], remedy: str) -> None:
    """Add to a fault that other clips may have, too."""
    findings.fault(what, findings.faults.get(what, []) + names, remedy)


def _of_array(
    root: Path, name: str, arrays: dict[str, Pictures], findings: Findings
) -> dict[str, ReadFrames]:
    """The clips of an .npy or .npz file. Its arrays are added to ``arrays``."""
    try:
        loaded = np.load(root / name, mmap_mode="r", allow_pickle=False)
        found = (
            {name: loaded}
            if isinstance(loaded, np.ndarray)
            else {f"{name}[{key}]": np.asarray(loaded[key]) for key in sorted(loaded.files)}
        )
    except Exception as error:  # also BadZipFile, zlib.error, RuntimeError (encrypted), ...
        _add(findings, BROKEN, [f"{name} ({error})"], "replace or remove them")
        return {}
    clips = dict[str, ReadFrames]()
    for key, array in found.items():
        channels_fit = array.ndim == 4 or (array.ndim == 5 and array.shape[-1] in CHANNELS)
        if not (channels_fit and array.size and array.dtype.kind in "buif" and _is_finite(array)):
            what = f"{key}: {array.dtype} {array.shape}"
            _add(findings, "contains arrays that are not finite numbers (N, T, H, W[, C])", [what], REMEDY)
            continue
        if array.min() < 0:
            _add(findings, "contains arrays with negative values", [f"{key} (from {array.min()})"], SCALES)
            continue
        pictures, length = Pictures(array.reshape(-1, *array.shape[2:])), array.shape[1]
        arrays[key] = pictures
        for number in range(len(array)):
            rows = range(number * length, (number + 1) * length)
            clips[f"{key}[{number}]"] = partial(_pictures, pictures, rows)
    return clips


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or all(np.isfinite(clip).all() for clip in array)  # not all in memory


def _pictures(
    pictures: Pictures, rows: range, start: int = 0, stop: int | None = None
) -> Iterator[Image.Image]:
    for row in rows[start:stop]:
        yield flatten(Image.fromarray(pictures[row]))
