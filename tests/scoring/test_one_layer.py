"""Layers that are walked one by one see and give what they do in a whole forward pass."""

from pathlib import Path

import pytest
import torch

from ptl_fast.data.batching import document_batches
from ptl_fast.model.families import decoder_layers, find_family
from ptl_fast.scoring.one_layer import walking
from support.least_squares import long_documents
from support.models import FAMILIES, make_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("on_disk", [False, True])
def test_hidden_states_are_those_of_a_whole_forward_pass(
    family: str, on_disk: bool, tmp_path: Path
) -> None:
    model, tokens = make_model(family), long_documents()
    found = find_family(model)
    layers = decoder_layers(model, found)
    with torch.inference_mode():
        batches = list(document_batches(model, tokens, 2, "test"))
        expected = [
            model.base_model(**each.inputs, use_cache=False, output_hidden_states=True)
            for each in batches
        ]
    walk = walking(model, found, [tokens], 2, layers[0], tmp_path if on_disk else None)
    with walk as view, torch.inference_mode():
        for number, layer in enumerate(layers):
            for own, whole in zip(view.states.before.values(), expected, strict=True):
                assert torch.equal(own, whole.hidden_states[number]), number
            with view.at(layer):
                for each in batches:
                    view.base_model(**each.inputs, use_cache=False)
    # two files a batch, before and behind
    assert len(list(tmp_path.iterdir())) == 2 * len(batches) * on_disk
    with torch.inference_mode():
        again = model.base_model(**batches[0].inputs, use_cache=False).last_hidden_state
    assert torch.equal(again, expected[0].last_hidden_state)


def test_a_batch_that_skips_a_layer_is_noticed() -> None:
    model, tokens = make_model("llama"), long_documents()
    found = find_family(model)
    layers = decoder_layers(model, found)
    with (
        walking(model, found, [tokens], 2, layers[0]) as view,
        pytest.raises(AssertionError, match="every batch passes"),
        view.at(layers[0]),
    ):
        pass
