"""The journal of retrainings on disk."""

import pytest

from pipeline.errors import DarkroomError
from pipeline.files import write_json
from pipeline.retraining.journal import Journal, RetrainingRun, Verdict


def run(**more) -> RetrainingRun:
    verdict = Verdict(
        model="cnn",
        version="2",
        before="1",
        promoted=True,
        reason="better",
        gates=[{"name": "fid", "passed": True, "finding": "better"}],
        numbers={"fid": 1.0},
        before_numbers={"fid": 2.0},
    )
    began, reasons = "2026-11-21T02:30:00", ["10 new pictures"]
    return RetrainingRun(
        key="k" * 64, base="c" * 40, began=began, reasons=reasons, verdicts=[verdict], **more
    )


def test_a_saved_retraining_is_current_and_a_closed_one_is_past(tmp_path):
    journal, written = Journal(tmp_path), run(decision="promoted")
    with journal.lock():
        assert journal.current() is None and journal.past() == []
        journal.save(written)
        assert Journal(tmp_path).current() == written and written.name == "20261121T023000Z-kkkkkkkk"
        journal.close(written)
    assert journal.current() is None and Journal(tmp_path).past() == [written] and written.ended


def test_files_with_their_former_names_are_read_and_renamed(tmp_path):
    folder = Journal(tmp_path).folder
    old, still_open = (
        {**run(decision=what).model_dump(), "drift": {"said": "no drift"}} for what in ("promoted", "")
    )
    write_json(folder / "occasions/20261121T023000Z-kkkkkkkk.json", old)
    write_json(folder / "occasion.json", still_open)
    write_json(folder / "aside.json", {"a/cat": "blank"})
    for journal in (Journal(tmp_path), Journal(tmp_path)):
        (past,) = journal.past()
        current = journal.current()
        assert current and past.decision == "promoted" and not current.decision
        assert past.drift == current.drift == {"sentence": "no drift"}
        assert journal.quarantined() == {"a/cat": "blank"}
    assert sorted(path.name for path in folder.iterdir()) == ["current.json", "ended", "quarantine.json"]


def test_a_second_process_fails_with_exit_code_75(tmp_path):
    with (
        Journal(tmp_path).lock(),
        pytest.raises(DarkroomError, match="another `darkroom retrain`") as caught,
        Journal(tmp_path).lock(),
    ):
        pass
    assert caught.value.exit_code == 75


def test_pictures_stay_quarantined_until_they_are_readmitted(tmp_path):
    journal = Journal(tmp_path)
    with journal.lock():
        journal.quarantine({"a/cat": "1.png: cannot be decoded", "b/dog": "2.png: refused"})
        journal.quarantine({"b/dog": "another reason"})
        assert journal.quarantined() == {"a/cat": "1.png: cannot be decoded", "b/dog": "2.png: refused"}
        assert list(journal.readmit("refused", dry_run=True)) == ["a/cat"]
        assert len(journal.quarantined()) == 2  # nothing was written
        journal.readmit("refused")
        assert list(journal.quarantined()) == ["a/cat"]
        journal.readmit("nothing")
        assert list(journal.quarantined()) == ["a/cat"]


def test_an_unfinished_report_of_a_killed_process_is_removed_at_the_end(tmp_path):
    journal, written = Journal(tmp_path), run(decision="promoted")
    journal.ended.mkdir(parents=True)
    for name in (f".{written.name}.html.17.abc.html", f"{written.name}.html"):
        (journal.ended / name).touch()
    journal.close(written)
    assert {path.name for path in journal.ended.iterdir()} == {f"{written.name}.html", f"{written.name}.json"}
