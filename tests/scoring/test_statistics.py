"""Statistics equal their definitions, computed another way in float64, in any packing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.base import distributed
from ptl_fast.data import batching, packing
from ptl_fast.model.families import decoder_layers, feed_forwards, find_family
from ptl_fast.recovery import continual_pretraining
from ptl_fast.scoring import scorers
from ptl_fast.scoring import statistics as statistics_module
from support.models import make_model
from support.recovery import config, packed, train
from support.scores import evidence

RELATIVE = 1e-5  # float32 activations, squared and summed
EVERYTHING = frozenset({"sums", "angles"})


@pytest.fixture
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(2, 384, (count,), generator=generator).tolist()
        for count in (13, 7, 5, 20, 11, 3)
    ]


def definition(
    model: PreTrainedModel, documents: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the documents, run one by one without packing, in float64: squares per neuron,
    changes per layer.
    """
    model = model.double()
    family = find_family(model)
    squares, changes = 0, 0
    for document in documents:
        activations, hidden = [], []
        handles = [
            part.down.register_forward_pre_hook(
                lambda module, args, into=activations: into.append(args[0][0])
            )
            for part in feed_forwards(model, family).values()
        ]
        for layer in decoder_layers(model, family):
            handles.append(
                layer.register_forward_hook(
                    lambda module, args, output, into=hidden: into.append((args[0], output))
                )
            )
        with torch.inference_mode():
            model(torch.tensor([document]), use_cache=False)
        for handle in handles:
            handle.remove()
        squares = squares + torch.stack([(activation**2).sum(0) for activation in activations])
        change = []
        for before, after in hidden:
            before, after = before[0], (after[0] if isinstance(after, tuple) else after)[0]
            norm = (after - before).norm(dim=-1)
            cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
            change.append(torch.stack([norm.sum(), (norm**2).sum(), cosine.sum()]))
        changes = changes + torch.stack(change)
    return squares, changes


@pytest.mark.parametrize(
    "one_row", [pytest.param(False, id="documents"), pytest.param(True, id="one-row")]
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_statistics_equal_their_definition(
    any_model: PreTrainedModel,
    documents: list[list[int]],
    batch_size: int,
    one_row: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Padding does not count, and packing and batching change nothing."""
    monkeypatch.setattr(batching, "needs_one_row", lambda model: one_row)
    packed = packing.pack(documents, 32, 1)
    assert not packed.mask.all()
    statistics = statistics_module.collect(any_model, find_family(any_model), packed, batch_size)
    squares, changes = definition(any_model, documents)
    assert int(statistics.num_tokens) == sum(map(len, documents))
    torch.testing.assert_close(statistics.square_LI, squares, rtol=RELATIVE, atol=1e-9)
    torch.testing.assert_close(statistics.change_L3, changes, rtol=RELATIVE, atol=1e-9)


@pytest.mark.parametrize(
    "one_row", [pytest.param(False, id="documents"), pytest.param(True, id="one-row")]
)
def test_answers_and_the_rest_are_all(
    any_model: PreTrainedModel,
    documents: list[list[int]],
    one_row: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their statistics add up, and none of them is nothing."""
    monkeypatch.setattr(batching, "needs_one_row", lambda model: one_row)
    borders = [[3, len(document)] for document in documents]
    rest = [[0, 3] for _ in documents]
    whole = statistics_module.collect(
        any_model, find_family(any_model), packing.pack(documents, 32, 1), 2, extra=EVERYTHING
    )
    answers, others = (
        statistics_module.collect(
            any_model,
            find_family(any_model),
            replace(packing.pack(documents, 32, 1, answers=marked), count_answers=True),
            2,
            extra=EVERYTHING,
        )
        for marked in (borders, rest)
    )
    assert int(others.num_tokens) == 3 * len(documents)
    for name, value in whole.tensors().items():
        pair = answers.tensors()[name], others.tensors()[name]
        together = torch.maximum(*pair) if name == "maximum_LI" else pair[0] + pair[1]
        torch.testing.assert_close(together, value, rtol=RELATIVE, atol=1e-6, msg=name)


def test_the_gradients_of_answers_are_those_of_their_loss(
    llama: PreTrainedModel, documents: list[list[int]]
) -> None:
    family, gradients = find_family(llama), frozenset[statistics_module.Extra]({"gradients"})
    packed = packing.pack(documents, 32, 1, answers=[[3, len(each)] for each in documents])
    rows = replace(packed, count_answers=True, learn_answers=True)
    found = statistics_module.collect(llama, family, rows, 8, extra=gradients)
    assert int(found.num_predicted) == int(found.num_tokens) == packed.num_tokens - 3 * 6
    expected = torch.zeros(5, 48, dtype=torch.float64)
    for document in filter(lambda document: len(document) > 3, documents):
        activations = []
        handles = [
            ffn.down.register_forward_pre_hook(
                lambda module, args, into=activations: into.append(args[0])
            )
            for ffn in feed_forwards(llama, family).values()
        ]
        labels = torch.tensor([[packing.IGNORED] * 3 + document[3:]])
        mean = llama(torch.tensor([document]), labels=labels, use_cache=False).loss
        for handle in handles:
            handle.remove()
        slopes = torch.autograd.grad(mean * (len(document) - 3), activations)
        for layer, (a, slope) in enumerate(zip(activations, slopes, strict=True)):
            expected[layer] += (a * slope).abs().double().sum((0, 1)).detach()
    torch.testing.assert_close(found.gradient_LI, expected, rtol=1e-4, atol=1e-6)


def test_watching_leaves_no_hooks_and_the_same_logits(
    llama: PreTrainedModel, documents: list[list[int]]
) -> None:
    ids = torch.tensor([documents[0]])
    with torch.inference_mode():
        before = llama(ids).logits
    llama.train()
    statistics_module.collect(llama, find_family(llama), packing.pack(documents, 32, 1), 2)
    assert llama.training
    llama.eval()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())
    with torch.inference_mode():
        assert torch.equal(llama(ids).logits, before)


@pytest.mark.parametrize("layer", [0, 3])
def test_nan_activations_name_the_layer(
    llama: PreTrainedModel, documents: list[list[int]], layer: int
) -> None:
    with torch.no_grad():
        llama.model.layers[layer].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"layer {layer}'s activations are NaN"):
        statistics_module.collect(llama, find_family(llama), packing.pack(documents, 32, 1), 2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_watching_training_takes_sums_and_angles_once(
    llama: PreTrainedModel, tmp_path: Path, gradient_checkpointing: bool
) -> None:
    """With a learning rate that changes nothing, all statistics are those of a pass over the same
    sequences.
    """
    tokens, family = packed(num_documents=20), find_family(llama)
    settings = config(
        learning_rate=1e-12, calibration_tokens=10**6, gradient_checkpointing=gradient_checkpointing
    )
    with statistics_module.collecting(llama, family, EVERYTHING) as watch:
        train(llama, tokens, tokens.num_tokens, settings, tmp_path / "round-01" / "recovery", watch)
    order = continual_pretraining.Sequences(
        tokens,
        continual_pretraining.num_steps(tokens, tokens.num_tokens, 4) * 4,
        settings.run.seed,
    ).order
    rows = packing.PackedTokens(
        tokens.input_ids[order], tokens.position_ids[order], tokens.mask[order]
    )
    expected, total = (
        statistics_module.collect(llama, family, rows, 2, extra=EVERYTHING),
        watch.total(),
    )
    assert (
        total.tensors().keys()
        == expected.tensors().keys()
        >= {"sum_LI", "absolute_LI", "maximum_LI", "angle_L"}
    )
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(total.tensors()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_only_what_is_asked_for_is_taken(
    llama: PreTrainedModel, documents: list[list[int]]
) -> None:
    taken = statistics_module.collect(llama, find_family(llama), packing.pack(documents, 16, 1), 2)
    assert taken.tensors().keys() == {"num_tokens", "square_LI", "change_L3"}
    every = {**scorers.SCORERS, **scorers.LAYER_SCORERS}
    assert {name for name, each in every.items() if each.needs} == {
        "fluctuation",
        "gradient",
        "angular",
    }


def test_two_ranks_share_the_new_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank takes every second batch: the sums of both are the whole, the maximum is the
    larger, the scores are the same.
    """
    model = make_model("llama")
    extra: frozenset[statistics_module.Extra] = frozenset(
        {"sums", "angles", "documents", "gradients"}
    )
    generator = torch.Generator().manual_seed(2)
    documents = [
        torch.randint(2, 384, (count,), generator=generator).tolist()
        for count in (13, 7, 5, 20, 11, 3, 9)
    ]
    tokens, family = packing.pack(documents, 24, 1), find_family(model)
    whole = statistics_module.collect(model, family, tokens, 1, extra=extra)
    shares = []
    for rank in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            patch.setattr(distributed, "world_size", lambda: 2)
            patch.setattr(distributed, "summed", dict)
            patch.setattr(distributed, "largest", lambda tensor: tensor)
            shares.append(
                statistics_module.collect(model, family, tokens, 1, extra=extra).tensors()
            )
    both = {name: shares[0][name] + shares[1][name] for name in shares[0]}
    both["maximum_LI"] = torch.maximum(shares[0]["maximum_LI"], shares[1]["maximum_LI"])
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(both[name], tensor, rtol=1e-6, atol=1e-9, msg=name)
    for name in ("fluctuation", "gradient"):
        scores = [
            scorers.SCORERS[name].compute(evidence(taken, model))
            for taken in (whole, statistics_module.Statistics(**both))
        ]
        torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-12)
