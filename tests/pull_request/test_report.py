"""What a working tree changes, against a git revision."""

import re
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import BadInput
from pipeline.estimate import Estimate
from pipeline.pull_request.report import BETTER, SAME, WORSE, verdict, write
from pipeline.retraining.gates import GateSettings
from tests.pull_request.conftest import git, interval


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


@pytest.mark.parametrize(
    ("quantity", "change", "expected"),
    [
        # The noise of two intervals of half width 0.03 and 0.04 is 0.05.
        ("accuracy", 0.051, BETTER),
        ("accuracy", 0.049, SAME),
        ("accuracy", -0.049, SAME),
        ("accuracy", -0.051, WORSE),
        ("fid", 0.051, WORSE),
        ("fid", -0.051, BETTER),
        ("compression_ratio", 1.0, ""),  # has no direction
    ],
)
def test_a_verdict_needs_a_difference_beyond_the_noise_of_both_intervals(quantity, change, expected):
    ours, theirs = Estimate(**interval(0.5 + change, 0.03)), Estimate(**interval(0.5, 0.04))
    assert verdict(quantity, ours, theirs, GateSettings()) == expected


def test_a_number_without_an_interval_gets_no_verdict():
    assert verdict("accuracy", Estimate(0.9), Estimate(0.1), GateSettings()) == ""


def test_the_deviation_between_seeds_counts_as_noise():
    ours, theirs = Estimate(**interval(0.6, 0.01)), Estimate(**interval(0.5, 0.01))
    assert verdict("accuracy", ours, theirs, GateSettings()) == BETTER
    assert verdict("accuracy", ours, theirs, GateSettings(seed_deviation={"accuracy": 0.1})) == SAME


def test_better_worse_and_unchanged_models_are_told_apart(project):
    project.measures["gan"] = {"fid": interval(3.0, 0.3), "recall": interval(0.51, 0.05)}
    project.write()
    text = write(project.environment, "main")
    assert "- `gan` is **better**: Fréchet distance (FID) ↓\n" in text and "is **worse**" not in text
    assert "- `cnn`: the same numbers\n" in text
    (row,) = lines_with(text, "| `gan` |", "FID")
    assert (
        row == "| `gan` | Fréchet distance (FID) ↓ | 3.00 (2.70 – 3.30) | 4.00 (3.70 – 4.30) | **better** |"
    )
    assert not lines_with(text, "| `gan` |", "Recall")  # no difference
    (gates,) = lines_with(text, "| `gan` |", " of ")
    assert re.fullmatch(r"\| `gan` \| (\d+) of \1 \|  \|", gates)


def test_a_model_that_is_worse_fails_its_gate(project):
    project.measures["cnn"]["accuracy"] = interval(0.8, 0.02)
    project.write()
    text = write(project.environment, "main")
    assert "- `cnn` is **worse**: Accuracy ↑\n" in text
    assert lines_with(text, "| `cnn` |", "accuracy: worse by more than noise: 80.0 % against 90.0 %")


def test_what_changed_within_the_intervals_is_no_difference(project):
    project.measures["cnn"]["accuracy"] = interval(0.91, 0.02)
    project.write()
    text = write(project.environment, "main")
    assert "- `cnn`: no difference that the intervals show\n" in text and "**better**" not in text


def test_results_of_another_protocol_are_shown_and_not_compared(project):
    project.measures["cnn"]["accuracy"] = interval(0.5, 0.02)
    project.protocols["cnn"]["data_digest"] = "e" * 64
    project.write()
    text = write(project.environment, "main")
    assert "- `cnn` cannot be compared: not measured by the same protocol (other: data_digest)\n" in text
    assert "worse**" not in text and lines_with(text, "| `cnn` |", "50.0 %", "90.0 %", "not comparable")
    assert lines_with(text, "| `cnn` |", "comparable: not measured by the same protocol")


def test_models_of_one_side_are_named(project):
    project.measures["vae"], project.protocols["vae"] = (
        project.measures.pop("gan"),
        project.protocols.pop("gan"),
    )
    project.write()
    text = write(project.environment, "main")
    assert "- `vae`: only here\n" in text and "- `gan`: only there\n" in text


def test_settings_and_data_that_differ_are_listed(project):
    project.params["gan"]["model"] = {"width": 16, "adversarial_loss": "hinge"}
    project.counts, project.class_names = {"train": 1200, "test": 400}, ["cat", "horse"]
    project.write()
    text = write(project.environment, "main")
    assert "| `gan.model.width` | `8` | `16` |\n| `gan.model.adversarial_loss` | not set | `hinge` |" in text
    assert (
        "- `data/processed/images`: train 1,000 → 1,200; new classes `horse`; removed classes `dog`\n" in text
    )
    assert "num_steps" not in text and "WARNING" not in text


def test_data_whose_manifest_is_not_here_is_still_named(project):
    project.counts["train"] = 5
    project.write()
    for file in (project.root / ".dvc/cache/files/md5").glob("*/*"):
        file.unlink()
    assert "`data/processed/images`: other content; both manifests are needed" in write(
        project.environment, "main"
    )


def test_numbers_that_do_not_belong_to_the_present_settings_are_marked(project):
    project.write()
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace('"width": 8', '"width": 32'))
    warning = "> Changed after these numbers were measured: params.yaml: gan."
    assert warning in write(project.environment, "main")


def test_commits_that_are_missing_here_are_counted(project):
    git(project.root, "switch", "-q", "main")
    git(project.root, "commit", "-qm", "later", "--allow-empty")
    git(project.root, "switch", "-q", "change")
    assert "`main` has 1 commit(s) that are not here" in write(project.environment, "main")


def test_nothing_is_checked_out_or_changed(project):
    project.measures["gan"]["fid"] = interval(3.0, 0.3)
    project.write()
    before = git(project.root, "status", "--porcelain"), git(project.root, "rev-parse", "HEAD")
    times = {path: path.stat().st_mtime_ns for path in project.root.rglob("*") if ".git" not in path.parts}
    write(project.environment, "main")
    assert before == (git(project.root, "status", "--porcelain"), git(project.root, "rev-parse", "HEAD"))
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_pictures_of_both_sides_are_copied_and_linked(project, tmp_path):
    project.shade = 200
    project.measures["gan"]["fid"] = interval(3.0, 0.3)
    project.write()
    folder, address = tmp_path / "pictures", "https://pictures.example/run 7/"
    text = write(project.environment, "main", folder, address)
    shades = {path.name: Image.open(path).getpixel((0, 0)) for path in folder.iterdir()}
    assert shades == {"gan-samples.png": 200, "before-gan-samples.png": 0}
    for name in shades:
        assert f"](https://pictures.example/run%207/{name})" in text
    assert "data:" not in text.replace("data/", "")  # GitHub shows no data URIs
    assert "](pictures/gan-samples.png)" in write(project.environment, "main", folder)
    assert "](plots/pictures/gan-samples.png)" in write(project.environment, "main")


def test_text_of_settings_cannot_change_the_table_and_the_comment_stays_small(project):
    project.params["gan"]["model"] = {"width": "` | <img src=x>\n# heading @everyone"}
    project.params["gan"]["model"] |= {f"setting_{number}": "x" * 500 for number in range(300)}
    project.write()
    text = write(project.environment, "main")
    assert "| `8` | `' \\| <img src=x> # heading @everyone` |" in text
    assert len(text) < 65_536 and "\nand 261 more\n" in text


@pytest.mark.parametrize(
    ("against", "message"),
    [("nowhere", "is not a git revision"), ("--help", "is not a git revision"), ("empty", "has no metrics")],
)
def test_a_revision_that_cannot_be_used_is_refused(project, against, message):
    git(project.root, "switch", "-q", "--orphan", "empty")
    git(project.root, "commit", "-qm", "empty", "--allow-empty")
    git(project.root, "switch", "-q", "change")
    with pytest.raises(BadInput, match=message):
        write(project.environment, against)


def test_a_project_without_results_is_refused(project):
    (project.root / "metrics/details.json").unlink()
    with pytest.raises(BadInput, match="no results here"):
        write(project.environment, "main")


def test_the_report_is_github_markdown_that_renders_as_tables(project, tmp_path):
    """Each table has one header and rows of as many cells."""
    project.measures["gan"]["fid"] = interval(3.0, 0.3)
    project.params["gan"]["model"] = {"width": 16}
    project.write()
    text = write(project.environment, "main", tmp_path / "pictures")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 3 and text.startswith("<!-- darkroom report -->\n")
    for table in tables:
        rows = [re.split(r"(?<!\\)\|", row) for row in table.splitlines()]
        assert len(rows) >= 3 and len({len(row) for row in rows}) == 1
        assert set("".join(rows[1])) <= {" ", "-"}


def test_the_command_prints_markdown_and_reports_a_missing_branch(project, monkeypatch):
    from click.testing import CliRunner

    from pipeline.cli import commands

    monkeypatch.chdir(project.root / "metrics")
    printed = CliRunner().invoke(commands, ["report", "--markdown"]).output
    assert printed.startswith("<!-- darkroom report -->\n## Models here against `main` (")
    error = CliRunner().invoke(commands, ["report", "--against", "nowhere"]).exception
    assert isinstance(error, BadInput) and error.exit_code == 2
    assert Path.cwd() == project.root / "metrics"
