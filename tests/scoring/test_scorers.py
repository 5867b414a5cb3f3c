"""Scores equal their definitions: by hand, by plain autograd, and by changing an activation and
looking at the loss.
"""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ptl_fast.data import packing
from ptl_fast.model.families import decoder_layers, feed_forwards, find_family
from ptl_fast.scoring import scorers
from ptl_fast.scoring import statistics as statistics_module
from support.models import make_model
from support.scores import evidence

CLOSE = 1e-5  # models in float64, but transformers' norms compute in float32


@pytest.fixture
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(2, 384, (count,), generator=generator).tolist() for count in (6, 11, 4, 9, 1)
    ]


def statistics(
    square: list[list[float]], num_tokens: int = 3, **others: torch.Tensor
) -> statistics_module.Statistics:
    square_LI = torch.tensor(square, dtype=torch.float64)
    change_L3 = torch.zeros(len(square), 3, dtype=torch.float64)
    return statistics_module.Statistics(
        num_tokens=torch.tensor(num_tokens), square_LI=square_LI, change_L3=change_L3, **others
    )


def captured(
    model: PreTrainedModel, documents: list[list[int]]
) -> tuple[list[torch.Tensor], torch.Tensor, int]:
    """Inputs of down_proj, (layers) x (tokens, width) with their gradients, the mean loss and the
    number of predicted tokens.

    By plain hooks and autograd, one document at a time, without packing.
    """
    activations: list[list[torch.Tensor]] = [[] for _ in feed_forwards(model, find_family(model))]
    handles = []
    for into, ffn in zip(
        activations, feed_forwards(model, find_family(model)).values(), strict=True
    ):

        def keep(module: torch.nn.Module, args: tuple, into: list[torch.Tensor] = into) -> None:
            args[0].retain_grad()
            into.append(args[0])

        handles.append(ffn.down.register_forward_pre_hook(keep))
    num_predicted = sum(len(document) - 1 for document in documents)
    loss = torch.zeros((), dtype=torch.float64)
    for document in documents:
        logits = model(torch.tensor([document]), use_cache=False).logits[0]
        loss = (
            loss
            + cross_entropy(
                logits[:-1], torch.tensor(document[1:], dtype=torch.int64), reduction="sum"
            )
            / num_predicted
        )
    loss.backward()
    for handle in handles:
        handle.remove()
    values = [torch.cat([each[0] for each in layer]).detach() for layer in activations]
    zero = torch.zeros_like  # a document of one token has no loss, and no gradient
    gradients = [
        torch.cat([zero(each[0]) if each.grad is None else each.grad[0] for each in layer])
        for layer in activations
    ]
    return (
        [torch.stack(pair) for pair in zip(values, gradients, strict=True)],
        loss.detach(),
        num_predicted,
    )


def test_fluctuation_by_hand() -> None:
    """Activations 1, 2, 3 have the variance 1; 2, 2, 2 none; -3, 0, 3 have 9. The columns' squared
    norms are 25, 1 and 4.
    """
    model = make_model(
        "llama",
        num_hidden_layers=1,
        intermediate_size=3,
        hidden_size=2,
        num_attention_heads=1,
        head_dim=2,
    )
    model.model.layers[0].mlp.down_proj.weight.data = torch.tensor(
        [[3.0, 1.0, 0.0], [4.0, 0.0, 2.0]]
    )
    sums = torch.tensor([[6.0, 6.0, 0.0]], dtype=torch.float64)
    scores = scorers.fluctuation(evidence(statistics([[14.0, 12.0, 18.0]], sum_LI=sums), model))
    assert scores.tolist() == [[25.0, 0.0, 36.0]]


def test_fluctuation_and_the_other_sums_of_a_model(
    any_model: PreTrainedModel, documents: list[list[int]]
) -> None:
    model, family = any_model.double(), find_family(any_model)
    taken = statistics_module.collect(
        model, family, packing.pack(documents, 16, 1), 2, extra=frozenset({"sums"})
    )
    values, _, _ = captured(model, documents)
    activation_LTI = torch.stack([value for value, _ in values])
    norms = torch.stack(
        [ffn.down.weight.detach().norm(dim=0) for ffn in feed_forwards(model, family).values()]
    )
    assert taken.sum_LI is not None
    torch.testing.assert_close(taken.sum_LI, activation_LTI.sum(1), rtol=CLOSE, atol=1e-6)
    torch.testing.assert_close(taken.absolute_LI, activation_LTI.abs().sum(1), rtol=CLOSE, atol=0.0)
    torch.testing.assert_close(taken.maximum_LI, activation_LTI.abs().amax(1), rtol=CLOSE, atol=0.0)
    scores = scorers.fluctuation(evidence(taken, model))
    torch.testing.assert_close(scores, activation_LTI.var(1) * norms**2, rtol=CLOSE, atol=0.0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_gradient_scores_equal_autograd(
    any_model: PreTrainedModel, documents: list[list[int]], batch_size: int
) -> None:
    """However the corpus is packed and cut into batches; and no parameter has a gradient, or has
    lost its flag.
    """
    model, family = any_model.double(), find_family(any_model)
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    taken = statistics_module.collect(
        model, family, packing.pack(documents, 16, 1), batch_size, extra=frozenset({"gradients"})
    )
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter is frozen for parameter in model.parameters()] == [
        not p.requires_grad for p in model.parameters()
    ]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    expected, _, num_predicted = captured(model, documents)
    assert int(taken.num_predicted) == num_predicted
    assert int(taken.num_tokens) == sum(map(len, documents))
    scores = scorers.gradient(evidence(taken, model))
    torch.testing.assert_close(
        scores, torch.stack([(a * g).abs().sum(0) for a, g in expected]), rtol=CLOSE, atol=1e-15
    )
    torch.testing.assert_close(
        taken.square_LI, torch.stack([a.square().sum(0) for a, _ in expected]), rtol=CLOSE, atol=0.0
    )


def norm_in_float64(module: LlamaRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
    return (
        module.weight
        * hidden
        * (hidden.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    )


def test_gradient_scores_are_the_first_order_change_of_the_loss(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weaken one neuron at one token after another by a millionth: the losses' changes add up to a
    millionth of its score.
    """
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm_in_float64)
    documents, share, layer, neuron = [[5, 9, 2, 77], [8, 3, 300]], 1e-6, 2, 11
    model, family = llama.double(), find_family(llama)
    taken = statistics_module.collect(
        model, family, packing.pack(documents, 7, 1), 1, extra=frozenset({"gradients"})
    )
    weakened: list[int] = []  # the token, counted over the corpus
    seen = 0

    def weaken(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        nonlocal seen
        changed = args[0].clone()
        for token in weakened:
            if 0 <= token - seen < changed.shape[1]:
                changed[0, token - seen, neuron] *= 1 - share
        seen += changed.shape[1]
        return (changed,)

    def loss() -> float:
        nonlocal seen
        seen, total = 0, 0.0
        for document in documents:
            logits = model(torch.tensor([document]), use_cache=False).logits[0]
            total += cross_entropy(
                logits[:-1], torch.tensor(document[1:], dtype=torch.int64), reduction="sum"
            ).item()
        return total / 5

    ffn = feed_forwards(model, family)[str(layer)]
    handle = ffn.down.register_forward_pre_hook(weaken)
    with torch.inference_mode():
        before, changes = loss(), []
        for token in range(7):
            weakened[:] = [token]
            changes.append(abs(loss() - before))
    handle.remove()
    assert changes[3] == changes[6] == 0, "a document's last token predicts nothing"
    assert min(changes[0], changes[4]) > 0
    assert scorers.gradient(evidence(taken, model))[layer, neuron].item() == pytest.approx(
        sum(changes) / share, rel=1e-3
    )


def test_gradient_by_hand() -> None:
    taken = statistics([[1.0]], gradient_LI=torch.tensor([[6.0]]), num_predicted=torch.tensor(4))
    assert scorers.gradient(evidence(taken, make_model("llama"))).tolist() == [[1.5]]


def test_gradient_of_half_precision_weights_is_summed_in_double(
    llama: PreTrainedModel, documents: list[list[int]]
) -> None:
    family, tokens, extra = (
        find_family(llama),
        packing.pack(documents, 16, 1),
        frozenset({"gradients"}),
    )
    expected = statistics_module.collect(llama, family, tokens, 2, extra=extra).gradient_LI
    for parameter in llama.parameters():
        parameter.data = parameter.data.bfloat16()
    taken = statistics_module.collect(llama, family, tokens, 2, extra=extra).gradient_LI
    assert taken is not None
    assert taken.dtype == torch.float64
    assert (taken - expected).norm() < 0.05 * expected.norm()


def test_angular_scores_of_a_model(any_model: PreTrainedModel, documents: list[list[int]]) -> None:
    """The definition: the mean over tokens of arccos(cosine) / pi, document by document."""
    model, family = any_model.double(), find_family(any_model)
    taken = statistics_module.collect(
        model, family, packing.pack(documents, 16, 1), 2, extra=frozenset({"angles"})
    )
    totals = torch.zeros(len(decoder_layers(model, family)), dtype=torch.float64)

    def add(module: torch.nn.Module, args: tuple, kwargs: dict, output: object, layer: int) -> None:
        before, after = (
            args[0] if args else kwargs["hidden_states"],
            output[0] if isinstance(output, tuple) else output,
        )
        totals[layer] += (torch.cosine_similarity(before, after, dim=-1).arccos() / math.pi).sum()

    for index, layer in enumerate(decoder_layers(model, family)):
        layer.register_forward_hook(
            lambda *given, index=index: add(*given, layer=index), with_kwargs=True
        )
    with torch.inference_mode():
        for document in documents:
            model(torch.tensor([document]), use_cache=False)
    torch.testing.assert_close(
        scorers.angular(taken), totals / sum(map(len, documents)), rtol=CLOSE, atol=0.0
    )


def test_per_token_scores_do_not_depend_on_the_corpus_size(
    llama: PreTrainedModel, documents: list[list[int]]
) -> None:
    """The same text twice: norms over the corpus grow, root mean squares and the mean loss's
    gradient do not.
    """
    family = find_family(llama.double())
    once, twice = (
        statistics_module.collect(
            llama, family, packing.pack(text, 16, 1), 2, extra=frozenset({"sums", "gradients"})
        )
        for text in (documents, documents * 2)
    )
    for name in ("activation", "output-change", "gradient", "magnitude"):
        scorer = scorers.SCORERS[name]
        scores = [scorer.compute(evidence(taken, llama)) for taken in (once, twice)]
        first, second = (
            scorer.per_token(*each)
            for each in zip(scores, (once.num_tokens, twice.num_tokens), strict=True)
        )
        torch.testing.assert_close(first, second, rtol=CLOSE, atol=0.0)
    assert scorers.SCORERS["activation"].per_token(
        torch.tensor([6.0]), torch.tensor(9)
    ).tolist() == [2.0]


def test_output_change_is_the_norm_of_what_a_neuron_adds(
    any_model: PreTrainedModel, documents: list[list[int]]
) -> None:
    """Eq. 2 by brute force: the change of the FFN's output when one neuron is silenced."""
    family = find_family(any_model)
    statistics = statistics_module.collect(any_model, family, packing.pack(documents, 16, 1), 2)
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
    assert scores[2, 9].item() == pytest.approx(total**0.5, rel=1e-5)


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
