"""What a response to a problem is worth in reinforcement learning. Each reward is from 0 to 1;
--reward-weights adds them up.
"""

import re
from collections.abc import Callable

from ptl_fast.data import answers

NUMBER = re.compile(r"[+-]?\d+")


def accuracy(gold: str, response: str) -> float:
    """1 if the answer that the response marks is ``gold``; an answer that is not marked does not
    count.

    The same text is right and another whole number is wrong; of anything else math-verify judges
    whether it is equal.
    """
    answer = answers.final_answer(response)
    if not answer:
        return 0.0
    if answer == gold:
        return 1.0
    if NUMBER.fullmatch(answer) and NUMBER.fullmatch(gold):
        return float(int(answer) == int(gold))
    return float(answers.is_right(gold, response))


def format_(gold: str, response: str) -> float:
    r"""1 if the response marks an answer at all: in \boxed{}, or after #### or "answer is"."""
    return float(bool(answers.final_answer(response)))


REWARDS: dict[str, Callable[[str, str], float]] = {"accuracy": accuracy, "format": format_}


def parse_weights(text: str) -> dict[str, float]:
    """{reward: weight} from NAME=WEIGHT[,NAME=WEIGHT...].

    Raises:
        ValueError: an entry is malformed or unknown, or no weight is positive.
    """
    weights: dict[str, float] = {}
    for entry in text.split(","):
        name, _, weight = entry.strip().partition("=")
        if name not in REWARDS:
            raise ValueError(
                f"unknown reward {name!r} in --reward-weights {text}; choose {', '.join(REWARDS)}"
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
    if not all(0 <= weight < float("inf") for weight in weights.values()) or not any(
        weights.values()
    ):
        raise ValueError(
            f"--reward-weights {text}: weights must be finite and at least 0, and one of them"
            " above 0"
        )
    return weights


def gold_answer(answer: str) -> str:
    """The final answer in a data set's answer: what it marks, or else all of it."""
    marked = answers.final_answer(answer)
    return answer.strip() if marked is None else marked
