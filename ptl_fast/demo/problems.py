"""The demo's task: chains of 2 to 4 operations modulo 100, with a chain-of-thought answer.

A problem is a {question, answer} pair. A question belongs to the training, validation or test part
by a hash of its own text, so no held-out problem can occur in training data, whatever the seeds.
"""

import hashlib
import random
from typing import Literal

OPERATIONS = {"+": "add", "-": "subtract", "*": "multiply by"}
Part = Literal["training", "validation", "test"]


def solve(start: int, steps: list[tuple[str, int]]) -> str:
    """Return the chain of thought and the final line, for example ``47+8=55;55*3=65;#### 65``."""
    thoughts, value = [], start
    for operator, operand in steps:
        before = value
        value = {"+": before + operand, "-": before - operand, "*": before * operand}[
            operator
        ] % 100
        thoughts.append(f"{before}{operator}{operand}={value};")
    return "".join(thoughts) + f"#### {value}"


def draw_problem(rng: random.Random) -> dict[str, str]:
    """Draw one problem: a start below 100, then 2 to 4 operations with operands of one digit."""
    start = rng.randrange(100)
    steps = [(rng.choice("+-*"), rng.randrange(1, 10)) for _ in range(rng.randint(2, 4))]
    words = "".join(f", {OPERATIONS[operator]} {operand}" for operator, operand in steps)
    return {"question": f"Modulo 100, start with {start}{words}.", "answer": solve(start, steps)}


def part_of(question: str) -> Part:
    """The part that a question belongs to: 90% training, 5% validation, 5% test; a property of its
    text alone.
    """
    share = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") / 2**32
    return "test" if share < 0.05 else "validation" if share < 0.1 else "training"


def generate(num_problems: int, seed: int, part: Part) -> list[dict[str, str]]:
    """Return ``num_problems`` distinct problems of one part. The same seed gives the same problems
    on every machine.
    """
    rng = random.Random(seed)
    problems: dict[str, dict[str, str]] = {}
    while len(problems) < num_problems:
        problem = draw_problem(rng)
        if part_of(problem["question"]) == part:
            problems.setdefault(problem["question"], problem)
    return list(problems.values())
