"""Parts try what they say, and an outcome that is not allowed is what was lost."""

import pytest

from benchmarks.torture.parts import ALSO_LINE, LINE, PARTS, SAME, Bench
from benchmarks.torture.trial import Inputs


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "inputs").mkdir()
    return Bench(Inputs.make(folder / "inputs"), folder / "work", seed=3, num_inputs=2)


@pytest.mark.parametrize("name", ["models", "data", "flags"])
def test_inputs_come_to_a_result_or_a_line(name: str, bench: Bench) -> None:
    outcomes = [case.outcome for case in PARTS[name].cases(bench)]
    assert len(outcomes) == 2
    assert set(outcomes) <= PARTS[name].allowed


def test_a_damaged_file_loses_nothing(bench: Bench) -> None:
    cases = PARTS["damage"].cases(bench)
    for _ in range(2):
        case = next(cases)
        assert case.outcome.split(": ")[0] in ALSO_LINE, case
    assert {SAME, LINE} == ALSO_LINE
