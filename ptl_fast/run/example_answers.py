"""A few problems with each model's answers beside one another: what became wrong, what right.

The answers are those that the evaluations got (ptl_fast/evaluation/kept_answers.py), of the
original model and of the last round, after pruning and after recovery.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ptl_fast.base import html_page
from ptl_fast.evaluation.kept_answers import KeptAnswer, shortened

if TYPE_CHECKING:
    from ptl_fast.base.run_files import RunFiles

# Characters of a text in the report.
LONGEST = 600
# {(right before, right now): (what is said of it, how many are shown at most)}
CHANGES = {
    (True, False): ("became wrong", 3),
    (False, True): ("became right", 2),
    (False, False): ("stayed wrong", 1),
    (True, True): ("stayed right", 1),
}
HOW = (
    "Right and wrong are the evaluation's verdicts. The first of each kind are shown, not the"
    " most telling ones; long texts lose their middle."
)

Answers = dict[str, list[KeptAnswer]]
"""{task: answers to its first problems}"""


def collect(files: "RunFiles", records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the report shows of each task that asked for answers; {} if none did.

    All ranks must call this and get the same.

    Args:
        records: of the finished rounds.

    Returns:
        {task: {"compared": problems, "right": {model: how many}, "changes": {change: how many},
        "problems": those that are shown}}, each with its answers by model.
    """
    dense = files.dense_answers.found()
    models = _of_last_round(files, records) if dense else {}
    if not models:
        return {}
    return {
        task: _compared({name: each[task] for name, each in {"dense": dense, **models}.items()})
        for task in dense
        if all(task in each for each in models.values())
    }


def _of_last_round(files: "RunFiles", records: Sequence[dict[str, Any]]) -> dict[str, Answers]:
    """{name: answers} of the models of the last round that was evaluated: pruned, recovered."""
    for record in reversed(records):
        number, own = record["round"], files.round(record["round"])
        found = {f"round {number} pruned": own.pruned_answers.found()}
        # those of a recovery that was undone are of no model that there is
        if not record.get("worse_recovery", {}).get("undone"):
            extension = len(record.get("extra_recovery", []))
            found[f"round {number} recovered"] = own.recovered_answers(extension).found()
        there = {name: answers for name, answers in found.items() if answers}
        if there:
            return there
    return {}


def _compared(models: dict[str, list[KeptAnswer]]) -> dict[str, Any]:
    """One task's entry, of every model's answers to the same problems; the dense one's first."""
    problems = [_problem(models, index) for index in range(min(map(len, models.values())))]
    shown = []
    for change, most in CHANGES.values():
        shown += [each for each in problems if each["change"] == change][:most]
    changes = [each["change"] for each in problems]
    return {
        "compared": len(problems),
        "right": {
            name: sum(each["answers"][name]["right"] for each in problems) for name in models
        },
        "changes": {change: changes.count(change) for change, _ in CHANGES.values()},
        "problems": shown,
    }


def _problem(models: dict[str, list[KeptAnswer]], index: int) -> dict[str, Any]:
    """One problem, with its texts as long as a report may have them."""
    answers = {name: each[index] for name, each in models.items()}
    first, *_, last = answers.values()
    cut = functools.partial(shortened, longest=LONGEST)
    return {
        "number": index + 1,
        "change": CHANGES[first["right"], last["right"]][0],
        "question": cut(first["question"]),
        "expected": cut(first["expected"]),
        "answers": {
            name: {"answer": cut(each["answer"]), "right": each["right"]}
            for name, each in answers.items()
        },
    }


def sentence(task: str, entry: dict[str, Any]) -> str:
    """How many of a task's problems went which way."""
    changes = ", ".join(f"{count} {change}" for change, count in entry["changes"].items())
    return f"{task}, {entry['compared']} problems: {changes}."


class Text(NamedTuple):
    """A text with its name: a question, or somebody's answer."""

    title: str
    text: str


def _texts(problem: dict[str, Any]) -> list[Text]:
    """The texts of a problem, from its question to the last model's answer."""
    found = [Text("question", problem["question"]), Text("expected", problem["expected"])]
    for name, each in problem["answers"].items():
        found.append(Text(f"{name}: {'right' if each['right'] else 'wrong'}", each["answer"]))
    return found


def _title(problem: dict[str, Any]) -> str:
    return f"Problem {problem['number']} {problem['change']}"


def to_markdown(examples: dict[str, dict[str, Any]]) -> str:
    """The section's content; texts are indented, so that nothing in them is markdown."""
    parts = [HOW] if examples else []
    for task, entry in examples.items():
        parts.append(sentence(task, entry))
        for problem in entry["problems"]:
            parts.append(f"### {_title(problem)}")
            for title, text in _texts(problem):
                parts.append(f"{title[0].upper()}{title[1:]}:\n\n{_indented(text)}")
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    # splitlines: also at the line ends that are not \n, after which a text might leave its block
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines()) or "    (nothing)"


def to_html(examples: dict[str, dict[str, Any]]) -> str:
    """The section's content: a problem's texts beside one another where there is room."""
    parts = [html_page.note(HOW)] if examples else []
    for task, entry in examples.items():
        parts.append(html_page.paragraphs([sentence(task, entry)]))
        for problem in entry["problems"]:
            texts = [html_page.quoted(*each) for each in _texts(problem)]
            parts.append(html_page.subsection(_title(problem), html_page.cards(texts)))
    return "\n".join(parts)
