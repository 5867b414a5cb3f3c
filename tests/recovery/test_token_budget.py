"""The budget of recovery tokens: what each round may spend, and when its closing phase begins."""

import json
from functools import partial

from ptl_fast.recovery import (
    token_budget,
)
from ptl_fast.recovery.token_budget import ClosingPhase
from support.recovery import held_out


def left(num_tokens: int | None, sizes: list[int], spent: list[int], until: bool) -> list[int]:
    """Of three rounds with shares 1/7, 2/7, 4/7, or equal ones where the data decides."""
    shares = [1 / 7, 2 / 7, 4 / 7] if until and num_tokens else [1 / 3] * 3
    return token_budget.tokens_left(num_tokens, shares, sizes, spent, shared_as_one=until)


def test_what_a_round_saves_goes_to_the_later_ones() -> None:
    until = partial(left, 700, [0, 0, 0], until=True)
    assert until([]) == [100, 200, 400]
    assert until([100]) == [200, 400]
    assert until([40]) == [220, 440], "60 saved, a third and two thirds of them"
    assert until([40, 100]) == [560], "the last round has all that is left"


def test_budget_is_spent_to_the_last_token_or_is_the_data() -> None:
    sizes = [50, 60, 70]
    assert left(100, sizes, [], until=False) == [33, 34, 33]
    assert left(None, sizes, [50], until=False) == [60, 70]
    assert sum(left(None, sizes, [20], until=True)) == 160


def test_checks_read_what_they_can_afford() -> None:
    """Of 8000 tokens in 2 rounds, a check may read 0.3 * 8000 / 16 = 150: at least eight documents,
    if there are so many.
    """
    assert token_budget.num_affordable([10] * 64, 8000, 2) == 15
    assert token_budget.num_affordable([10] * 12, 8000, 2) == 12
    assert token_budget.num_affordable([100] * 64, 8000, 2) == 8
    assert token_budget.num_affordable([100] * 3, 8000, 2) == 3


def test_closing_begins_with_recovery_or_is_the_last_quarter() -> None:
    closing = ClosingPhase(40, 100.0, held_out(num_tokens=60, recovered=1.5))
    assert (closing.begins, closing.ends) == (30, 40)
    assert closing.interval == 2, "60 tokens forward are 20 tokens' training, a tenth of two steps'"
    assert [step for step in range(1, 35) if closing.needs_check(step)] == list(range(2, 30, 2))
    closing.note(2, 2.0)
    assert (closing.begins, closing.ends) == (30, 40)
    closing.note(12, 1.5)
    assert (closing.begins, closing.ends) == (12, 16), "a third of twelve steps follows"
    assert not closing.needs_check(14)
    other = ClosingPhase(40, 100.0, held_out(num_tokens=60))
    other.restore(json.loads(json.dumps(closing.state())))
    assert other.state() == closing.state()
