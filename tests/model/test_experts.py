"""Experts run one by one compute what their layer does, and tell what each of them sees."""

import copy

import pytest
import torch

from ptl_fast.model.experts import View, experts_of, is_routed, layout, rows_of, stacks
from ptl_fast.model.families import decoder_layers, feed_forwards, find_family
from support.mixtures import ACTIVE, EXPERT_WIDTH, NUM_EXPERTS, TYPES, make_mixture
from support.numbers import ERRORS, relative_error


def test_nothing_but_stacks_has_a_layout() -> None:
    assert layout(torch.nn.Linear(3, 4)) is None


@pytest.mark.parametrize("model_type", TYPES)
def test_watched_experts_compute_what_unwatched_ones_do(
    model_type: str, input_ids: torch.Tensor
) -> None:
    model = make_mixture(model_type)
    with torch.no_grad():
        expected = model(input_ids).logits
        ffns = feed_forwards(model, find_family(model))
        handles = [
            ffn.down.register_forward_pre_hook(lambda module, args: None) for ffn in ffns.values()
        ]
        watched = model(input_ids).logits
        for handle in handles:
            handle.remove()
        assert torch.equal(model(input_ids).logits, expected)
    assert relative_error(watched, expected) < 10 * ERRORS[torch.float32]


@pytest.mark.parametrize("model_type", TYPES)
def test_every_expert_is_an_ffn_of_one_width(model_type: str) -> None:
    model = make_mixture(model_type)
    family = find_family(model)
    ffns = feed_forwards(model, family)
    assert {ffn.width for ffn in ffns.values()} == {EXPERT_WIDTH}
    layers = [len(stacks(layer)) for layer in decoder_layers(model, family)]
    assert sum(is_routed(ffn) for ffn in ffns.values()) >= NUM_EXPERTS * sum(layers)
    # the same objects every time, or their hooks would not be seen
    again = feed_forwards(model, family)
    assert all(ffn.down is again[name].down for name, ffn in ffns.items())


def test_rows_are_the_tokens_that_the_router_sends(input_ids: torch.Tensor) -> None:
    model = make_mixture("mixtral")
    ffns = list(feed_forwards(model, find_family(model)).values())[:NUM_EXPERTS]
    number, seen = torch.arange(input_ids.numel()).view(input_ids.shape), list[torch.Tensor]()
    for ffn in ffns:
        ffn.down.register_forward_pre_hook(
            lambda module, args: seen.append(rows_of(module, number))
        )
    with torch.no_grad():
        model(input_ids)
    # every token goes to so many experts, and to none twice
    assert torch.equal(
        torch.cat(seen).sort().values, torch.arange(input_ids.numel()).repeat_interleave(ACTIVE)
    )
    assert all(len(each.unique()) == len(each) for each in seen)


def test_a_copy_of_the_model_runs_its_own_experts(input_ids: torch.Tensor) -> None:
    model = make_mixture("qwen3_moe")
    family = find_family(model)
    feed_forwards(model, family)
    twin = copy.deepcopy(model)
    (stack,) = stacks(decoder_layers(twin, family)[0])
    for ffn in experts_of(stack):
        ffn.down.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    with torch.no_grad():
        assert not torch.equal(twin(input_ids).logits, model(input_ids).logits)


def test_a_stack_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_mixture("mixtral")
    family = find_family(model)
    (stack,) = stacks(decoder_layers(model, family)[0])
    monkeypatch.setattr(
        type(stack), "forward", lambda self, hidden, index, weights: hidden @ hidden.T @ hidden
    )
    with pytest.raises(ValueError, match="something else than its experts"):
        experts_of(stack)


def test_views_write_into_the_stack() -> None:
    model = make_mixture("gpt_oss")
    ffn = next(iter(feed_forwards(model, find_family(model)).values()))
    assert isinstance(ffn.down, View)
    with torch.no_grad():
        ffn.down.weight[:, 3] = 7.0
        ffn.inputs[1].weight[2] = 5.0  # up's third row
    stack = stacks(model.model.layers[0])[0]
    assert (stack.down_proj[0, 3] == 7).all()
    assert (stack.gate_up_proj[0, :, 5] == 5).all()
