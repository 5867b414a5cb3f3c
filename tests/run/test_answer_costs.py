"""The report says what an answer costs, and how many right ones a minute that makes."""

from ptl_fast.run import answer_costs

CHAT = {
    "pass@1": 0.5,
    "pass@2": 0.7,
    "response_tokens": 123.4,
    "cut_off": 0.1,
    "repeating": 0.0,
    "seconds_per_answer": 1.5,
}


def test_a_row_for_each_model() -> None:
    slower = {**CHAT, "pass@1": 0.25, "seconds_per_answer": 3.0}
    stages = [
        ("dense", {"nll": {"nll": 2.0}, "chat": CHAT}),
        ("round 1 pruned", {"nll": {"nll": 2.0}, "chat": slower}),
    ]
    lines = [line.split() for line in answer_costs.table(stages).splitlines()]
    assert " ".join(lines[2]) == "| chat | dense | 50.0% | 123 | 10.0% | 0.0% | 1.50 | 20.0 |"
    assert (
        " ".join(lines[3]) == "| chat | round 1 pruned | 25.0% | 123 | 10.0% | 0.0% | 3.00 | 5.0 |"
    )
    assert len(lines) == 4


def test_nothing_without_a_chat_task() -> None:
    assert answer_costs.table([("dense", {"nll": {"nll": 2.0}})]) == ""
