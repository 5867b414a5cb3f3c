"""Schedules reach their target in equal or proportional, aligned steps, or name the setting."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ptl_fast.config.prune import PruneSettings
from ptl_fast.model.widths import ExpertLimits
from ptl_fast.pruning.schedule import expert_counts, with_bias
from support.plans import rounds


def schedule(
    width: int = 1536, num_layers: int = 12, **settings: object
) -> list[tuple[str, int, int]]:
    return [
        (step.kind, step.width, step.num_layers) for step in rounds(width, num_layers, **settings)
    ]


def test_two_rounds_to_five_sixths() -> None:
    assert schedule(keep=0.83, rounds=2) == [("neurons", 1408, 12), ("neurons", 1280, 12)]


def test_default_is_five_rounds_or_as_many_as_fit() -> None:
    assert len(schedule(keep=0.5, width=14336)) == 5
    assert [width for _, width, _ in schedule(keep=0.65)] == [1408, 1280, 1152, 1024]


def experts(number: int = 128, groups: int = 1, fewest: int = 8, **settings: object) -> list[int]:
    limits = ExpertLimits(number=number, active=8, groups=groups, fewest=fewest)
    return expert_counts(PruneSettings(**settings), limits)  # type: ignore[arg-type]


def test_experts_go_at_once_or_in_steps() -> None:
    assert experts(keep_experts=0.5) == [64]
    assert experts(keep_experts=0.5, experts_per_round=24) == [104, 80, 64]
    assert experts(keep_experts=0.4, groups=8, experts_per_round=32) == [96, 64, 48]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"keep_experts": 0.05},
            "leaves 6 of 128 experts a layer, and for the 8 that a token goes to at least 8 must"
            " stay; raise --keep-experts to at least 0.0625",
        ),
        ({"keep_experts": 0.05, "groups": 8, "fewest": 16}, "as many of each of its 8 groups"),
        ({"keep_experts": 0.999}, "rounds to all of them"),
        ({"keep_experts": 0.5, "groups": 8, "experts_per_round": 12}, "give 16"),
        ({"keep_experts": 0.5, "number": 0}, "the model has no experts"),
    ],
)
def test_experts_that_cannot_go_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experts(**given)


def test_equal_steps_remove_as_many_neurons_in_every_round() -> None:
    assert [width for _, width, _ in schedule(keep=0.5, width=14336, steps="equal")] == [
        12928,
        11520,
        9984,
        8576,
        7168,
    ]


def test_proportional_steps_remove_the_same_fraction_in_every_round() -> None:
    assert [width for _, width, _ in schedule(keep=1 / 16, width=4096, rounds=4)] == [
        2048,
        1024,
        512,
        256,
    ]
    assert [
        width for _, width, _ in schedule(keep=0.125, width=768, rounds=4, width_multiple=32)
    ] == [448, 256, 160, 96]


@given(
    multiple=st.sampled_from([1, 8, 128]),
    num_multiples=st.integers(2, 120),
    rest=st.integers(0, 127),
    kept=st.floats(0.01, 0.99),
    data=st.data(),
)
def test_as_many_proportional_steps_as_fit_reach_the_target(
    multiple: int, num_multiples: int, rest: int, kept: float, data: st.DataObject
) -> None:
    width = multiple * num_multiples + rest % multiple
    target = round(kept * width / multiple) * multiple
    assume(0 < target < width)
    rounds = data.draw(st.integers(1, -(-(width - target) // multiple)))
    widths = [
        each
        for _, each, _ in schedule(keep=kept, width=width, rounds=rounds, width_multiple=multiple)
    ]
    assert len(widths) == rounds
    assert widths[-1] == target
    assert all(
        before > after and after % multiple == 0
        for before, after in itertools.pairwise([width, *widths])
    )


def test_neurons_per_round_sets_the_number_of_rounds() -> None:
    assert [
        width for _, width, _ in schedule(keep=0.5, neurons_per_round=300, width_multiple=4)
    ] == [1236, 936, 768]


@pytest.mark.parametrize(
    ("order", "kinds"),
    [("neurons-then-layers", "nnll"), ("layers-then-neurons", "llnn"), ("alternate", "nlnl")],
)
def test_order_of_rounds(order: str, kinds: str) -> None:
    steps = schedule(keep=0.83, rounds=2, drop_layers=2, order=order)
    assert "".join(kind[0] for kind, _, _ in steps) == kinds
    assert steps[-1][1:] == (1280, 10)


def test_layers_per_round() -> None:
    assert [count for _, _, count in schedule(keep=1.0, drop_layers=5, layers_per_round=2)] == [
        10,
        8,
        7,
    ]


def test_keep_one_only_trains() -> None:
    assert schedule(keep=1.0, rounds=3) == [("none", 1536, 12)] * 3


@pytest.mark.parametrize(
    ("split", "expected"), [("equal", [0.25] * 4), ("growing", [1 / 15, 2 / 15, 4 / 15, 8 / 15])]
)
def test_recovery_shares(split: str, expected: list[float]) -> None:
    steps = rounds(1536, 4, keep=0.5, rounds=4, recovery_split=split)
    assert [step.recovery_share for step in steps] == pytest.approx(expected)


def test_small_shares_are_raised_to_an_optimizer_step_and_the_others_keep_their_growth() -> None:
    """100 tokens a step of 10,000: shares 1, 8, 64, 512 of 585 become 1%, and 1, 8, 64 of 73 of the
    other 99%.
    """
    common = {
        "keep": 0.5,
        "rounds": 4,
        "recovery_growth": 8.0,
        "sequence_length": 25,
        "recovery_tokens": 10_000,
    }
    shares = [step.recovery_share for step in rounds(1536, 4, **common, global_batch=4)]
    assert shares == pytest.approx([0.01, 0.99 / 73, 0.99 * 8 / 73, 0.99 * 64 / 73])
    two_sequences = [step.recovery_share for step in rounds(1536, 4, **common, global_batch=1)]
    assert two_sequences[0] == pytest.approx(0.005)


def test_shares_are_equal_where_the_budget_has_no_step_for_each_round() -> None:
    batch = {"sequence_length": 256, "global_batch": 4}
    steps = rounds(1536, 4, keep=0.5, rounds=4, recovery_tokens=1000, **batch)
    assert [step.recovery_share for step in steps] == pytest.approx([0.25] * 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"keep": 0.01}, "rounds to zero width", id="zero-width"),
        pytest.param({"keep": 0.99}, "rounds to the full width", id="full-width"),
        pytest.param(
            {"keep": 1.0, "drop_layers": 12},
            "leaves none of the model's 12 layers",
            id="every-layer",
        ),
        pytest.param({"keep": 0.83, "rounds": 3}, "use at most 2 rounds", id="too-many-rounds"),
        pytest.param(
            {"keep": 0.5, "rounds": 3, "neurons_per_round": 128},
            "give one of the two",
            id="contradiction",
        ),
    ],
)
def test_impossible_schedules_name_the_setting(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(**settings)


def test_too_much_protection_names_the_setting() -> None:
    with pytest.raises(
        ValueError, match=r"round 1 keeps 768 .* protects 1228; lower --protect-share"
    ):
        schedule(keep=0.5, rounds=1, protect="general.txt", protect_share=0.8, scorer="activation")
    assert schedule(
        keep=0.5, rounds=4, protect="general.txt", protect_share=0.5, scorer="activation"
    )
    assert schedule(keep=0.5, rounds=1, protect="general.txt", protect_share=0.8), (
        "reconstruction keeps none by rank"
    )


def test_schedule_has_the_lowest_widths() -> None:
    steps = rounds(1536, 12, threshold=0.1, keep=0.5, rounds=2, drop_layers=1)
    assert [(step.kind, step.width) for step in steps] == [
        ("neurons", 768),
        ("neurons", 768),
        ("layers", 768),
    ]
    protected = {"protect": "general.txt", "protect_share": 0.8}
    assert rounds(1536, 12, threshold=0.1, keep=0.5, rounds=1, **protected), (
        "protection limits what goes, not what may be asked for"
    )


def test_bias_comes_with_the_first_round_of_neurons_and_stays() -> None:
    settings = {"keep": 0.5, "rounds": 2, "drop_layers": 1, "compensate": False}
    for order, expected in (
        ("layers-then-neurons", [False, True, True]),
        ("neurons-then-layers", [True, True, True]),
    ):
        steps = with_bias(rounds(1536, 12, order=order, **settings), 1536)
        assert [step.down_bias for step in steps] == expected
    assert [step.down_bias for step in with_bias(rounds(1536, 12, keep=1.0), 1536)] == [False]
