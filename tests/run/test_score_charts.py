"""What scores decided is shown as it was decided."""

from xml.etree import ElementTree

import pytest
import torch

from ptl_fast.pruning.plan import PruningPlan
from ptl_fast.run import score_charts
from ptl_fast.run.history import RoundHistory

# Layer 0 loses its neurons of lowest score; layer 1 is the other way round.
SCORES = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)


def history(scores: torch.Tensor | None = SCORES, dropped: list[int] | None = None) -> RoundHistory:
    plan = PruningPlan(
        round=1,
        kind="neurons",
        scorer="activation",
        width=2,
        num_layers=2,
        kept_neurons=[[2, 3], [0, 1]],
        dropped_layers=dropped or [],
        highest_removed=[2.0, 2.0],
        lowest_kept=[3.0, 3.0],
    )
    return RoundHistory(1, plan, torch.arange(4).expand(2, 4), [0, 1], scores, [0.5, 0.25])


def rectangles(chart: str, kind: str) -> list[ElementTree.Element]:
    return [
        each for each in ElementTree.fromstring(chart).iter("rect") if each.get("class") == kind
    ]


def test_every_neuron_is_in_the_distribution() -> None:
    (chart,) = score_charts.distributions([history()])
    assert len(rectangles(chart, "fill c0")) == score_charts.NUM_BINS
    assert "Scores of round 1" in chart
    assert ">neurons</text>" in chart
    values, is_logarithm = score_charts._from_the_cut(history())
    assert is_logarithm
    # two of each layer on either side of the cut
    assert int((values < 0).sum()) == int((values > 0).sum()) == 4


@pytest.mark.parametrize("lowest", [-1.0, 0.0])
def test_scores_without_a_logarithm_have_a_place(lowest: float) -> None:
    scores = SCORES.clone()
    scores[0, 0] = lowest
    values, is_logarithm = score_charts._from_the_cut(history(scores))
    assert is_logarithm is (lowest == 0)
    assert bool(values.isfinite().all())
    score_charts.distributions([history(scores)])


def test_what_went_is_dark_by_rank() -> None:
    cells = rectangles(score_charts.what_went([history()]), "cell")
    shades = [each.attrib["fill-opacity"] for each in cells]
    assert shades == ["1.00", "1.00", "0.00", "0.00"] * 2


def test_a_dropped_layer_is_dark_all_over() -> None:
    cells = rectangles(score_charts.what_went([history(dropped=[1])]), "cell")
    assert [each.attrib["fill-opacity"] for each in cells[4:]] == ["1.00"] * 4


def test_a_run_without_scores_has_no_charts() -> None:
    bare = RoundHistory(1, history().plan, torch.arange(4).expand(2, 4), [0, 1], None, None)
    assert score_charts.distributions([bare]) == []
    assert score_charts.what_went([bare]) == score_charts.importance([bare]) == ""


def test_layers_are_as_important_as_they_change_the_stream() -> None:
    first, second = rectangles(score_charts.importance([history()]), "fill c0")
    assert float(first.attrib["width"]) == pytest.approx(2 * float(second.attrib["width"]), abs=0.2)
