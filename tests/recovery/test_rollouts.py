"""Rollouts: as many in a pass as fit, every question before any twice, a seed for every step."""

import itertools

import pytest

from ptl_fast.recovery import rollouts
from ptl_fast.recovery.grpo.rollouts import rollouts_of as of_grpo
from ptl_fast.recovery.on_policy.rollouts import rollouts_of as of_opd
from support.recovery import grpo_config, opd_config


def test_every_problem_comes_once_before_any_comes_twice() -> None:
    rows = [{"prompt": str(number)} for number in range(7)]
    order = [row["prompt"] for row in rollouts.in_seeded_order(rows, 17, seed=4)]
    assert len(order) == 17
    assert set(order[:7]) == set(order[7:14]) == {row["prompt"] for row in rows}
    assert order[:7] != order[7:14]
    own = of_grpo(grpo_config(grpo_steps=None, grpo_prompts=32).grpo)
    assert rollouts.num_steps(70, own) == 2
    assert rollouts.num_steps(7, own) == 1


@pytest.mark.parametrize(("num_ranks", "expected"), [(1, (4, 8)), (2, (4, 4))])
def test_rollouts_are_split_by_tokens(
    num_ranks: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of 2 x 256 tokens holds five rollouts of 100, and four divide a rank's 16 or 32."""
    monkeypatch.setattr("ptl_fast.base.distributed.world_size", lambda: num_ranks)
    settings = grpo_config(grpo_prompts=8, grpo_prompt_tokens=60, grpo_response_tokens=40)
    assert rollouts.split(of_grpo(settings.grpo), 2 * 256) == expected
    settings.grpo.grpo_micro_batch = 20
    assert rollouts.split(of_grpo(settings.grpo), 2 * 256)[0] == 16, (
        "the largest number up to 20 that divides a rank's rollouts"
    )
    monkeypatch.setattr("ptl_fast.base.distributed.world_size", lambda: 3)
    with pytest.raises(ValueError, match="--grpo-rollouts 4 do not divide among 3 ranks"):
        rollouts.split(of_grpo(settings.grpo), 2 * 256)
    with pytest.raises(ValueError, match="--opd-prompts 8 do not divide among 3 ranks"):
        rollouts.split(of_opd(opd_config("teacher").opd), 2 * 256)


def test_every_step_and_rank_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = set()
    for rank in (0, 1, 7):
        monkeypatch.setattr("ptl_fast.base.distributed.rank", lambda rank=rank: rank)
        seeds |= {
            rollouts.seed_of(seed, step) for seed, step in itertools.product((0, 1), (0, 1, 9999))
        }
    assert len(seeds) == 18
