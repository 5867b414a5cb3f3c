"""Statistics and scores equal their definitions, computed another way in float64."""

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.data import batching, packing
from ptl_fast.model.families import decoder_layers, feed_forwards, find_family
from ptl_fast.scoring import scorers
from ptl_fast.scoring import statistics as statistics_module
from support.models import make_model
from support.scores import evidence

RELATIVE = 1e-5  # float32 activations, squared and summed


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


def test_output_change_is_the_norm_of_what_a_neuron_adds(
    any_model: PreTrainedModel, documents: list[list[int]]
) -> None:
    """Eq. 2 by brute force: the change of the FFN's output when one neuron is silenced."""
    family = find_family(any_model)
    statistics = statistics_module.collect(any_model, family, packing.pack(documents, 32, 1), 2)
    scores = scorers.output_change(evidence(statistics, any_model))
    any_model.double()
    part = list(feed_forwards(any_model, family).values())[2]
    total = 0.0
    for document in documents:
        captured: list[torch.Tensor] = []
        handle = part.down.register_forward_pre_hook(
            lambda module, args, captured=captured: captured.append(args[0][0])
        )
        with torch.inference_mode():
            any_model(torch.tensor([document]), use_cache=False)
            silenced = captured[0].clone()
            handle.remove()
            silenced[:, 9] = 0
            total += ((part.down(captured[0]) - part.down(silenced)) ** 2).sum().item()
    assert scores[2, 9].item() == pytest.approx(total**0.5, rel=RELATIVE)


def test_magnitude_counts_all_weights_of_a_neuron(any_model: PreTrainedModel) -> None:
    family = find_family(any_model)
    scores = scorers.magnitude(evidence(None, any_model))  # type: ignore[arg-type]
    part = list(feed_forwards(any_model, family).values())[1]
    weights = [linear.weight for linear in part.inputs]
    if part.fused:
        weights = list(weights[0].chunk(2))
    expected = (
        torch.cat([*(weight[7] for weight in weights), part.down.weight[:, 7]]).double().norm()
    )
    assert scores[1, 7].item() == pytest.approx(expected.item(), rel=1e-9)


def test_random_scores_follow_the_seed() -> None:
    model = make_model("llama")
    packed = packing.pack([[2] * 40], 32, 1)
    statistics = statistics_module.collect(model, find_family(model), packed, 2)
    first, again, other = (scorers.random(evidence(statistics, model, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_layer_scores() -> None:
    statistics = statistics_module.Statistics(
        num_tokens=torch.tensor(4),
        square_LI=torch.zeros(2, 1),
        change_L3=torch.tensor([[8.0, 16.0, 3.0], [2.0, 1.0, 4.0]], dtype=torch.float64),
    )
    assert scorers.residual(statistics).tolist() == [2.0, 0.5]
    assert scorers.block_influence(statistics).tolist() == [0.25, 0.0]
    assert scorers.last(statistics).argsort().tolist() == [1, 0]
