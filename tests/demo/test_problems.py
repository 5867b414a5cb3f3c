"""The bundled problems: their parts never meet, and their answers are right."""

from ptl_fast.demo.problems import generate, part_of


def test_demo_parts_never_meet() -> None:
    problems = {
        part: {item["question"] for item in generate(2000, 7, part)}
        for part in ("training", "validation", "test")
    }
    assert not problems["training"] & problems["test"]
    assert not problems["training"] & problems["validation"]
    assert not problems["test"] & problems["validation"]
    assert all(
        part_of(question) == part for part, questions in problems.items() for question in questions
    )


def test_demo_answers_are_right() -> None:
    """Each thought is recomputed from its own text, and chains to the next."""
    for problem in generate(300, 8, "training"):
        *thoughts, last = problem["answer"].split(";")
        value = int(problem["question"].split("start with ")[1].split(",")[0])
        for thought in thoughts:
            left, right = thought.split("=")
            operator = next(symbol for symbol in "+-*" if symbol in left)
            before, operand = map(int, left.split(operator))
            assert before == value
            value = {"+": before + operand, "-": before - operand, "*": before * operand}[
                operator
            ] % 100
            assert int(right) == value
        assert last == f"#### {value}"
