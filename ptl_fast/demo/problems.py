"""The demo's task: arithmetic modulo 100 in 2 to 4 steps, with chain-of-thought answers.

A problem is a {question, answer} pair. A hash of the question decides whether it belongs to the
training, validation or test part, so no held-out problem can occur in training data, whatever the
seeds.
"""

import hashlib
import random
from typing import Literal

OPERATIONS = {"+": "add", "-": "subtract", "*": "multiply by"}
Part = Literal["training", "validation", "test"]


def solve(start: int, steps: list[tuple[str, int]]) -> str:
    """Return the chain of thought and the final answer, such as ``47+8=55;55*3=65;#### 65``.

    Args:
        start: the number to start with, in [0, 100).
        steps: (operator, operand) pairs, applied from left to right.
    """
    thoughts, value = [], start
    for operator, operand in steps:
        before = value
        value = {"+": before + operand, "-": before - operand, "*": before * operand}[
            operator
        ] % 100
        thoughts.append(f"{before}{operator}{operand}={value};")
    return "".join(thoughts) + f"#### {value}"


def as_prompt(problem: dict[str, str]) -> str:
    """The text that the bundled model was trained to complete."""
    return f"Question: {problem['question']}\nAnswer:"


def draw_problem(rng: random.Random) -> dict[str, str]:
    """Draw one problem: a start below 100, then 2 to 4 operations with operands from 1 to 9."""
    # the order of these draws is part of the data: another one gives other problems for a seed
    start = rng.randrange(100)
    steps = [(rng.choice("+-*"), rng.randrange(1, 10)) for _ in range(rng.randint(2, 4))]
    words = "".join(f", {OPERATIONS[operator]} {operand}" for operator, operand in steps)
    return {"question": f"Modulo 100, start with {start}{words}.", "answer": solve(start, steps)}


def part_of(question: str) -> Part:
    """The part that a question's text puts it in: 90% training, 5% validation, 5% test."""
    # a hash as a uniform number in [0, 1); not hash(), which differs between Python processes
    share = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") / 2**32
    return "test" if share < 0.05 else "validation" if share < 0.1 else "training"


def generate(num_problems: int, seed: int, part: Part) -> list[dict[str, str]]:
    """Return ``num_problems`` distinct problems of one part, the same on every machine per seed.

    The part must have that many, or this never returns. Test and validation problems take about 20
    draws each.
    """
    rng = random.Random(seed)
    problems: dict[str, dict[str, str]] = {}
    while len(problems) < num_problems:
        problem = draw_problem(rng)
        if part_of(problem["question"]) == part:
            problems.setdefault(problem["question"], problem)
    return list(problems.values())
