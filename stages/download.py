"""The stage ``download``: params.yaml ``data.source``, ``data.folder`` -> data/raw."""

from pipeline import environment, process
from pipeline.data.download import download
from pipeline.data.settings import DataSettings
from pipeline.params import read_section
from pipeline.settings_check import require_valid_params


def main() -> None:
    """Check all of params.yaml, fetch the files of the source and print what they are."""
    require_valid_params()
    record = download(read_section("data", DataSettings), environment.read())
    total = sum(file["bytes"] for file in record["files"].values())
    print(f"{record['source']}: {record['description']}")
    print(
        f"data/raw: {len(record['files']):,} file(s), {total / 1e6:,.1f} MB, verified; licence: {record['licence']}"
    )


if __name__ == "__main__":
    process.run(main)
