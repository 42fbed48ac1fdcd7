"""The stage ``preprocess``: data/raw and params.yaml ``data`` -> data/processed."""

from pipeline import environment, process
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings
from pipeline.params import read_section
from pipeline.settings_check import require_valid_params


def main() -> None:
    """Prepare the images and print their number, shape, classes and duplicates."""
    require_valid_params()
    manifest = preprocess(read_section("data", DataSettings), environment.read())
    counts = ", ".join(f"{entry['count']:,} {name}" for name, entry in manifest["splits"].items())
    size, duplicates = manifest["size"], manifest["duplicates"]
    print(
        f"data/processed: {counts} images of {manifest['channels']} x {size} x {size}, {len(manifest['class_names'])} classes"
    )
    repeated, shared = sum(duplicates["within"].values()), sum(duplicates["across"].values())
    print(
        f"exact duplicates: {repeated:,} within a split, {shared:,} across splits; left out as broken: {len(manifest['quarantined']):,}"
    )


if __name__ == "__main__":
    process.run(main)
