"""What DVC's commands and the report show of the results of four models."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.loop import Loop
from pipeline.core.settings import read_training
from pipeline.evaluation import glossary
from pipeline.files import read_json, write_json
from tests.project import PARAMS, ROOT
from tests.repository import commit, shell

MODELS = ("ae", "cnn", "gan", "vae")
WIDTH = 160  # columns of a wide terminal
pytestmark = pytest.mark.slow
TRAINING = {
    "num_steps": 12,
    "batch_size": 32,
    "log_every": 2,
    "validate_every": 5,
    "sample_every": 6,
    "checkpoint_every": 12,
}


@dataclass
class Evaluated:
    folder: Path
    output: str  # of the stage
    results: dict  # metrics/details.json
    report: str  # reports/index.html
    plots: dict  # of dvc.yaml, by title


@pytest.fixture(scope="module")
def project(tmp_path_factory, processed_digits):
    """Four briefly trained models in a git and DVC repository, after the stage ``evaluate``.

    The manifest declares that the digits come from a folder of the user.
    """
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(processed_digits, folder / "data/processed/images")
    shutil.copy(processed_digits.parents[2] / "mlflow.db", folder)
    write_json(
        folder / "data/processed/images/manifest.json",
        {**read_json(processed_digits / "manifest.json"), "source": "folder"},
    )
    shutil.copy(ROOT / ".gitignore", folder)
    plan = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    trained = {f"train-{name}" for name in MODELS}  # the checkout may have other models
    plan["stages"] = {
        name: stage
        for name, stage in plan["stages"].items()
        if name in trained or not name.startswith("train-")
    }
    of_others = [f"curves/{name}/" for name in model_files.names() if name not in MODELS]
    plan["plots"] = [plot for plot in plan["plots"] if not any(path in str(plot) for path in of_others)]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    params = {
        key: {**section, "training": TRAINING} if "training" in section else section
        for key, section in PARAMS.items()
    }
    params["data"] = {**params["data"], "source": "folder", "folder": "data/own/flowers"}
    params["evaluate"] = {"allow_few_samples": True, "num_bootstrap": 5}
    write_json(folder / "params.yaml", params)
    data = Dataset.open(folder / "data/processed/images")
    for name in MODELS:
        settings, config = read_training(name, model_files.find(name).Config, folder / "params.yaml")
        task = model_files.build(
            name,
            config,
            data.spec,
            settings.seed,
        )
        task = Loop(task, data, settings, folder / "history" / name).run()
        model_files.write(task, folder / "models" / name, {"class_names": list(data.class_names)})
    shutil.copytree(folder / "models/vae", folder / "models/of-another-branch")
    (folder / "models/unknown").mkdir()
    (folder / "models/unknown/model.json").write_text('{"name": "no longer here"}')
    shell(folder, "git", "init", "-q", "-b", "main")
    shell(folder, "python", "dvc", "init", "-q")
    for name in ("config", "plots.html"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc")
    shell(folder, "python", "dvc", "config", "--local", "core.site_cache_dir", str(folder.parent / "site"))
    output = shell(folder, "python", "stages.evaluate", PYTHONPATH=str(ROOT))
    commit(folder, "the results")
    plots = [plot for plot in plan["plots"] if isinstance(plot, dict)]
    charts = {title: chart for entry in plots for title, chart in entry.items()}
    page = (folder / "reports/index.html").read_text()
    return Evaluated(folder, output, read_json(folder / "metrics/details.json"), page, charts)


def charts(page):
    """The vega-lite specifications in a page that ``dvc plots show`` wrote, by title."""
    found = [
        json.JSONDecoder().raw_decode(page, match.end())[0] for match in re.finditer(r"var spec = ", page)
    ]
    return {
        spec["title"]["text"] if isinstance(spec["title"], dict) else spec["title"]: spec for spec in found
    }


def values(specification):
    """All rows of data in a specification."""
    if isinstance(specification, dict):
        own = specification.get("values", []) if isinstance(specification.get("values"), list) else []
        return own + [row for part in specification.values() for row in values(part)]
    return [row for part in specification for row in values(part)] if isinstance(specification, list) else []


def test_dvcs_charts_hold_each_measured_value_once_and_no_blank(project):
    shell(project.folder, "python", "dvc", "plots", "show")
    drawn = charts((project.folder / "dvc_plots/index.html").read_text())
    assert set(drawn) == set(project.plots)
    for title, plot in project.plots.items():
        if title == "confusion":
            continue
        rows = values(drawn[title])
        assert all(str(cell) not in ("", "nan", "None") for row in rows for cell in row.values()), title
        for path in plot["y"]:
            model, metric = path.removeprefix("plots/curves/").removesuffix(".csv").split("/", 1)
            line = [(int(row["step"]), float(row["value"])) for row in rows if path.endswith(row["filename"])]
            history = map(
                json.loads, (project.folder / "history" / model / "metrics.jsonl").read_text().splitlines()
            )
            assert line == [
                (entry["step"], entry["metrics"][metric]) for entry in history if metric in entry["metrics"]
            ], path
        assert len({row["filename"] for row in rows}) == len(plot["y"]) == 2


def test_without_a_network_dvcs_page_shows_the_curves_as_pictures(project):
    shell(project.folder, "python", "dvc", "plots", "show")
    page = (project.folder / "dvc_plots/index.html").read_text()
    assert (
        page.index("cdn.jsdelivr.net/npm/vega")
        < page.index('id="no-charts"')
        < page.index('"vegaEmbed" in window')
    )
    pictures = re.findall(r'<img src="(.*?)"', page)
    for name in ("ae-curves", "cnn-curves", "gan-curves", "vae-curves", "cnn-confusion"):
        assert any((project.folder / "dvc_plots" / path).is_file() for path in pictures if name in path), name


def test_git_sees_nothing_of_dvcs_page_of_plots(project):
    shell(project.folder, "python", "dvc", "plots", "show")
    assert (project.folder / "dvc_plots").is_dir()
    assert "dvc_plots" not in shell(project.folder, "git", "status", "--porcelain")


def test_dvc_metrics_shows_a_dozen_headline_numbers_within_the_width_of_a_terminal(project):
    metrics = json.loads((project.folder / "metrics/evaluation.json").read_text())
    assert metrics == {
        name: {metric: project.results[name][metric]["value"] for metric in metrics[name]}
        for name in ("ae", "cnn", "gan", "vae")
    }
    assert (
        set(metrics["cnn"]) == {"accuracy"}
        and {"fid", "recall"} <= set(metrics["gan"])
        and "psnr" in metrics["ae"]
    )
    assert {"fid", "psnr", "negative_elbo"} <= set(metrics["vae"])
    assert 8 <= sum(map(len, metrics.values())) <= 12
    table = shell(project.folder, "python", "dvc", "metrics", "show")
    assert "gan.fid" in table and max(map(len, table.splitlines())) <= WIDTH
    changed = {
        name: {metric: number + 12.34567 for metric, number in numbers.items()}
        for name, numbers in metrics.items()
    }
    (project.folder / "metrics/evaluation.json").write_text(json.dumps(changed))
    table = shell(project.folder, "python", "dvc", "metrics", "diff")
    shell(project.folder, "git", "checkout", "-q", "metrics")
    assert table.count("metrics/evaluation.json") == sum(map(len, metrics.values()))
    assert max(map(len, table.splitlines())) <= WIDTH


def test_the_table_of_experiments_fits_a_terminal(project):
    table = shell(
        project.folder, "python", "dvc", "exp", "show", "--only-changed", "--no-pager", COLUMNS="999"
    )
    assert "workspace" in table and max(map(len, table.splitlines())) <= WIDTH


def test_only_models_with_a_stage_are_evaluated_and_the_others_are_named(project):
    assert set(project.results) == {*MODELS, "protocol", "warnings"}
    assert "skipped: of-another-branch, unknown, because dvc.yaml has no stage" in project.output


def test_the_details_are_no_metrics_of_dvc_and_belong_to_git(project):
    stage = yaml.safe_load((project.folder / "dvc.yaml").read_text())["stages"]["evaluate"]
    assert {"metrics/details.json": {"cache": False}} in stage["outs"]
    assert json.loads((project.folder / "metrics/details.json").read_text()) == project.results
    assert "metrics/details.json" in shell(project.folder, "git", "ls-files")


def test_the_glossary_explains_every_quantity_that_the_report_shows(project):
    tables = re.findall(r'<table class="stacked">.*?</table>', project.report, re.S)
    shown = {
        re.sub(r"<.*?>|[↑↓]", "", cell).strip()
        for table in tables
        for cell in re.findall(r'<td class="text">(.*?)</td>', table)
    }
    shown -= set(MODELS)
    explained = {
        re.sub(r"<span.*", "", term).strip() for term in re.findall(r"<dt>(.*?)</dt>", project.report)
    }
    assert len(shown) > 20
    variants = r" (of reconstructions|with(out)? the temperature)$"
    assert {re.sub(variants, "", title) for title in shown} == explained
    assert all(measure.explanation or measure.explained_by for measure in glossary.MEASURES.values())


def test_the_sentences_of_the_report_are_apart(project):
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", project.report, flags=re.S)
    assert "Intervals: 95 %" in text and not re.search(r"[a-z)]\.[A-Z]", text)


def test_the_report_names_the_folder_of_the_users_own_images(project):
    header = project.report[project.report.index("<header>") : project.report.index("</header>")]
    assert "data/own/flowers" in header


def test_the_report_fits_a_phone(project):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in project.report
    phone = project.report[project.report.index("@media (max-width: 700px)") :]
    assert (
        ".stacked tr { display: flex; flex-wrap: wrap;" in phone
        and ".stacked thead { display: none; }" in phone
    )
    tables = "".join(re.findall(r'<table class="stacked">.*?</table>', project.report, re.S))
    labels = re.findall(r'<td class="number soft[^"]*"(?: data-label="([^"]+)")?>[^<]+</td>', tables)
    assert len(labels) > 40 and set(labels) == {
        "95 % interval",
        "at step",
    }  # which the table head does not show here


def test_pictures_by_step_have_a_largest_size_however_few_they_are(project):
    rule = re.search(r"^\.strip img \{(.*?)\}", project.report, re.M)[1]
    assert re.search(r"max-width: [12]?\d\dpx", rule) and re.search(r"max-height: [123]\d\dpx", rule)


def test_the_stage_prints_a_line_for_each_model_with_its_seconds(project):
    lines = project.output.splitlines()
    for number, name in enumerate(MODELS, 1):
        assert any(
            re.fullmatch(rf"{name}: measured in \d+\.\d s \({number} of 4 models\)", line) for line in lines
        ), lines
