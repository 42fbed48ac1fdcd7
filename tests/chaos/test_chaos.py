"""A short series of kills, and of flipped bits. The long ones are in docs/reliability.md."""

import os
import subprocess
import sys

import pytest

from tests.chaos import states
from tests.project import ROOT


def chaos(folder, *options):
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=3500,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def test_the_model_of_the_random_sequences_knows_a_bit_flipped_back_and_what_a_pull_restores(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(states.Sequence, "folder", tmp_path, raising=False)
    (tmp_path / "first").mkdir()
    (tmp_path / "first/params.yaml").write_text('{"cnn": {"model": {"dropout": 0.2}}}')
    (tmp_path / "first/dvc.lock").write_text("stages")
    sequence = states.Sequence()
    monkeypatch.setattr(sequence, "_problems", lambda: ["dvc.lock"])
    for bit, damaged in ((0, 1), (1, 1), (0, 1), (1, 0)):
        sequence.flip_bit(kind="dvc.lock", which=0, bit=bit)
        assert len(sequence.damaged) == damaged
    (pull,) = [rule for rule in sequence.rules if rule.function.__name__ == "lose_and_pull"]
    pullable = lambda: all(condition(sequence) for condition in pull.preconditions)
    assert pullable()
    sequence.change_params(dropout=0.1)
    assert not pullable()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_one_kills_need_no_repair_and_change_no_bit_and_flipped_bits_are_named(tmp_path):
    output = chaos(
        tmp_path, "--sequences", "2", "--actions", "5", "--flips", "15", "--kills", "21", "--seed", "1"
    )
    assert "| all | 15 | 15 |" in output


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_so_do_a_hundred_kills(tmp_path):
    chaos(tmp_path, "--kills", "100", "--seed", str(int.from_bytes(os.urandom(2))))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_search_has_the_same_trials_and_a_retraining_the_same_result_after_kills(tmp_path):
    seed = str(int.from_bytes(os.urandom(2)))
    chaos(tmp_path, "--stage", "search", "--stage", "retrain", "--kills", "12", "--seed", seed)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_after_random_sequences_of_actions_a_project_is_as_a_model_says_or_damage_is_named(tmp_path):
    seed = str(int.from_bytes(os.urandom(2)))
    chaos(
        tmp_path, "--kills", "0", "--sequences", "1000", "--actions", "10", "--seed", seed, "--minutes", "45"
    )


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_each_of_two_hundred_flipped_bits_over_all_kinds_of_files_is_named(tmp_path):
    assert "| all | 200 | 200 |" in chaos(tmp_path, "--flips", "200", "--kills", "0")
