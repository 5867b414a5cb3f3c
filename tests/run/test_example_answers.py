"""The report shows problems that became wrong or right, with every model's answer."""

import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ptl_fast.base.run_files import RunFiles
from ptl_fast.evaluation.kept_answers import KeptAnswer, keep
from ptl_fast.run import example_answers

# dense, pruned and recovered of eight problems in each of the ways that three verdicts can go
VERDICTS = list(itertools.product((True, False), repeat=3)) * 8
NASTY = "</pre><script>alert(1)</script>\n\n# No heading\n\x1b[2J```\u2028<b>&"


def answers(model: int, said: str = "") -> dict[str, list[KeptAnswer]]:
    return {
        "math": [
            keep(
                f"{number}?{said}",
                f"E{number}{said}",
                f"A{model}.{number}{said}",
                right=each[model],
            )
            for number, each in enumerate(VERDICTS)
        ]
    }


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    files = RunFiles(tmp_path)
    for number in (1, 2):
        files.round(number).path.mkdir()
    files.dense_answers.write(answers(0))
    files.round(2).pruned_answers.write(answers(1))
    files.round(2).recovered_answers().write(answers(2))
    return files


def test_what_changed_is_counted_and_shown_first(files: RunFiles) -> None:
    entry = example_answers.collect(files, [{"round": 1}, {"round": 2}])["math"]
    assert entry["compared"] == 64
    assert entry["right"] == {"dense": 32, "round 2 pruned": 32, "round 2 recovered": 32}
    # by the dense model and the last one
    assert set(entry["changes"].values()) == {16}
    shown = [each["change"] for each in entry["problems"]]
    assert shown == ["became wrong"] * 3 + ["became right"] * 2 + ["stayed wrong", "stayed right"]
    for problem in entry["problems"]:
        dense, pruned, recovered = problem["answers"].values()
        number = problem["number"] - 1
        assert problem["question"] == f"{number}?"
        assert [dense["right"], pruned["right"], recovered["right"]] == list(VERDICTS[number])
        assert recovered["answer"] == f"A2.{number}"


def test_an_undone_recovery_is_of_no_model(files: RunFiles) -> None:
    records = [{"round": 1}, {"round": 2, "worse_recovery": {"undone": True}}]
    entry = example_answers.collect(files, records)["math"]
    assert list(entry["right"]) == ["dense", "round 2 pruned"]


def test_the_last_extension_is_the_round(files: RunFiles) -> None:
    files.round(2).recovered_answers(1).write(answers(0))
    records = [{"round": 2, "extra_recovery": [{}]}]
    entry = example_answers.collect(files, records)["math"]
    assert entry["changes"]["became wrong"] == 0


def test_a_round_that_measured_nothing_anew_has_the_answers_before_it(files: RunFiles) -> None:
    records = [{"round": 2}, {"round": 3}]
    assert list(example_answers.collect(files, records)["math"]["right"])[1] == "round 2 pruned"


def test_no_examples_without_answers(files: RunFiles, tmp_path: Path) -> None:
    assert example_answers.collect(files, []) == {}
    assert example_answers.collect(RunFiles(tmp_path / "older"), [{"round": 1}]) == {}
    assert example_answers.to_markdown({}) == example_answers.to_html({}) == ""


def test_what_a_model_says_is_text_and_bounded(files: RunFiles) -> None:
    for file, model in ((files.dense_answers, 0), (files.round(2).recovered_answers(), 2)):
        file.write(answers(model, NASTY + "long " * 2000))
    examples: dict[str, Any] = example_answers.collect(files, [{"round": 2}])
    page, text = example_answers.to_html(examples), example_answers.to_markdown(examples)
    parsed = ElementTree.fromstring(f"<section>{page}</section>")
    assert not [each.tag for each in parsed.iter() if each.tag in ("script", "b")]
    assert "<script>" in "".join(parsed.itertext())
    assert len(page) < 40_000
    assert len(text) < 40_000
    for line in text.splitlines():
        if "No heading" in line or "```" in line or "script" in line:
            assert line.startswith("    ")
    assert "\x1b" not in text
