"""The stage ``compose-clips``: write the data set ``clips`` to data/processed."""

from pipeline import environment, process


def main() -> None:
    """Compose or read the clips and print their number and shape."""
    from pipeline.data.clips.compose import compose
    from pipeline.data.clips.settings import ClipSettings
    from pipeline.params import read_section
    from pipeline.settings_check import require_valid_params

    require_valid_params()
    manifest = compose(read_section("clips", ClipSettings), environment.read().root)
    for reason, names in manifest.get("reading", {}).get("skipped", {}).items():
        print(f"left out: {names['count']:,} {reason}, such as {names['examples'][0]}")
    counts = ", ".join(f"{entry['count']:,} {name}" for name, entry in manifest["splits"].items())
    frames, *frame = manifest["fields"]["clip"]["shape"]
    shape = " x ".join(map(str, frame))
    print(f"data/processed/clips: {counts} clips of {frames} frames of {shape}")


if __name__ == "__main__":
    process.run(main)
