"""The scorers that there are."""

from ptl_fast.baselines import SCORERS
from ptl_fast.scoring.expert_scorers import EXPERT_SCORERS
from ptl_fast.scoring.scorers import LAYER_SCORERS


def test_registries_hold_the_documented_names() -> None:
    neuron_scorers = {
        "reconstruction",
        "activation",
        "output-change",
        "fluctuation",
        "gradient",
        "magnitude",
        "reference",
        "random",
        "minitron",
        "wanda",
        "llm-pruner",
        "flap",
    }
    assert set(SCORERS) == neuron_scorers
    assert set(EXPERT_SCORERS) == {"reap", "output", "frequency", "random"}
    assert set(LAYER_SCORERS) == {"residual", "block-influence", "angular", "last"}
