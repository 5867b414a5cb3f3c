"""Which questions are asked: each once, none that is held out, and as many as are wanted."""

import re
from typing import Any

import pytest

from ptl_fast.config.config import Config
from ptl_fast.data.documents import Document
from ptl_fast.data.sampling import Candidate, Sample
from ptl_fast.run.questions import num_read, num_trace_tokens, to_ask
from support.settings import settings

SUMS = [Document(f"1+{number}?", f"#### {1 + number}") for number in range(6)]
TEXT = Document("", "A story.")
ESSAY = Document("Why?", "Because of the weather in that year, as far as anybody knows.")
CODE = Document("Write f.", "def f(): return 3", tests="assert f() == 3")


def sample(*parts: list[Document], held_out: tuple[Document, ...] = ()) -> Sample:
    """Parts of equal weight; the held-out documents are the first one's."""
    return Sample(
        names=[f"{number}.jsonl" for number in range(len(parts))],
        weights=[1 / len(parts)] * len(parts),
        held_out=[list(held_out), *([[]] * (len(parts) - 1))],
        training=[[Candidate(0, document, [0] * 4) for document in part] for part in parts],
        fingerprint="",
    )


def traced(**values: Any) -> Config:
    return settings(**{"traces": True, "recovery_tokens": 6000, **values})


def test_no_question_is_asked_twice_or_although_it_is_held_out() -> None:
    again, elsewhere = Document("1+1?", "2, so #### 2"), Document("1+0?", "It is #### 1")
    first, second = to_ask(
        traced(),
        sample([*SUMS[1:3], again, TEXT], [elsewhere, SUMS[2], SUMS[4]], held_out=(SUMS[0],)),
    )
    assert (first.name, second.name) == ("own traces of 0.jsonl", "own traces of 1.jsonl")
    assert list(first.documents) == [SUMS[1], SUMS[2], TEXT]
    assert list(second.documents) == [SUMS[4]]
    assert first.weight == second.weight == 0.5


def test_a_number_is_shared_by_the_parts() -> None:
    parts = to_ask(traced(traces_number=5), sample(SUMS[:4], SUMS[4:]))
    assert [list(part.documents) for part in parts] == [SUMS[:2], SUMS[4:6]]


def test_without_traces_nothing_is_asked() -> None:
    assert to_ask(settings(), sample([TEXT])) == []


def test_text_has_no_questions() -> None:
    with pytest.raises(ValueError, match="x has no questions that the model could answer"):
        to_ask(traced(), sample([TEXT], [TEXT]))


@pytest.mark.parametrize("values", [{"traces_keep": "right"}, {"traces_every_round": True}])
def test_what_cannot_be_judged_cannot_be_chosen_by_it(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.escape("no answer in x marks its final answer")):
        to_ask(traced(**values), sample([ESSAY, TEXT]))
    with pytest.raises(ValueError, match="allow it with --allow-code-execution"):
        to_ask(traced(**values), sample([*SUMS, CODE]))
    assert to_ask(traced(**values, allow_code_execution=True), sample([CODE]))
    assert to_ask(traced(**values), sample([*SUMS, ESSAY]))


def test_code_that_is_not_run_is_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    to_ask(traced(), sample([CODE]))
    assert "Own traces with code are not judged" in capsys.readouterr().out


def test_the_tokens_are_those_that_recovery_or_else_scoring_reads() -> None:
    scoring = {"recovery": "none", "calibration_tokens": 500, "recovery_tokens": None}
    assert num_trace_tokens(traced(), 6000) == 6000
    assert num_trace_tokens(traced(**scoring), None) == 500
    assert num_trace_tokens(traced(recovery_tokens=None), None) is None
    assert num_trace_tokens(traced(recovery="grpo", recovery_tokens=None), None) is None
    # answers that are kept may be few
    assert num_read(traced(), 6000) == 24000
    assert num_read(traced(**scoring), None) == 2000
    assert num_read(traced(recovery_tokens=None), None) is None
    assert num_read(settings(), 6000) == 6000
