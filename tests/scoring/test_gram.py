"""Gram matrices are products of the activations with a ridge, --protect's text at its share."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptl_fast.base import memory
from ptl_fast.base.errors import OutOfMemory
from ptl_fast.data import packing
from ptl_fast.data.batching import Batch, document_batches
from ptl_fast.model.families import DownProjection, feed_forwards, find_family
from ptl_fast.scoring import gram as gram_module
from ptl_fast.scoring import reconstruction, statistics
from ptl_fast.scoring import ridge as ridge_module
from support.least_squares import RIDGE, gram, long_documents, many_documents
from support.weights import with_weights


@pytest.fixture
def tokens() -> packing.PackedTokens:
    return long_documents()


def prices(model: PreTrainedModel, tokens: packing.PackedTokens) -> Tensor:
    return reconstruction.prices(
        gram_module.GramMatrices(model, find_family(model), tokens, 2, ridge=RIDGE)
    )


def test_layers_in_several_passes_give_the_same(
    llama: PreTrainedModel, tokens: packing.PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, as how many fit depends on the memory that is free."""
    at_once = prices(llama, tokens)
    with_statistics = gram_module.GramMatrices(llama, find_family(llama), tokens, 2, ridge=RIDGE)
    statistics.collect(llama, find_family(llama), tokens, 2, grams=with_statistics)
    assert torch.equal(reconstruction.prices(with_statistics), at_once)
    monkeypatch.setattr(gram_module, "num_at_once", lambda *_: 2)
    assert torch.equal(prices(llama, tokens), at_once)


def test_as_many_matrices_as_fit_beside_elimination(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for budget, expected in ((0, 1), (299, 1), (300, 1), (499, 2), (1000, 8)):
        monkeypatch.setattr(memory, "budget", lambda device, budget=budget: budget)
        assert gram_module.num_at_once(100, cpu) == expected


def test_too_little_memory_says_what_needs_it(
    llama: PreTrainedModel, tokens: packing.PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free", lambda device: 48 * 48 * 8)
    with pytest.raises(OutOfMemory, match=r"1 Gram matrix of FFNs of width 48.*--stream") as told:
        prices(llama, tokens)
    assert "--micro-batch" not in str(told.value), "a smaller batch does not help"


def test_matrices_come_with_the_statistics_pass_and_are_kept_if_all_fit(
    llama: PreTrainedModel, tokens: packing.PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five layers, all or two fit: no further pass, or one for the second two and one for the
    last, each time.
    """
    family, passes = find_family(llama), []
    num_batches = len(tokens.unpacked(tokens.input_ids.numel()))
    llama.model.layers[0].register_forward_pre_hook(lambda module, args: passes.append(module))
    expected = list(gram_module.GramMatrices(llama, family, tokens, len(tokens), ridge=RIDGE))
    for layers_that_fit, further in ((5, [0, 0]), (2, [2, 3])):
        monkeypatch.setattr(gram_module, "num_at_once", lambda *_, fits=layers_that_fit: fits)
        grams = gram_module.GramMatrices(llama, family, tokens, len(tokens), ridge=RIDGE)
        statistics.collect(llama, family, tokens, len(tokens), grams=grams)
        for num_passes in further:
            passes.clear()
            for gram_II, expected_II in zip(grams, expected, strict=True):
                torch.testing.assert_close(gram_II, expected_II, rtol=1e-4, atol=1e-6)
            assert len(passes) == num_passes * num_batches


@pytest.mark.parametrize("num_blocks", [1, 5, 8, 100])
def test_matrices_are_products_of_the_activations_with_a_ridge(
    llama: PreTrainedModel,
    tokens: packing.PackedTokens,
    monkeypatch: pytest.MonkeyPatch,
    num_blocks: int,
) -> None:
    monkeypatch.setattr(gram_module, "GRAM_BLOCKS", num_blocks)
    family, inputs = find_family(llama.double()), list[Tensor]()
    grams = list(gram_module.GramMatrices(llama, family, tokens, len(tokens), ridge=RIDGE))
    for ffn in feed_forwards(llama, family).values():
        ffn.down.register_forward_pre_hook(lambda module, args: inputs.append(args[0][tokens.mask]))
    llama(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    for gram_II, a_TI in zip(grams, inputs, strict=True):
        torch.testing.assert_close(gram_II, gram(a_TI), rtol=1e-9, atol=1e-9)


def test_matrices_of_weighted_tokens_are_weighted_products(
    llama: PreTrainedModel, tokens: packing.PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they come with the statistics, and where not all layers fit at once."""
    weighted, family, inputs = with_weights(tokens), find_family(llama), list[Tensor]()
    found = []
    for layers_that_fit, with_statistics in ((5, False), (5, True), (2, True)):
        monkeypatch.setattr(gram_module, "num_at_once", lambda *_, fits=layers_that_fit: fits)
        grams = gram_module.GramMatrices(llama, family, weighted, 2, ridge=RIDGE)
        if with_statistics:
            statistics.collect(llama, family, weighted, 2, grams=grams)
        found.append(list(grams))
    for ffn in feed_forwards(llama, family).values():
        ffn.down.register_forward_pre_hook(
            lambda module, args: inputs.append(args[0][tokens.mask].double())
        )
    llama(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    assert weighted.weights is not None
    roots_T1 = weighted.weights[tokens.mask].double().sqrt()[:, None]
    for layer, a_TI in enumerate(inputs):
        for grams_LII in found:
            torch.testing.assert_close(
                grams_LII[layer], gram(roots_T1 * a_TI), rtol=1e-4, atol=1e-6
            )


def test_the_ridge_is_chosen_by_the_very_rows_that_the_matrix_is_made_of(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their tokens' weights included. The model does not read them again: in other batches they
    would be rounded otherwise.
    """
    tokens, held, passes = with_weights(many_documents()), list[Tensor](), list[nn.Module]()
    choose = gram_module.choose

    def note(gram_II: Tensor, down_HI: Tensor, held_TI: Tensor) -> ridge_module.Choice:
        held.append(held_TI)
        return choose(gram_II, down_HI, held_TI)

    monkeypatch.setattr(gram_module, "choose", note)
    counted = llama.base_model.register_forward_pre_hook(lambda module, _: passes.append(module))
    list(gram_module.GramMatrices(llama, find_family(llama), tokens, 2, ridge=None))
    counted.remove()
    batches = list(document_batches(llama, tokens, 2, ""))
    assert len(passes) == len(batches)

    ffns, taken = feed_forwards(llama, find_family(llama)).values(), list[Tensor]()
    for ffn in ffns:
        ffn.down.register_forward_pre_hook(lambda module, args: taken.append(args[0].double()))
    rows: list[Tensor] = []
    for batch in batches:
        llama.base_model(**batch.inputs, use_cache=False)
        aside = ridge_module.set_aside(batch, tokens.num_counted)
        assert batch.weights is not None
        roots = batch.weights[aside].double().sqrt()[:, None]
        rows += [roots * each[aside] for each in taken]
        taken.clear()
    for layer, held_TI in enumerate(held):
        assert 0 < len(held_TI) < tokens.num_counted / 2
        torch.testing.assert_close(
            held_TI, torch.cat(rows[layer :: len(ffns)]), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_protected_text_has_its_share_of_the_weight_however_long_it_is(
    llama: PreTrainedModel,
    tokens: packing.PackedTokens,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    """Also where the corpus comes with the statistics, which count the corpus alone, and where not
    all layers fit at once.
    """
    family = find_family(llama)
    generator = torch.Generator().manual_seed(6)
    protected = packing.pack(
        [torch.randint(2, 384, (count,), generator=generator).tolist() for count in (90, 21)], 96, 1
    )

    def products(of: packing.PackedTokens) -> list[Tensor]:
        return list(gram_module.GramMatrices(llama, family, of, 2, ridge=0.0))

    weight = share * tokens.num_tokens / protected.num_tokens
    expected = [
        (1 - share) * corpus + weight * other
        for corpus, other in zip(products(tokens), products(protected), strict=True)
    ]
    alone = statistics.collect(llama, family, tokens, 2)
    for layers_that_fit in (5, 2):
        monkeypatch.setattr(gram_module, "num_at_once", lambda *_, fits=layers_that_fit: fits)
        for with_statistics in (True, False):
            grams = gram_module.GramMatrices(llama, family, tokens, 2, protected, share, ridge=0.0)
            if with_statistics:
                counted = statistics.collect(llama, family, tokens, 2, grams=grams)
                assert all(
                    torch.equal(value, alone.tensors()[name])
                    for name, value in counted.tensors().items()
                )
            for _ in range(2):
                for gram_II, expected_II in zip(grams, expected, strict=True):
                    torch.testing.assert_close(gram_II, expected_II, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_matrices_of_answers_and_of_the_rest_are_those_of_all(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Protected text keeps its share of the weight, which is that of the tokens that count."""
    monkeypatch.setattr(gram_module, "RIDGE", 0.0)
    family, generator = find_family(llama), torch.Generator().manual_seed(6)
    documents = [
        torch.randint(2, 384, (count,), generator=generator).tolist() for count in (90, 21, 43)
    ]

    def matrices(
        borders: list[list[int]] | None, protected: packing.PackedTokens | None = None
    ) -> list[Tensor]:
        tokens = packing.pack(documents, 96, 1, answers=borders)
        tokens = replace(tokens, count_answers=borders is not None)
        return list(gram_module.GramMatrices(llama, family, tokens, 2, protected, share))

    answers = [[10, len(document)] for document in documents]
    rest = [[0, 10] for _ in documents]
    parts = zip(matrices(answers), matrices(rest), matrices(None), strict=True)
    for answered, others, every in parts:
        torch.testing.assert_close(answered + others, every, rtol=1e-5, atol=1e-6)
    # the same text protects itself: whatever its share, the sum of the weights stays
    own = replace(packing.pack(documents, 96, 1, answers=answers), count_answers=True)
    for protected, alone in zip(matrices(answers, own), matrices(answers), strict=True):
        torch.testing.assert_close(protected, alone, rtol=1e-5, atol=1e-6)


def test_a_pass_with_gradients_does_not_run_through_the_matrices(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    """It would hold the activations of all batches."""
    family = find_family(llama)
    grams = gram_module.GramMatrices(llama, family, tokens, 2, ridge=RIDGE)
    statistics.collect(llama, family, tokens, 2, extra=frozenset({"gradients"}), grams=grams)
    assert grams.sums
    assert not any(sums_II.requires_grad for sums_II in grams.sums)


def test_padding_does_not_count(llama: PreTrainedModel, tokens: packing.PackedTokens) -> None:
    assert not tokens.mask.all()
    ids = tokens.input_ids.where(tokens.mask, 7)
    other = packing.PackedTokens(ids, tokens.position_ids, tokens.mask)
    assert torch.equal(prices(llama, other), prices(llama, tokens))


def test_neurons_that_shout_at_one_token_leave_the_gram_matrix_positive_definite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    width = 1536
    a_TI = torch.randn(256, width, generator=torch.Generator().manual_seed(0))
    a_TI[0, :8] = 1000 * torch.linspace(1, 3, 8)
    down = torch.nn.Linear(width, 1)
    projection = DownProjection(down, down.weight.detach())
    model = torch.nn.Sequential(down)
    model.device = torch.device("cpu")
    monkeypatch.setattr(gram_module, "down_projections", lambda *_: [projection])
    grams = gram_module.GramMatrices(model, None, None, 1, ridge=RIDGE)
    with grams.watch():
        every = torch.ones(1, 256, dtype=torch.bool)
        grams.expect(Batch({}, torch.zeros(1, 256), every))
        down(a_TI.unsqueeze(0))
    (gram_II,) = grams
    assert torch.linalg.cholesky_ex(gram_II).info == 0
