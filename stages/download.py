"""The stage ``download``: get the data source named in params.yaml (``data``) and write it to data/raw."""

from pipeline import environment, process


def main() -> None:
    """Check params.yaml, download the files of the source and print a summary."""
    from pipeline.data.download import download
    from pipeline.data.settings import DataSettings
    from pipeline.params import read_section
    from pipeline.settings_check import require_valid_params

    require_valid_params()
    record = download(read_section("data", DataSettings), environment.read())
    reading = record.get("reading", {"skipped": {}, "warnings": []})
    for warning in reading["warnings"]:
        print(f"warning: {warning}")
    for reason, names in reading["skipped"].items():
        print(f"left out: {names['count']:,} {reason}, such as {names['examples'][0]}")
    total = sum(file["bytes"] for file in record["files"].values())
    print(f"{record['source']}: {record['description']}")
    size = f"{len(record['files']):,} file(s), {total / 1e6:,.1f} MB"
    print(f"data/raw: {size}, verified; licence: {record['licence']}")


if __name__ == "__main__":
    process.run(main)
