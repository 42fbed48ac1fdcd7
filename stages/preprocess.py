"""The stage ``preprocess``: prepare the images of data/raw and write them to data/processed."""

from pipeline import environment, process


def main() -> None:
    """Preprocess the images and print their number, shape, classes and duplicates."""
    from pipeline.data.preprocess import preprocess
    from pipeline.data.settings import DataSettings
    from pipeline.params import read_section
    from pipeline.settings_check import require_valid_params

    require_valid_params()
    manifest = preprocess(read_section("data", DataSettings), environment.read())
    counts = ", ".join(f"{entry['count']:,} {name}" for name, entry in manifest["splits"].items())
    shape = " x ".join(str(number) for number in manifest["fields"]["image"]["shape"])
    print(f"data/processed/images: {counts} images of {shape}, {len(manifest['class_names'])} classes")
    within, across = (sum(manifest["duplicates"][kind].values()) for kind in ("within", "across"))
    print(f"exact duplicates: {within:,} within a split, {across:,} across splits")
    if near := manifest.get("near_duplicates", {}).get("across"):
        pairs = ", ".join(f"{count:,} {splits}" for splits, count in near.items())
        print(
            f"near-duplicates across splits: {pairs}, in data/processed/images/near-duplicates.csv and .png"
        )
    if manifest.get("bit_depth", 16) < 16:
        print(f"values of {manifest['bit_depth']} bits in images of 16 bits are scaled to their range")
    print(f"broken images left out: {len(manifest['quarantined']):,}")


if __name__ == "__main__":
    process.run(main)
