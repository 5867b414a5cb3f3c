"""Figures from rows alone."""

import sys
from typing import Any

import pytest

from benchmarks.methods import figures


def test_figures_show_every_line(results: dict[str, Any]) -> None:
    figure = figures.budget_figure(results, "budget")
    assert figure is not None
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["PTL", "other"]
    line = figure.axes[0].containers[0][0]
    assert list(line.get_xdata()) == [1000, 2000]
    assert list(line.get_ydata()) == [91.0, 91.0]


def test_without_matplotlib_the_error_says_what_to_install(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        figures.rounds_figure(results)
