"""Gates compare differences with the noise and give reasons."""

import dataclasses

import pytest

from pipeline.errors import BadInput
from pipeline.estimate import Estimate
from pipeline.params import validate
from pipeline.retraining.champion_challenger import decide
from pipeline.retraining.gates import Facts, GateSettings, judge
from pipeline.retraining.journal import Verdict

GUARDS = GateSettings(guarded=["accuracy", "fid"])


def measured(accuracy: float = 0.9, fid: float = 1.0, width: float = 0.1) -> dict[str, Estimate]:
    found = {"accuracy": accuracy, "fid": fid}
    return {name: Estimate(value, value - width / 2, value + width / 2) for name, value in found.items()}


def verdicts(gates) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in gates}


@pytest.mark.parametrize(
    ("challenger", "failed"),
    [
        (measured(), set()),
        (measured(accuracy=0.99, fid=0.5), set()),
        (measured(accuracy=0.84), set()),  # 0.06 below; the noise is 0.05 * sqrt(2) = 0.0707
        (measured(accuracy=0.82), {"accuracy"}),
        (measured(fid=1.06), set()),
        (measured(fid=1.08), {"fid"}),
        (measured(accuracy=0.81, fid=1.09), {"accuracy", "fid"}),
    ],
)
def test_worse_counts_only_beyond_the_noise_of_both(challenger, failed):
    found = verdicts(judge({"p": challenger}, {"p": measured()}, GUARDS, Facts()))
    assert {name for name, passed in found.items() if not passed} == failed


def test_a_loss_within_noise_has_a_limit_where_one_is_set():
    limited = GateSettings(guarded=["accuracy"], max_loss={"accuracy": 0.02})
    (*_, gate) = judge({"p": measured(accuracy=0.87)}, {"p": measured()}, limited, Facts())
    assert not gate.passed and gate.finding.startswith("worse by more than the 0.02 allowed")
    assert all(
        gate.passed for gate in judge({"p": measured(accuracy=0.89)}, {"p": measured()}, limited, Facts())
    )


def test_a_champion_that_could_not_be_measured_is_not_comparable():
    assert verdicts(judge({"p": measured()}, {}, GUARDS, Facts())) == {"measured": True, "comparable": False}


def test_by_default_forecasts_must_not_get_worse_and_better_ones_are_worth_it():
    champion, better, worse = ({"frame_mse": Estimate(value, value - 2, value + 2)} for value in (50, 40, 60))
    facts = Facts(new_pictures=0)
    found = [verdicts(judge({"p": each}, {"p": champion}, GateSettings(), facts)) for each in (better, worse)]
    assert all(found[0].values()) and found[0].keys() == {"measured", "comparable", "frame_mse", "worth it"}
    assert not found[1]["frame_mse"] and not found[1]["worth it"]


def test_the_best_of_several_targets_must_be_better_by_more():
    better = measured(fid=0.92)  # by 0.08: more than 0.0707, less than 0.0707 * 2.2414 / 1.96 = 0.0809
    assert failed(better, new_pictures=0) == {"worth it"}
    assert failed(better, GateSettings(guarded=["accuracy", "fid"], targets=["fid"]), new_pictures=0) == set()


def test_numbers_of_different_protocols_are_not_compared():
    gates = judge({"new": measured(accuracy=1.0)}, {"old": measured()}, GUARDS, Facts())
    assert verdicts(gates) == {"measured": True, "comparable": False}


def test_the_newest_protocol_that_both_share_decides():
    challenger = {"p": measured(accuracy=0.1), "q": measured(), "r": measured(accuracy=0.1)}
    assert all(verdicts(judge(challenger, {"p": measured(), "q": measured()}, GUARDS, Facts())).values())


@pytest.mark.parametrize("challenger", [{}, {"p": {}}, {"p": {"ssim": Estimate(0.9)}}])
def test_what_was_not_measured_does_not_pass(challenger):
    assert not verdicts(judge(challenger, None, GUARDS, Facts()))["measured"]


def test_the_first_champion_needs_only_be_measured():
    assert all(verdicts(judge({"p": measured()}, None, GUARDS, Facts())).values())


def test_each_finding_contains_the_numbers():
    (*_, accuracy, fid) = judge({"p": measured(accuracy=0.95, fid=2)}, {"p": measured()}, GUARDS, Facts())
    assert accuracy.finding == "within noise: 95.0 % against 90.0 %, noise 7.1 %"
    assert fid.finding == "worse by more than noise: 2.00 against 1.00, noise 0.0707"


def test_a_measure_that_only_the_champion_has_is_a_gate_that_is_not_passed():
    challenger = {"accuracy": measured()["accuracy"]}
    assert verdicts(judge({"p": challenger}, {"p": measured()}, GUARDS, Facts())) == {
        "measured": True,
        "comparable": True,
        "accuracy": True,
        "fid": False,
    }


HERE = Facts(new_pictures=100, test_images=500, megabytes=2.0, hours=0.5)


def failed(challenger, settings=GUARDS, **changes) -> set[str]:
    found = judge({"p": challenger}, {"p": measured()}, settings, dataclasses.replace(HERE, **changes))
    return {gate.name for gate in found if not gate.passed}


def test_without_new_pictures_a_target_must_be_better():
    assert failed(measured()) == set() and failed(measured(), new_pictures=0) == {"worth it"}
    assert failed(measured(fid=0.5), new_pictures=0) == set()
    assert failed(measured(fid=0.5), GateSettings(guarded=["fid"], targets=["accuracy"]), new_pictures=0) == {
        "worth it"
    }


def test_the_deviation_between_seeds_counts_as_noise():
    worse = measured(accuracy=0.7)
    assert failed(worse) == {"accuracy"}
    assert (
        failed(worse, GateSettings(guarded=["accuracy", "fid"], seed_deviation={"accuracy": 0.07})) == set()
    )


def test_copies_few_test_images_weight_and_time_have_their_limits():
    limited = GateSettings(
        guarded=["accuracy", "fid"], max_megabytes=1, max_hours=0.4, minimum_test_images=501
    )
    assert failed(measured() | {"memorisation": Estimate(0.95, 0.91, 0.99)}, limited) == {
        "enough test images",
        "memorisation",
        "megabytes",
        "hours",
    }
    assert failed(measured() | {"memorisation": Estimate(0.95, 0.89, 1.0)}) == set()
    assert failed(measured() | {"memorisation": Estimate(0.95)}) == {"memorisation"}


def test_a_misspelt_measure_guards_nothing_and_is_refused():
    with pytest.raises(BadInput, match="guarded"):
        validate({"guarded": ["acuracy"]}, GateSettings, where="gates")


def test_if_the_classifier_is_refused_no_model_is_promoted():
    def verdict(model: str, promoted: bool, name: str = "fid") -> Verdict:
        gates = [{"name": name, "passed": promoted, "finding": "so"}]
        return Verdict(
            model=model, version="2", before="1", promoted=promoted, reason="a reason", gates=gates
        )

    both = [verdict("cnn", True), verdict("gan", False)]
    assert decide(both, "cnn")[0] == "promoted" and [one.promoted for one in both] == [True, False]
    suspect = [verdict("cnn", False), verdict("gan", True)]
    assert decide(suspect, "cnn")[0] == "refused" and not any(one.promoted for one in suspect)
    assert decide([verdict("cnn", False, "wanted")], "cnn")[0] == "refused"
    assert decide(
        [Verdict(model="cnn", version="1", before="1", reason="it is the champion already")], "cnn"
    ) == (
        "promoted",
        "the trained versions are the champions already",
    )


def test_by_default_segmentation_must_not_get_worse_and_a_better_one_is_worth_it():
    champion, better, worse = (
        {"mean_iou": Estimate(value, value - 0.02, value + 0.02)} for value in (0.7, 0.8, 0.6)
    )
    facts = Facts(new_pictures=0)
    found = [verdicts(judge({"p": each}, {"p": champion}, GateSettings(), facts)) for each in (better, worse)]
    assert all(found[0].values()) and found[0].keys() == {"measured", "comparable", "mean_iou", "worth it"}
    assert not found[1]["mean_iou"] and not found[1]["worth it"]
