"""report.html is one well-formed page that has what report.json says, at every stage of a run."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ptl_fast import compress
from ptl_fast.run import publish, report_html
from support.runs import RUN, as_flags, kill_at


def parsed(file: Path) -> ElementTree.Element:
    """The page as XML: the strictest reader of HTML there is."""
    return ElementTree.fromstring(file.read_text().removeprefix("<!DOCTYPE html>"))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"recovery": "none", "rounds": 2}, id="without-recovery"),
        pytest.param({"rounds": 1, "recovery_tokens": 2000}, id="trained"),
        pytest.param(
            {"recovery": "none", "keep": 1.0, "rounds": 1, "drop_layers": 2}, id="layers-only"
        ),
        pytest.param(
            {"recovery": "none", "rounds": 1, "keep": 1.0, "slice_hidden": 0.75}, id="sliced"
        ),
    ],
)
def test_a_page_of_every_kind_of_run(
    options: dict[str, Any], tiny_run: dict[str, str], tmp_path: Path
) -> None:
    report = compress(**{**tiny_run, **RUN, **options, "output": tmp_path / "run"})
    page = parsed(tmp_path / "run" / "report.html")
    text = "".join(page.itertext())
    assert f"{report['final']['num_parameters']:,} parameters instead of" in text
    assert "loss on held-out answers, by round" in text
    assert "loss on held-out answers, by size" in text
    for record in report["rounds"]:
        assert f"round {record['round']} (" in text
        assert f"{record['eval']['nll']['nll']:.4g}" in text
    for name, value in {**report["config"], **report["environment"]}.items():
        assert name in text
        assert str(value) in text
    assert ("Scores of round 1" in text) is (options.get("keep") != 1.0)


def quality_dots(page: ElementTree.Element) -> list[str]:
    """What the dots of the chart of quality by round are called, with round and value."""
    svg = next(each for each in page.iter("svg") if each.get("aria-label", "").endswith("by round"))
    return ["".join(each.itertext()) for each in svg.iter("circle")]


def test_rounds_that_trained_nothing_show_the_pruned_model_alone(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {**tiny_run, **RUN, "rounds": 2, "recovery": "none"}
    report = compress(**{**settings, "output": tmp_path / "run"})
    page = parsed(tmp_path / "run" / "report.html")
    assert quality_dots(page) == [
        f"after pruning: {each['round']}, {each['eval_pruned']['nll']['nll']:.4g}"
        for each in report["rounds"]
    ]
    assert "after recovery" not in "".join(page.itertext()).partition("Everything else")[0]


def test_trained_rounds_have_a_dot_before_and_one_after(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {**tiny_run, **RUN, "rounds": 1, "recovery_tokens": 2000}
    report = compress(**{**settings, "undo_recovery": False, "output": tmp_path / "run"})
    (record,) = report["rounds"]
    assert quality_dots(parsed(tmp_path / "run" / "report.html")) == [
        f"after pruning: 1, {record['eval_pruned']['nll']['nll']:.4g}",
        f"after recovery: 1, {record['eval']['nll']['nll']:.4g}",
    ]


@pytest.mark.parametrize(
    ("extra", "shown"),
    [
        pytest.param({}, ["after pruning"], id="untrained"),
        pytest.param({"recovery_steps": 3}, ["after pruning", "after recovery"], id="trained"),
        pytest.param({"grpo": {}}, ["after pruning", "after recovery"], id="on-problems"),
        pytest.param(
            {"extra_recovery": [{"recovery_steps": 3}]},
            ["after pruning", "after recovery"],
            id="trained-by-an-extension",
        ),
        pytest.param(
            {
                "recovery_steps": 3,
                "worse_recovery": {"undone": True, "eval": {"nll": {"nll": 2.5}}},
            },
            ["after pruning", "after a recovery that was undone"],
            id="undone",
        ),
        pytest.param(
            {
                "recovery_steps": 3,
                "worse_recovery": {"undone": False, "eval": {"nll": {"nll": 2.0}}},
            },
            ["after pruning", "after recovery"],
            id="worse-and-kept",
        ),
    ],
)
def test_only_what_was_measured_has_a_dot(extra: dict[str, Any], shown: list[str]) -> None:
    evaluation = {"nll": {"nll": 2.0}}
    record = {"round": 1, "eval": evaluation, "eval_pruned": evaluation, "recovery_steps": 0}
    series = report_html._before_and_after([{**record, **extra}], ("nll", "nll"))
    assert [each.name for each in series] == shown
    values = [y for each in series for _, y in each.points]
    assert values[0] == 2.0
    assert values[1:] == [2.5 if "undone" in name else 2.0 for name in shown[1:]]


def test_rounds_are_counted_in_whole_numbers(tiny_run: dict[str, str], tmp_path: Path) -> None:
    compress(**{**tiny_run, **RUN, "rounds": 1, "recovery": "none", "output": tmp_path / "run"})
    page = parsed(tmp_path / "run" / "report.html")
    told = {
        svg.attrib["aria-label"]: [
            each.text for each in svg.iter("text") if each.get("text-anchor") == "middle"
        ]
        for svg in page.iter("svg")
    }
    assert told["loss on held-out answers by round"] == ["1", "round"]
    assert told["Size by round"] == ["0", "1", "round"]


def test_a_page_needs_nothing_from_elsewhere(tiny_run: dict[str, str], tmp_path: Path) -> None:
    compress(**{**tiny_run, **RUN, "rounds": 1, "recovery": "none", "output": tmp_path / "run"})
    page = parsed(tmp_path / "run" / "report.html")
    for each in page.iter():
        assert each.tag not in ("script", "link", "img", "iframe", "object")
        assert not {"src", "href", "style"} & each.attrib.keys()
    style = next(page.iter("style")).text or ""
    assert not re.search(r"url\(|@import", style)


def test_a_run_in_progress_has_a_page(tiny_run: dict[str, str], tmp_path: Path) -> None:
    flags = {**tiny_run, **RUN, "recovery": "none", "output": tmp_path / "run"}
    kill_at("write_report", publish, 2, as_flags(flags))
    assert "1 rounds are finished" in "".join(parsed(tmp_path / "run" / "report.html").itertext())


def test_names_from_outside_are_text(tiny_run: dict[str, str], tmp_path: Path) -> None:
    settings = {**tiny_run, **RUN, "rounds": 1, "recovery": "none"}
    compress(**{**settings, "output": tmp_path / "<i>run & co"})
    page = parsed(tmp_path / "<i>run & co" / "report.html")
    assert not list(page.iter("i"))
    assert "<i>run & co" in "".join(page.itertext())
