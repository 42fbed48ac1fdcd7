"""A user's folder of clips, in each layout, and what is refused."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.core.dataset import SPLITS, Dataset
from pipeline.data.clips.compose import compose
from pipeline.data.clips.settings import ClipSettings
from pipeline.data.findings import FULL_LIST
from pipeline.errors import BadInput
from tests.data.test_preprocess import tree

LENGTH, SIDE, NUM_CLIPS = 4, 8, 10


def pixels(seed=0, length=LENGTH, side=SIDE):
    """A clip (T, H, W) of random grey squares, two by two pixels, so that GIF keeps them."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (length, side // 2, side // 2), np.uint8).repeat(2, 1).repeat(2, 2)


def write_frames(folder, clip, first=0, digits=1):
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(clip, first):
        Image.fromarray(frame).save(folder / f"frame{number:0{digits}d}.png")


def animation(clip, kind):
    stream, (first, *others) = io.BytesIO(), map(Image.fromarray, clip)
    options = {"lossless": True} if kind == "webp" else {}
    first.save(stream, kind, save_all=True, append_images=others, duration=50, **options)
    return stream.getvalue()


def frames(root):
    for number in range(NUM_CLIPS):  # 9, 10, 11: the order of numbers is not that of names
        write_frames(root / f"clip{number}", pixels(number), first=9)


def animations(suffix, kind):
    def write(root):
        root.mkdir(parents=True)
        for number in range(NUM_CLIPS):
            (root / f"{number}.{suffix}").write_bytes(animation(pixels(number), kind))

    return write


def array(make):
    def write(root):
        root.mkdir(parents=True)
        np.save(root / "clips.npy", make(np.stack([pixels(number) for number in range(NUM_CLIPS)])))

    return write


def in_npz(root):
    root.mkdir(parents=True)
    np.savez(root / "clips.npz", all=np.stack([pixels(number) for number in range(NUM_CLIPS)]))


LAYOUTS = {
    "frames": frames,
    "gif": animations("gif", "gif"),
    "webp": animations("webp", "webp"),
    "apng": animations("apng", "png"),
    "animated png": animations("png", "png"),
    "npy": array(lambda clips: clips),
    "npy with channels": array(lambda clips: clips[..., None]),
    "npy of floats": array(lambda clips: (clips / 255).astype(np.float32)),
    "npz": in_npz,
}


def made(root, name="clips", **changes):
    values = {"source": "folder", "folder": "own", "canvas": SIDE, "num_frames": LENGTH, "color": "grey"}
    target = root / "processed" / name
    compose(ClipSettings(**{**values, **changes}), root, target=target)
    return Dataset.open(target)


def clips_of(data, *names):
    splits = [getattr(data, split) for split in names or SPLITS]
    return np.concatenate([split.rows(np.arange(len(split)))["clip"] for split in splits])


def sorted_clips(clips):
    return sorted(clip.tobytes() for clip in clips)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_clips_in_three_splits(tmp_path, layout):
    LAYOUTS[layout](tmp_path / "own")
    data = made(tmp_path)
    assert all(len(getattr(data, split)) for split in SPLITS)
    expected = np.stack([pixels(number)[:, None] for number in range(NUM_CLIPS)])
    assert sorted_clips(clips_of(data)) == sorted_clips(expected)
    assert data.class_names == () and "label" not in data.spec.fields
    assert tree(made(tmp_path, "again").folder) == tree(data.folder)


def test_sub_folders_are_classes_and_splits(tmp_path):
    for split in ("train", "valid", "test"):
        for number, name in enumerate(("run", "walk")):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            (tmp_path / f"own/{split}/{name}/1.gif").write_bytes(animation(pixels(number), "gif"))
            write_frames(tmp_path / f"own/{split}/{name}/2", pixels(number + 10 * len(split)))
    data = made(tmp_path)
    assert data.class_names == ("run", "walk") and data.spec["label"].num_values == 2
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert sorted_clips(clips_of(data, "train")) == sorted_clips(
        np.stack([pixels(seed)[:, None] for seed in (0, 1, 50, 51)])
    )


def test_the_names_of_arrays_are_splits(tmp_path):
    (tmp_path / "own").mkdir()
    for number, split in enumerate(SPLITS):
        np.save(tmp_path / f"own/{split}.npy", np.stack([pixels(number), pixels(number + 5)]))
    data = made(tmp_path)
    assert sorted_clips(clips_of(data, "test")) == sorted_clips(np.stack([pixels(2), pixels(7)])[:, :, None])


def test_long_clips_are_cut_into_pieces_that_stay_in_one_split(tmp_path):
    for number in range(NUM_CLIPS):
        write_frames(tmp_path / f"own/{number}", pixels(number, 2 * LENGTH + 1), digits=2)
    data = made(tmp_path)
    assert len(clips_of(data)) == 2 * NUM_CLIPS
    first = [pixels(number, 2 * LENGTH + 1) for number in range(NUM_CLIPS)]
    for split in SPLITS:
        own = sorted_clips(clips_of(data, split))
        whole = [clip for clip in first if clip[:LENGTH].tobytes() in own]
        pieces = np.stack([clip[a : a + LENGTH, None] for clip in whole for a in (0, LENGTH)])
        assert own == sorted_clips(pieces)


def test_frames_are_made_square_and_get_the_colours_of_the_settings(tmp_path):
    for number in range(NUM_CLIPS):
        write_frames(tmp_path / f"own/{number}", np.full((LENGTH, 10, 20), 7, np.uint8))
    assert made(tmp_path, color="rgb").spec["clip"].shape == (LENGTH, 3, SIDE, SIDE)
    assert clips_of(made(tmp_path, "padded", fit="pad")).min() == 0  # bars above and below
    assert clips_of(made(tmp_path, "cropped", fit="crop")).min() == 7


def test_frames_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    for number in range(NUM_CLIPS):
        (tmp_path / f"own/{number}").mkdir(parents=True)
        for place, frame in enumerate(pixels(number)):
            Image.fromarray(np.rot90(frame)).save(tmp_path / f"own/{number}/{place}.png", exif=exif)
    expected = np.stack([pixels(number)[:, None] for number in range(NUM_CLIPS)])
    assert sorted_clips(clips_of(made(tmp_path))) == sorted_clips(expected)


def test_a_photo_with_a_second_picture_is_one_frame(tmp_path):
    for number in range(NUM_CLIPS):
        (tmp_path / f"own/{number}").mkdir(parents=True)
        for place, value in enumerate((10, 90, 170, 250)):
            photo, other = (Image.new("L", (SIDE, SIDE), grey) for grey in (value, 0))
            path = tmp_path / f"own/{number}/{place}.jpg"
            photo.save(path, "MPO", save_all=True, append_images=[other])
    clips = clips_of(made(tmp_path))
    assert len(clips) == NUM_CLIPS and clips.mean((0, 2, 3, 4)).round().tolist() == [10, 90, 170, 250]


def test_numbers_that_are_far_apart_take_no_memory(tmp_path):
    frames(tmp_path / "own")
    (tmp_path / "own/clip3/frame12.png").rename(tmp_path / "own/clip3/frame1764220549000000000.png")
    with pytest.raises(BadInput, match=r"clip3 \(12, 13, 14, 15, 16, \.\.\.\)"):
        made(tmp_path)


# Each: what is done to a folder of good clips, and what the message names.
def gap(root, clip="clip3"):
    (root / clip / "frame10.png").unlink()


def twice(root, clip="clip3"):
    Image.fromarray(pixels()[0]).save(root / clip / "frame010.png")


def unnumbered(root, clip="clip3"):
    (root / clip / "frame9.png").rename(root / clip / "first.png")


def sizes(root, clip="clip3"):
    Image.fromarray(np.zeros((SIDE, 2 * SIDE), np.uint8)).save(root / clip / "frame10.png")


def short(root, clip="clip3"):
    (root / clip / "frame12.png").unlink()


def broken(root, clip="clip3"):
    path = root / clip / "frame10.png"
    path.write_bytes(path.read_bytes()[:60])


def broken_animation(root):
    (root / "clip3.gif").write_bytes(animation(pixels(), "gif")[:200])


def not_a_picture(root, clip="clip3"):
    (root / clip / "frame10.png").write_bytes(b"text")


def broken_array(root):
    (root / "clip3.npy").write_bytes(b"\x93NUMPY\x01\x00")


def objects(root):
    np.save(root / "clip3.npy", np.array([{}, None], dtype=object))


def wrong_array(root):
    np.save(root / "clip3.npy", np.zeros((3, SIDE, SIDE), np.uint8))


def infinite(root):
    np.save(root / "clip3.npy", np.full((2, LENGTH, SIDE, SIDE), np.nan))


def single_array(root):
    np.save(root / "clip3.npy", np.zeros((2, LENGTH - 1, SIDE, SIDE), np.uint8))


def video(root):
    (root / "clip3.mp4").write_bytes(b"video")


def next_to_clips(root):
    Image.fromarray(pixels()[0]).save(root / "frame1.png")


def only_test(root):
    shutil.rmtree(root)
    root.mkdir()
    for split in ("test", "val"):
        np.save(root / f"{split}.npy", np.stack([pixels(0), pixels(1)]))


def few(root):
    for number in range(4, NUM_CLIPS):
        for path in (root / f"clip{number}").iterdir():
            path.unlink()


def empty(root):
    for path in root.glob("*/*"):
        path.unlink()


FAULTS = {
    gap: ("gaps in their numbers", "clip3 (10)"),
    twice: ("several frames of one number", "clip3/frame010.png"),
    unnumbered: ("without a number", "clip3/first.png"),
    sizes: ("differ in size", "clip3 (8 x 8, 16 x 8)"),
    short: ("too few frames", "clip3 (3, 4 are needed)"),
    broken: ("cannot be read", "clip3/frame10.png"),
    broken_animation: ("clip3.gif",),
    not_a_picture: ("cannot be read", "clip3/frame10.png"),
    broken_array: ("cannot be read", "clip3.npy"),
    objects: ("cannot be read", "clip3.npy"),
    wrong_array: ("(N, T, H, W[, C])", "clip3.npy: uint8 (3, 8, 8)"),
    infinite: ("finite", "clip3.npy: float64"),
    single_array: ("too few frames", "clip3.npy[0] (3, 4 are needed)"),
    video: ("formats that are not supported", "clip3.mp4"),
    next_to_clips: ("next to clips", "frame1.png"),
    only_test: ("no training split",),
    few: ("fewer than 5 clips",),
    empty: ("no clips",),
}


def require_refused(folder, spoil, texts):
    """The clips in ``folder``, after ``spoil``, are refused with ``texts``, and nothing is written."""
    frames(folder / "own")
    made(folder)
    before = tree(folder / "processed")
    spoil(folder / "own")
    with pytest.raises(BadInput) as raised:
        made(folder)
    for text in texts:
        assert text in str(raised.value), raised.value
    assert tree(folder / "processed") == before


@pytest.mark.parametrize("spoil", FAULTS, ids=[spoil.__name__ for spoil in FAULTS])
def test_a_wrong_folder_is_refused_by_name_and_nothing_is_written(tmp_path, spoil):
    require_refused(tmp_path, spoil, FAULTS[spoil])


def test_all_faults_are_named_at_once(tmp_path):
    frames(tmp_path / "own")
    for clip, spoil in (("clip1", gap), ("clip2", sizes), ("clip4", broken), ("clip5", unnumbered)):
        spoil(tmp_path / "own", clip)
    (tmp_path / "own/film.avi").write_bytes(b"video")
    (tmp_path / "own/broken.npy").write_bytes(b"")
    with pytest.raises(BadInput) as raised:
        made(tmp_path)
    for name in ("clip1 (10)", "clip2 (", "clip4/frame10.png", "clip5/first.png", "film.avi", "broken.npy"):
        assert name in str(raised.value), raised.value


def test_a_long_list_of_faults_is_written_to_a_file(tmp_path):
    for number in range(30):
        write_frames(tmp_path / f"own/{number}", pixels(number, 2))
    with pytest.raises(BadInput, match="all names are in"):
        made(tmp_path)
    assert len((tmp_path / FULL_LIST).read_text().splitlines()) == 31


def test_other_files_are_left_out_and_named(tmp_path):
    frames(tmp_path / "own")
    (tmp_path / "own/notes.txt").write_text("text")
    (tmp_path / "own/clip1/.hidden.png").write_bytes(b"")
    skipped = made(tmp_path).manifest["reading"]["skipped"]
    examples = [entry["examples"] for entry in skipped.values()]
    assert sorted(examples) == [["clip1/.hidden.png"], ["notes.txt"]]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        made(tmp_path)
