"""The stage ``compose-scenes``: write images with label maps to data/processed/scenes."""

from pipeline import environment, process


def main() -> None:
    """Compose the scenes and print their number, size and classes."""
    from pipeline.data.scenes import write_scenes
    from pipeline.data.scenes.settings import SceneSettings
    from pipeline.params import read_section
    from pipeline.settings_check import require_valid_params

    require_valid_params()
    manifest = write_scenes(read_section("scenes", SceneSettings), root=environment.read().root)
    counts = ", ".join(f"{entry['count']:,} {name}" for name, entry in manifest["splits"].items())
    shape = " x ".join(str(number) for number in manifest["fields"]["image"]["shape"])
    classes = len(manifest["class_names"])
    print(f"data/processed/scenes: {counts} scenes of {shape}, {classes} classes with the background")


if __name__ == "__main__":
    process.run(main)
