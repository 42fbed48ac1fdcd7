"""Promotion and rollback move the alias ``champion`` and are recorded with their reasons."""

import json
import shutil

import pytest
from click.testing import CliRunner
from rich.console import Console

from pipeline.cli import commands
from pipeline.core import model_files
from pipeline.estimate import Estimate
from pipeline.evaluation import side_by_side
from pipeline.retraining.gates import Facts, GateSettings, judge
from pipeline.tracking import connection, moved, promotion, registry, run_comparison
from pipeline.tracking.runs import Description, open_run
from tests.tracking.conftest import write_model, write_picture
from tests.tracking.traced_project import environment_of

PROTOCOL = "p" * 64
PARAMS = {"training.seed": "9", "model.beta": "1.0"}


def add(environment, tmp_path, seed: int, test_images: int = 500, **numbers: float | Estimate) -> str:
    """Track, register and measure a VAE, trained for two hours; its run's id."""
    folder = tmp_path / f"training-{seed}"
    folder.mkdir()
    write_picture(folder, 5)
    model = write_model(tmp_path / f"vae-{seed}", "vae", seed)
    params = {"training": {"seed": seed}, "model": {"beta": 1.0}}
    with open_run(environment, Description("train-vae", f"{seed}" * 64, params, "digits", "d" * 64)) as run:
        run.follow(folder)
        run.tag({"total": 7200.0})
        run.register(model, "vae")
    known = {
        name: (
            value if isinstance(value, Estimate) else Estimate(value, value - 0.01, value + 0.01)
        ).to_json()
        for name, value in numbers.items()
    }
    description = Description("evaluate", f"{seed + 5}" * 64, tags={"test_images": test_images})
    with open_run(environment, description) as evaluation:
        evaluation.log_results(
            {"vae": known},
            {"vae": model_files.read_card(model)},
            {"vae": PROTOCOL},
        )
    return run.id


def aliases(client) -> dict[str, str]:
    return {alias: str(number) for alias, number in client.get_registered_model("vae").aliases.items()}


@pytest.mark.parametrize(
    "measured",
    [
        {"psnr": Estimate(12.5, floor=12.6)},
        {"recall": Estimate(0.0, floor=0.98), "coverage": Estimate(0.01, floor=0.7), "fid": Estimate(9e5)},
    ],
    ids=["trivial", "unlike real images"],
)
def test_a_first_version_that_misses_its_floor_is_not_the_champion(environment, tmp_path, capsys, measured):
    add(environment, tmp_path, 0, **measured)
    client, _ = connection.connect(environment)
    assert aliases(client) == {"challenger": "1"}
    assert "warning: vae/1 is not the champion: " in capsys.readouterr().err
    (tmp_path / "training-0").rename(tmp_path / "first")
    (tmp_path / "vae-0").rename(tmp_path / "first-model")
    add(environment, tmp_path, 0, **measured)  # the same weights again
    assert aliases(client) == {"challenger": "1"}
    numbers = registry.results(client.get_model_version("vae", "1"))
    gates = {gate.name: gate.passed for gate in judge(numbers, None, GateSettings(), Facts())}
    assert gates["above its floor"] is False
    promotion.promote(environment, promotion.find(client, "vae/1"), "all the same", [])
    add(environment, tmp_path, 1, psnr=Estimate(20.0, floor=12.6))
    assert aliases(client) == {"champion": "1", "challenger": "2"}


@pytest.fixture(scope="module")
def three(tmp_path_factory, empty_database):
    """A project with three versions: the champion, a worse one, a better one."""
    root = tmp_path_factory.mktemp("three")
    shutil.copy(empty_database, root)
    for seed, (fid, recall) in enumerate(((1.0, 0.8), (2.0, 0.8), (0.5, 0.9))):
        add(environment_of(root), root, seed, fid=fid, recall=recall)
    return root


@pytest.fixture
def command(three, environment, tmp_path, monkeypatch):
    """The command line of a copy of it."""
    shutil.copytree(three, tmp_path, dirs_exist_ok=True)
    moved.follow(environment)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    (tmp_path / "params.yaml").write_text("gates: {guarded: [fid, recall]}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", environment.tracking_uri)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(commands, arguments)
        return (getattr(done.exception, "exit_code", done.exit_code)), done.output + str(done.exception or "")

    return run


def champion(client) -> str:
    return str(client().get_model_version_by_alias("vae", "champion").version)


def test_a_better_version_is_promoted_a_worse_one_is_not_and_a_rollback_restores(command, client):
    assert champion(client) == "1"
    code, output = command("promote", "vae/2")
    assert code == 1 and "FAIL  fid: worse by more than noise" in output and "not promoted: fid" in output
    assert champion(client) == "1"
    code, output = command("promote", "vae")  # the challenger is the newest
    assert code == 0 and "ok    fid: better" in output and champion(client) == "3"
    assert "challenger" not in client().get_registered_model("vae").aliases
    assert "is the champion already" in command("promote", "vae/3")[1]
    code, output = command("rollback", "vae", "--reason", "its sevens look like ones")
    assert (code, champion(client)) == (0, "1") and "version 1, before: 3" in output
    code, output = command("rollback", "vae")
    assert (code, champion(client)) == (2, "1") and "no previous champion" in output
    recorded = client().search_runs(
        ["1"], "tags.`darkroom.model` = 'vae' and tags.`darkroom.stage` != 'train-vae'"
    )
    actions = [
        (run.data.tags["darkroom.stage"], run.data.tags["darkroom.from"], run.data.tags["darkroom.to"])
        for run in recorded
    ]
    assert actions == [("rollback", "3", "1"), ("promote", "1", "3")]
    assert recorded[0].data.tags["darkroom.reason"] == "its sevens look like ones"
    assert [gate["passed"] for gate in json.loads(recorded[1].data.tags["darkroom.gates"])] == [True] * 5


def test_a_promotion_by_hand_needs_the_gates_of_a_retraining(command, environment, client, tmp_path):
    add(environment, tmp_path, 3, fid=0.4, recall=0.9, memorisation=0.85)
    few, copies = "minimum_test_images: 501", "max_memorisation: 0.8"
    large, slow = "max_megabytes: 0.001", "max_hours: 1.9"
    for limits, failed in (
        ([few], "enough test images"),
        ([copies], "memorisation"),
        ([large], "megabytes"),
        ([slow], "hours"),
        ([few, copies, large, slow], "enough test images, memorisation, megabytes, hours"),
    ):
        (tmp_path / "params.yaml").write_text(f"gates: {{guarded: [fid, recall], {', '.join(limits)}}}")
        code, output = command("promote", "vae/4")
        assert (code, champion(client)) == (1, "1") and f"not promoted: {failed}\n" in output
    assert command("promote", "vae/4", "--reason", "seen by eye")[0] == 0 and champion(client) == "4"
    command("rollback", "vae")
    limits = "minimum_test_images: 500, max_memorisation: 0.9, max_megabytes: 100, max_hours: 2"
    (tmp_path / "params.yaml").write_text(f"gates: {{guarded: [fid, recall], {limits}}}")
    assert command("promote", "vae/4")[0] == 0 and champion(client) == "4"


def test_a_repeated_evaluation_by_another_protocol_keeps_its_number_of_test_images(
    command, client, environment, tmp_path
):
    """Its run had ended before, and gets the tag of the new protocol."""
    for version, fingerprint in (("1", "5" * 64), ("3", "7" * 64)):
        place = registry.weights(client(), client().get_model_version("vae", version), tmp_path)
        with open_run(environment, Description("evaluate", fingerprint)) as evaluation:
            card = model_files.read_card(place)
            evaluation.log_results({"vae": {"fid": {"value": 0.4}}}, {"vae": card}, {"vae": "q" * 64})
    assert "ok    enough test images: 500" in command("promote", "vae/3")[1]


def test_a_reason_overrules_a_gate_and_is_recorded(command, client):
    code, output = command("promote", "vae/2", "--reason", "the demo needs it")
    assert code == 0 and "FAIL  fid" in output and champion(client) == "2"
    (run,) = client().search_runs(["1"], "tags.`darkroom.stage` = 'promote'")
    assert run.data.tags["darkroom.reason"] == "the demo needs it"


def test_an_unknown_version_is_refused_with_the_known_ones(command):
    for thing, known in (
        ("vae/9", "vae/3, vae/2, vae/1 (the champion)"),
        ("vae@nothing", "vae/3, vae/2, vae/1 (the champion)"),
        ("nothing@champion", "vae (versions 1 to 3; "),
        ("nothing/1", "vae (versions 1 to 3; "),
    ):
        code, output = command("promote", thing)
        assert code == 2 and thing in output and known in output


def test_a_model_without_a_challenger_is_refused_with_its_versions(command, client):
    assert command("promote", "vae")[0] == 0
    code, output = command("promote", "vae")
    assert code == 2 and "vae@challenger: no version of vae has the alias 'challenger'" in output
    assert (
        "name a version, newest first: vae/3 (the champion), vae/2, vae/1" in output
        and champion(client) == "3"
    )


def test_an_experiment_does_not_overwrite_the_results_of_other_models(
    environment, client, tmp_path, monkeypatch
):
    run_id = add(environment, tmp_path, 0, fid=1.0)
    monkeypatch.setenv("DVC_EXP_NAME", "odd-seed")
    card = model_files.read_card(tmp_path / "vae-0")
    with open_run(environment, Description("evaluate", "e" * 64)) as evaluation:
        evaluation.log_results({"vae": {"fid": {"value": 7.0}}}, {"vae": card}, {"vae": "q" * 64})
    version = client().get_model_version("vae", "1")
    assert client().get_run(run_id).data.metrics["test_fid"] == 1.0
    assert "| fid | 1 |" in version.description and set(json.loads(version.tags["darkroom.results"])) == {
        PROTOCOL,
        "q" * 64,
    }


def test_a_comparison_shows_results_params_and_pictures(command, tmp_path):
    code, output = command("compare", "vae@champion", "vae/2", "vae/3", "--out", "page.html")
    assert code == 0 and "0.500 (0.490 – 0.510)" in output and "training.seed" in output
    page = (tmp_path / "page.html").read_text()
    assert (
        page.count("data:image/png;base64,") == 3
        and "model.beta" not in page
        and "http" not in page.replace("http-equiv", "")
    )
    assert command("compare", "f" * 32)[0] == 2
    assert "All were measured by the same protocol." in output


def test_results_of_an_earlier_version_are_not_compared_and_the_reason_is_given(command, client):
    client().set_model_version_tag(
        "vae", "2", "darkroom.results", json.dumps({PROTOCOL: {"fid": 0.1, "fid_low": 0}})
    )
    code, output = command("compare", "vae/1", "vae/2", "--out", "page.html")
    assert code == 0 and "1.00 (0.990 – 1.01)" in output
    assert "vae/2: not measured, or by another version of Darkroom." in output
    code, output = command("promote", "vae/2")
    assert code == 1 and "not promoted: measured, comparable" in output
    client().set_model_version_tag("vae", "1", "darkroom.results", json.dumps({PROTOCOL: {"fid": 0.1}}))
    code, output = command("promote", "vae/3")
    assert code == 1 and "another version of Darkroom" in output


def test_seeds_are_summarised_by_mean_and_standard_deviation(command, client):
    found = run_comparison.by_seed(client(), "1", "vae", PARAMS, "d" * 64)
    assert list(found) == [0, 1, 2]
    assert run_comparison.spread([1.0, 2.0, 0.5]) == pytest.approx((3.5 / 3, 0.7637626))
    console = Console(width=120, record=True)
    console.print(side_by_side.seed_table(found))
    text = " ".join(console.export_text().split())
    assert "1.17 ± 0.764 1.00 2.00 0.500" in text and "measured by the same protocol" in text


def test_seeds_measured_in_different_feature_spaces_have_no_mean():
    measured = {0: {"p": {"fid": Estimate(0.3)}}, 1: {"q": {"fid": Estimate(900.0)}}}
    found = {seed: run_comparison.Compared("", "", {}, each, b"", {}) for seed, each in measured.items()}
    console = Console(width=120, record=True)
    console.print(side_by_side.seed_table(found))
    text = " ".join(console.export_text().split())
    assert "0.300 900" in text and "±" not in text.replace("mean ± std", "")
    assert "measured by different protocols" in text and "there is no mean" in text


def test_a_run_with_other_params_or_data_is_not_one_of_the_seeds(environment, client, tmp_path):
    add(environment, tmp_path, 0, fid=1.0)
    with open_run(
        environment,
        Description(
            "train-vae", "x" * 64, {"training": {"seed": 3}, "model": {"beta": 2.0}}, "digits", "d" * 64
        ),
    ):
        pass
    assert list(run_comparison.by_seed(client(), "1", "vae", PARAMS, "d" * 64)) == [0]
    assert list(run_comparison.by_seed(client(), "1", "vae", PARAMS, "e" * 64)) == []


def test_promotions_that_were_recorded_under_former_names_are_known(environment, client, tmp_path):
    for seed in (0, 1):
        add(environment, tmp_path, seed, fid=1.0)
    version = client().get_model_version("vae", "2")
    promotion.promote(environment, version, "better", [], "20261121T023000Z-kkkkkkkk")
    (run,) = client().search_runs(["1"], "tags.`darkroom.stage` = 'promote'")
    client().delete_tag(run.info.run_id, "darkroom.retraining")
    for name, value in (("occasion", "20261121T023000Z-kkkkkkkk"), ("deed", "yes")):
        client().set_tag(run.info.run_id, f"darkroom.{name}", value)
    promotion.promote(environment, version, "again", [], "20261121T023000Z-kkkkkkkk")
    first, promoted = promotion.alias_history(client(), "1")
    assert (first["event"], promoted["event"], promoted["reason"]) == ("first", "promote", "better")
    assert promoted["retraining"] == "20261121T023000Z-kkkkkkkk"
