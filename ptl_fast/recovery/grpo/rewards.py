"""Verifiable rewards for GRPO: functions (gold answer, response) -> reward in [0, 1].

The total reward is their weighted sum, with the weights of --reward-weights.
"""

import re
from collections.abc import Callable

from ptl_fast.config.checking import nearest
from ptl_fast.data import answers

NUMBER = re.compile(r"[+-]?\d+")


def accuracy(gold: str, response: str) -> float:
    r"""1 if the response's marked answer equals ``gold``, else 0; an unmarked answer earns 0.

    Marked means in \boxed{}, or after #### or "answer is". Equal strings and integers are compared
    directly; math-verify decides about everything else, such as fractions and formulas.
    """
    answer = answers.final_answer(response)
    # an empty box counts as unmarked
    if not answer:
        return 0.0
    if answer == gold:
        return 1.0
    # two integers need no parser, and "07" equals "7"
    if NUMBER.fullmatch(answer) and NUMBER.fullmatch(gold):
        return float(int(answer) == int(gold))
    return float(answers.is_right(gold, response))


def format_(gold: str, response: str) -> float:
    r"""1 if the response marks any answer, in \boxed{}, or after #### or "answer is"; else 0."""
    return float(bool(answers.final_answer(response)))


REWARDS: dict[str, Callable[[str, str], float]] = {"accuracy": accuracy, "format": format_}


def parse_weights(text: str) -> dict[str, float]:
    """Parse --reward-weights, NAME=WEIGHT[,NAME=WEIGHT...], into {reward: weight}.

    Raises:
        ValueError: an entry is malformed, unknown or repeated, a weight is negative or not finite,
            or no weight is positive.
    """
    weights: dict[str, float] = {}
    for entry in text.split(","):
        name, _, weight = entry.strip().partition("=")
        if name not in REWARDS:
            raise ValueError(
                f"unknown reward {name!r} in --reward-weights {text}; choose {', '.join(REWARDS)}"
                f"{nearest(name, REWARDS)}"
            )
        if name in weights:
            raise ValueError(f"--reward-weights {text} names {name} twice")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise ValueError(
                f"--reward-weights {text}: {entry!r} is not NAME=WEIGHT, such as"
                " accuracy=0.9,format=0.1"
            ) from None
    # this also refuses NaN, which fails every comparison
    if not all(0 <= weight < float("inf") for weight in weights.values()) or not any(
        weights.values()
    ):
        raise ValueError(
            f"--reward-weights {text}: weights must be finite and at least 0, and one of them"
            " above 0"
        )
    return weights


def gold_answer(answer: str) -> str:
    """The final answer in a data set's answer column: the marked part, or else the whole text."""
    marked = answers.final_answer(answer)
    return answer.strip() if marked is None else marked
