"""The file of a leaderboard: all faults are named at once, before anything is trained; and its table."""

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from pipeline import recipes
from pipeline.errors import BadInput
from pipeline.estimate import Estimate
from pipeline.leaderboard import board as boards
from pipeline.leaderboard.summary import Summary, place, spread_of
from pipeline.leaderboard.trainings import Result
from pipeline.params import read_file
from pipeline.tracking.run_comparison import Compared
from tests.project import PARAMS

GOOD = {
    "model": "vae",
    "num_steps": 40,
    "seeds": [0, 3],
    "measures": ["fid"],
    "variants": {"base": {}, "beta 2": {"vae.model.beta": 2.0}},
}


@pytest.fixture
def project(tmp_path, monkeypatch, processed_digits):
    """A folder with params.yaml and processed digits."""
    (tmp_path / "params.yaml").write_text(json.dumps(PARAMS))
    (tmp_path / "data/processed").mkdir(parents=True)
    (tmp_path / "data/processed/images").symlink_to(processed_digits)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(**changes):
    Path("board.yaml").write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return boards.read(Path("board.yaml"))


def faults(**changes) -> str:
    with pytest.raises(BadInput) as caught:
        read(**changes)
    assert "board.yaml" in str(caught.value)
    return str(caught.value)


def test_each_training_has_its_settings_its_seed_and_a_fingerprint_of_its_own(project):
    entries = boards.entries(read(), Path("board.yaml"))
    assert [str(entry) for entry in entries] == [
        "base, seed 0",
        "beta 2, seed 0",
        "base, seed 3",
        "beta 2, seed 3",
    ]
    assert len({entry.fingerprint for entry in entries}) == 4
    last = {change.key: change.override for change in entries[3].changes()}
    assert last == {
        "vae.training.num_steps": "vae.training.num_steps=40",
        "vae.training.seed": "+vae.training.seed=3",
        "vae.model.beta": "+vae.model.beta=2.0",
        "evaluate.models": '+evaluate.models=["vae"]',
    }
    assert entries[0].num_parameters > 1000 and read_file() == PARAMS


def test_all_faults_of_a_file_are_named_at_once(project):
    found = faults(model="vea", base="minst", seeds=[1, 1], measures=["fit"])
    assert "4 faults" in found
    for text in ("did you mean 'vae'", "did you mean 'mnist'", "seeds: are not different", "'fid'"):
        assert text in found
    found = faults(
        settings={"vae.training.num_steps": 3},
        variants={"a": {"data.image_size": 8}, "b": {"vae.training.seed": 1}},
    )
    assert "3 faults" in found and "a: data.image_size: is not a setting of vae" in found
    found = faults(
        variants={
            "one": {"vae.model.betta": 1.0, "vae.training.batch_size": 0},
            "two": {"vea.model.beta": 1.0},
            "three": {"vae.model.beta": 3.0},
            "four": {"vae.model.beta": 3.0},
        }
    )
    assert "one: vae." in found and "vae.model.betta: no such setting" in found
    assert "vae.training.batch_size" in found and "two: vea: no such section (did you mean 'vae'?)" in found
    assert "four: has the settings of 'three'" in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "board.yaml.variants"),
        ({"seeds": []}, "seeds: is empty"),
        ({"seed": [1]}, "board.yaml.seed: no such setting\n.*'seeds'"),
        ({"seeds": [-1]}, "seeds: are not different numbers from 0"),
        ({"num_steps": 0}, "num_steps"),
        ({"base": "mnist"}, "first run: darkroom recipe mnist"),
    ],
)
def test_a_fault_is_named_with_its_remedy(project, changes, message):
    assert re.search(message, faults(**changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate.feature_network": "pixels"}, "evaluate.feature_network: is not a setting of vae"),
        ({"evaluate.models": ["cnn"]}, "evaluate.models: is not a setting of vae"),
        ({"cnn.model.dense": [128]}, "cnn.model.dense: is not a setting of vae"),
        ({"data": {}}, "data: is not a setting of vae"),
        ({"vae.model": {}}, "vae.model: is empty"),
    ],
)
def test_what_would_not_tell_trainings_apart_is_refused(project, settings, message):
    assert f"other: {message}" in faults(variants={"base": {}, "other": settings})
    assert f"settings: {message}" in faults(settings=settings)


def test_a_variant_with_the_default_of_a_setting_is_refused(project):
    variants = {"base": {}, "default": {"vae.model.kl_warmup_steps": 0}}
    assert "default: has the settings of 'base'" in faults(variants=variants)


def test_what_no_variant_measures_is_named_before_anything_is_trained(project):
    board = read(model="gan", variants={"base": {}}, measures=["fid", "accuracy", "psnr"], curve="acuracy")
    wrong = {"gan": "loss_attack", "cnn": "distance_attack", "vqvae": "loss_attack_found"}
    for model, measure in wrong.items():
        with pytest.raises(BadInput, match=measure):
            boards.entries(read(model=model, variants={"base": {}}, measures=[measure]), Path("board.yaml"))
    for model, measure in (("cnn", "loss_attack"), ("vqvae", "perplexity")):
        assert boards.entries(
            read(model=model, variants={"base": {}}, measures=[measure]), Path("board.yaml")
        )
    with pytest.raises(BadInput) as caught:
        boards.entries(board, Path("board.yaml"))
    for text in ("3 faults", "measures: gan has no 'accuracy'", "gan has no 'psnr'", "curve: gan has no 'ac"):
        assert text in str(caught.value)
    measures = ["fid", "psnr", "negative_elbo", "importance_weighted_bound"]
    measures += ["reconstruction_attack", "distance_attack_found"]
    assert boards.entries(read(measures=measures, curve="kl"), Path("board.yaml"))


def test_an_autoencoder_is_known_to_generate_once_it_is_trained(project):
    board = read(model="ae", variants={"base": {}}, measures=["fid", "label_agreement", "distance_attack"])
    assert boards.entries(board, Path("board.yaml"))


def test_a_recipe_as_base_replaces_the_projects_settings(project):
    Path("params.yaml").write_text(json.dumps(PARAMS | {"data": recipes.read("digits").settings["data"]}))
    board = read(base="digits")
    params = boards.params_of(board, "beta 2", 3)
    assert params["vae"]["model"]["width"] == 16 and params["vae"]["model"]["beta"] == 2.0
    assert params["vae"]["training"] | {"num_steps": 40, "seed": 3} == params["vae"]["training"]


def test_invalid_params_of_the_project_are_named_first(project):
    Path("params.yaml").write_text(json.dumps(PARAMS | {"gates": {"x": 1}}))
    with pytest.raises(BadInput, match=r"params.yaml: gates\.x"):
        read()


def test_the_interval_of_a_mean_is_students():
    found = spread_of([1.0, 2.0, 3.0], "higher")
    assert (found.mean, found.deviation, found.best) == (2.0, 1.0, 3.0)
    assert found.high - found.mean == pytest.approx(4.302653 / 3**0.5)  # t of two degrees of freedom
    assert spread_of([0.9, 1.0], percent=True).high == 1.0
    single = spread_of([1.0], "lower", Estimate(1.0, 0.5, 1.5))
    assert (single.low, single.high, single.deviation) == (0.5, 1.5, 0.0)


def picture(value: int) -> bytes:
    """A grey sample grid, PNG."""
    file = io.BytesIO()
    Image.new("L", (40, 20), value).save(file, "PNG")
    return file.getvalue()


def summary_of(protocols="pppp", name="beta 2", failure="Diverged: loss | nan", last_step=""):
    """Two variants, two seeds; the last training failed. ``protocols``: of each training."""
    variants = {"base": {}, name: {"vae.model.beta": 2.0}}
    board = read(curve="negative_elbo", title="Beta", variants=variants)
    results = []
    for number, entry in enumerate(boards.entries(board, Path("board.yaml"))):
        tags = {"darkroom.total": "10.0", "darkroom.processor": "8.0", "darkroom.workers": "1"}
        tags |= {"darkroom.device": "cpu", "darkroom.steps": "20" if number == 1 else "40"}
        tags["darkroom.last_step"] = last_step
        results_by_protocol = {
            protocols[number]: {
                "fid": Estimate(1.0 + number + (number == 1), 0.5, 9.0),
                "recall": Estimate(0.5),
            }
        }
        params = {"training.num_steps": "40"}
        run = Compared(str(entry), f"{number:032d}", params, results_by_protocol, picture(number), tags)
        failed = number == 3
        curve = [] if failed else [5.0, 3.0, 4.0 + number]
        results.append(Result(entry, None if failed else run, curve, failure * failed))
    return Summary.of(board, results)


@pytest.fixture
def summary(project):
    """Two variants, two seeds; the last training failed."""
    return summary_of()


def test_the_table_has_mean_deviation_interval_best_time_cost_and_failures(summary):
    base, beta = summary.rows
    assert (base.measures["fid"].mean, base.measures["fid"].best, base.num_finished) == (2.0, 1.0, 2)
    assert base.curve["best"].mean == 3.0 and base.curve["last"].mean == 5.0
    assert (base.seconds.mean, base.cost.mean) == (10.0, 8.0)
    assert (beta.seconds.mean, beta.cost.mean) == (20.0, 16.0)  # half of its steps were in an earlier process
    assert beta.failure == "1 of 2 seeds failed: Diverged: loss | nan"
    text = summary.markdown()
    assert "| **2.00 ± 1.41**<br>" in text and "best 1.00" in text and "8.00 ± 0.00 CPU s" in text
    assert "`vae.model.beta=2.0`" in text and "Diverged: loss \\| nan" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_a_name_or_failure_of_several_lines_does_not_break_the_table(project):
    text = summary_of(name="beta | 2\nor so", failure="Diverged:\n\nloss").markdown()
    assert "beta \\| 2 or so<br>1 of 2 seeds failed: Diverged: loss |" in text
    table = [line for line in text.partition("\n\n")[0].splitlines()]
    assert len(table) == 4 and all(line.startswith("| ") and line.endswith("|") for line in table)


def test_numbers_of_different_protocols_have_no_best_and_no_mean(project):
    assert summary_of().best("fid") == 2.0
    across = summary_of("pqpp")  # the variants differ; the seeds of each share one
    assert [row.measures["fid"].mean for row in across.rows] == [2.0, 3.0]
    assert across.best("fid") is None and "no value is marked as the best" in across.markdown()
    within = summary_of("ppqp")  # the seeds of the first variant differ
    assert not within.rows[0].measures and "different protocols: no mean" in within.rows[0].failure
    assert within.rows[1].measures["fid"].mean == 3.0 and "**" not in within.markdown()


def test_the_time_of_a_training_that_patience_ended_is_not_extrapolated(project):
    rows = summary_of(last_step="20").rows
    assert rows[1].seconds.mean == 10.0  # all of its 20 steps were in this process


def test_a_table_of_one_seed_says_that_its_intervals_are_over_the_test_images(project):
    assert "over the test images" in Summary(read(seeds=[0]), [], True).protocol()
    assert "Student" in Summary(read(seeds=[0, 1]), [], True).protocol()


def test_the_files_hold_the_same_numbers(summary, tmp_path):
    paths = summary.write(tmp_path / "out", "beta")
    assert [path.name for path in paths] == ["beta.md", "beta.csv", "beta.json", "beta.html"]
    assert pd.read_csv(paths[1])["fid mean"].tolist() == [2.0, 3.0]
    assert json.loads(paths[2].read_text())["rows"][0]["measures"]["fid"]["mean"] == 2.0
    page = paths[3].read_text()
    assert page.count("data:image/png;base64,") == 2 and "Diverged: loss | nan" in page and "Beta" in page


def test_a_table_takes_the_place_of_the_one_between_its_marks():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    once = place(text, "x", "new\n", "doc.md")
    assert once == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n" and place(once, "x", "new\n", "doc.md") == once
    with pytest.raises(BadInput, match="no place for the leaderboard 'y'"):
        place(text, "y", "new\n", "doc.md")
