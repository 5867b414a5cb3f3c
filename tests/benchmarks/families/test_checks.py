"""One model of each kind loses neurons and layers exactly, or says why not; faults are found."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.families import checks, configs
from benchmarks.families.checks import EXACT
from ptl_fast.model import families
from ptl_fast.pruning import compact, whole_experts

KINDS = {
    # without a gate: linear layers, Conv1D, as a part of the layer, with ReLU squared
    "gpt_neox": (EXACT, EXACT),
    "gpt2": (EXACT, EXACT),
    "opt": (EXACT, EXACT),
    "nemotron": (EXACT, EXACT),
    # gate and up in one, other names, other fields for the width
    "glm4": (EXACT, EXACT),
    "lfm2": (EXACT, EXACT),
    "falcon_h1": (EXACT, EXACT),
    "granitemoehybrid": (EXACT, EXACT),
    "recurrent_gemma": (EXACT, EXACT),
    # lists of layers, configs of single layers
    "bamba": (EXACT, EXACT),
    "gpt_neo": (EXACT, EXACT),
    "gemma4_unified_text": (EXACT, EXACT),
    # experts: alone; interleaved, with biases; shared ones; beside dense layers of their width
    "mixtral": (EXACT, EXACT),
    "gpt_oss": (EXACT, EXACT),
    "ernie4_5_moe": (EXACT, EXACT),
    "jamba": (EXACT, "depends on its number"),
    "jetmoe": ("mixture of experts", EXACT),
    # what depends on the layers' numbers
    "bitnet": ("has the FFN's width too", EXACT),
    "minicpm3": (EXACT, "residual_scale"),
    "gemma3n_text": ("no field of its config", "which is outside the layers"),
    "bert": ("is_decoder false", "is_decoder false"),
}
# an expert of each layer goes
WITH_EXPERTS = ("mixtral", "gpt_oss", "ernie4_5_moe", "jamba")


def tiny(model_type: str) -> configs.Tiny:
    return next(each for each in configs.every() if each.label == model_type)


@pytest.mark.parametrize("model_type", KINDS)
def test_each_kind_is_exact_or_has_its_reason(model_type: str) -> None:
    outcome = checks.check(tiny(model_type))
    for found, expected in zip((outcome.neurons, outcome.layers), KINDS[model_type], strict=True):
        assert expected in found
        assert (found == EXACT) == (expected == EXACT)
    assert not outcome.wrong
    experts = {"jetmoe": "form that is not known", **dict.fromkeys(WITH_EXPERTS, EXACT)}
    assert experts.get(model_type, "") in outcome.experts
    assert bool(outcome.experts) == (model_type in experts)


def test_a_router_of_other_experts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def rotated(places: torch.Tensor, dim: int) -> Callable:
        # the last dimension is the hidden size of a router, and of no expert's matrices
        return lambda tensor: tensor.index_select(
            dim, places.roll(1) if tensor.dim() == 2 else places
        )

    monkeypatch.setattr(whole_experts, "selected", rotated)
    outcome = checks.check(tiny("mixtral"))
    assert outcome.experts.startswith("WRONG: the compacted model differs from the masked one")
    assert outcome.neurons == EXACT
    assert outcome.wrong


def test_a_neuron_too_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compact.compact_ffn_

    def shifted(tensors: list, kept_LK: torch.Tensor) -> torch.Tensor:
        tensors[3][0][0].copy_(tensors[3][0][0].roll(1, 0))
        return whole(tensors, kept_LK)

    monkeypatch.setattr(compact, "compact_ffn_", shifted)
    outcome = checks.check(tiny("gpt_neox"))
    assert outcome.neurons.startswith("WRONG: the compacted model differs from the masked one")
    assert outcome.layers == EXACT
    assert outcome.wrong


def test_a_config_that_does_not_follow_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_number(config: object, kept: list[int]) -> None:
        config.num_hidden_layers = len(kept)  # type: ignore[attr-defined]
        config.layer_types = config.layer_types[: len(kept)]  # type: ignore[attr-defined]

    monkeypatch.setattr(families, "follow_layers", only_the_number)
    outcome = checks.check(tiny("gemma4_unified_text"))
    assert outcome.layers.startswith(("WRONG", "ERROR"))
