"""The authors' published rule, by hand: six neurons, of which the rule's top_n is five."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.baselines import SCORERS, authors_rule
from ptl_fast.model.families import find_family
from ptl_fast.pruning.plan import plan_neurons
from ptl_fast.scoring.evidence import Samples
from support.models import make_model
from support.plans import neuron_round
from support.scores import evidence

# What gate_proj and up_proj answer to the tokens 0 to 3, halved: one row a token, one column a
# neuron. Attention adds nothing, and RMSNorm makes 2 of a one-hot embedding's 1. down_proj's input
# is silu(2 gate) * 2 up.
GATE = torch.tensor(
    [
        [3.0, 0.1, 0.2, 0.3, 0.4, 0.5],  # largest: neuron 0
        [0.1, 3.0, 0.2, 0.3, 0.4, 0.5],  # largest: neuron 1
        [0.5, 0.4, -3.0, 0.3, 0.2, 0.1],  # smallest: neuron 2
        [-3.0, 0.2, 0.3, 0.01, 0.2, 0.4],  # smallest: neuron 0
    ]
)
UP = torch.tensor(
    [
        [
            0.1,
            0.2,
            0.3,
            3.0,
            0.4,
            0.5,
        ],  # largest: neuron 3; after the activation too (2.32, then 1.20)
        [
            0.1,
            0.2,
            0.3,
            3.0,
            0.4,
            0.5,
        ],  # largest: neuron 3; after the activation neuron 1 (2.39, then 2.32)
        [
            0.5,
            0.4,
            0.3,
            0.2,
            -3.0,
            0.1,
        ],  # smallest: neuron 4; after the activation too (-1.44, then -0.01)
        [
            0.5,
            0.4,
            0.3,
            -3.0,
            0.2,
            -0.5,
        ],  # smallest: neuron 3; after the activation neuron 5 (-0.55, then -0.06)
    ]
)
REASONING, GENERAL = (
    [[6, 7, 0], [5, 1]],
    [[4, 0, 2], [3]],
)  # the last tokens count: 0 and 1, 2 and 3
# Five of six least: all but the largest. Five of six most: all but the smallest.
LEAST = [{2, 3, 4, 5}, {0, 1, 2, 4, 5}, {0, 2, 4, 5}]
MOST = [{1, 3, 4, 5}, {0, 1, 2, 5}, {0, 1, 2, 3}]
SELECTED = [2, 4, 5]  # {2} of gate, {4} of up, {4, 5} of down's input


def six_neurons(family: str) -> PreTrainedModel:
    shape = {
        "hidden_size": 4,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": 8,
    }
    model = make_model(family, num_hidden_layers=1, intermediate_size=6, **shape)
    layer = model.model.layers[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[:4] = torch.eye(4)
        layer.self_attn.o_proj.weight.zero_()
        layer.post_attention_layernorm.weight.fill_(1.0)
        if family == "phi3":
            layer.mlp.gate_up_proj.weight.copy_(torch.cat([GATE.T, UP.T]))
        else:
            layer.mlp.gate_proj.weight.copy_(GATE.T)
            layer.mlp.up_proj.weight.copy_(UP.T)
    return model


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_sets_of_every_view(family: str) -> None:
    model = six_neurons(family)
    assert round(authors_rule.TOP_SHARE * 6) == 5
    least = authors_rule.common_extremes(model, find_family(model), REASONING, largest=False)
    most = authors_rule.common_extremes(model, find_family(model), GENERAL, largest=True)
    assert (least, most) == ([LEAST], [MOST])
    selected = authors_rule.detect(model, find_family(model), REASONING, GENERAL)
    assert [row.nonzero().flatten().tolist() for row in selected] == [SELECTED]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_samples_are_fed_one_by_one_with_the_last_token_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = six_neurons("llama"), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    monkeypatch.setattr(authors_rule, "NUM_REASONING", 1)
    authors_rule.detect(model, find_family(model), REASONING, GENERAL)
    assert seen == [[[6, 7, 0, 0]], [[4, 0, 2, 2]], [[3, 3]]]


@pytest.mark.parametrize(
    ("width", "kept"),
    [
        pytest.param(4, [0, 1, 3, 5], id="selected-in-index-order"),
        pytest.param(3, [0, 1, 3], id="all-selected"),
        pytest.param(2, [1, 3], id="rest-in-index-order"),
    ],
)
def test_deletion_in_index_order(width: int, kept: list[int]) -> None:
    model = six_neurons("llama")
    samples = Samples(reasoning=REASONING, general=GENERAL)
    given = replace(evidence(None, model), samples=samples)  # type: ignore[arg-type]
    scorer = SCORERS["reference"]
    scores = scorer.compute(given)
    assert scorer.redundant_below is not None
    selected = scores < scorer.redundant_below
    step = neuron_round(width, 1)
    decided = plan_neurons(step, scores, None, "reference", selected)
    assert decided.kept_neurons == [kept]
    assert decided.num_redundant == [3]
