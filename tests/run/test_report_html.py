"""report.html is one well-formed page that has what report.json says, at every stage of a run."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ptl_fast import compress
from ptl_fast.run import publish
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
