"""Each bad input is refused with exit code 2, its place and a remedy, and leaves nothing behind."""

from collections import Counter

import pytest

from tests.bad_input.case import Case, run, state, write
from tests.bad_input.groups import GROUPS

CASES = [
    pytest.param(case, id=f"{group}: {case.name}")
    for group, module in GROUPS.items()
    for case in module.CASES
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_its_place_and_remedy_and_nothing_is_left(tmp_path, case: Case):
    write(tmp_path)
    case.build(tmp_path)
    *before, last = case.stages
    for stage in before:
        assert run(tmp_path, stage, **case.variables) == (0, "")
    found = state(tmp_path)
    code, error = run(tmp_path, last, **case.variables)
    if not case.words:
        assert (code, error) == (0, "")
        return
    assert code == 2, error
    assert all(part in error for part in case.words.split("|")), error
    lines = error.splitlines()
    assert lines[0].startswith("error: ") and "  -> " in error and len(lines) <= 5, error
    assert "Traceback" not in error and "secret" not in error
    assert state(tmp_path) == found


def test_there_are_enough_cases_and_no_name_is_used_twice():
    names = Counter(parameter.id for parameter in CASES)
    assert len(CASES) >= 190 and max(names.values()) == 1
