"""Reconstruction: prices and columns equal plain least squares in float64, and what goes is what
the others can say.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptl_fast.config.config import Config
from ptl_fast.data import packing
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.pruning import compact
from ptl_fast.pruning import compensate as compensate_module
from ptl_fast.pruning.plan import plan_neurons
from ptl_fast.pruning.schedule import Round
from ptl_fast.scoring import gram as gram_module
from ptl_fast.scoring import reconstruction, statistics
from support.models import make_model
from support.recovery import check

RELATIVE = 1e-6


def activations(num_tokens: int, width: int, rank: int, seed: int) -> Tensor:
    """Float64 activations that mostly lie in few directions, as an FFN's do."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(num_tokens, rank, generator=generator) @ torch.randn(
        rank, width, generator=generator
    )
    return (low + 0.1 * torch.randn(num_tokens, width, generator=generator)).double()


def projection(hidden: int, width: int) -> Tensor:
    """A float64 down projection whose columns are equally long."""
    return torch.nn.functional.normalize(
        torch.randn(hidden, width, generator=torch.Generator().manual_seed(4)).double(), dim=0
    )


def ridge(activations_TI: Tensor) -> Tensor:
    """Rows that add the ridge to a Gram matrix: least squares on them too is what a ridge means."""
    mean_square = activations_TI.square().sum(0).mean()
    return (gram_module.RIDGE * mean_square).sqrt() * torch.eye(
        activations_TI.shape[1], dtype=torch.float64
    )


def best_columns(activations_TI: Tensor, down_HI: Tensor, kept: list[int]) -> tuple[Tensor, float]:
    """The kept neurons' columns by torch's least squares on the tokens themselves, and how far
    their output is off.
    """
    rows_TI = torch.cat([activations_TI, ridge(activations_TI)])
    target_TH = rows_TI @ down_HI.T
    columns_KH = torch.linalg.lstsq(rows_TI[:, kept], target_TH).solution
    return columns_KH.T, float((rows_TI[:, kept] @ columns_KH - target_TH).norm())


def gram(activations_TI: Tensor) -> Tensor:
    rows_TI = torch.cat([activations_TI, ridge(activations_TI)])
    return rows_TI.T @ rows_TI


@pytest.mark.parametrize(
    ("num_tokens", "width", "hidden"),
    [(200, 37, 11), (20, 50, 8)],
    ids=["T200-I37", "T20-I50-singular"],
)
def test_columns_equal_least_squares_on_the_tokens(
    num_tokens: int, width: int, hidden: int
) -> None:
    a_TI, down_HI = activations(num_tokens, width, 9, 0), projection(hidden, width)
    kept = list(range(0, width, 3))
    columns_HK = compensate_module.least_squares(gram(a_TI), down_HI, torch.tensor(kept))
    torch.testing.assert_close(
        columns_HK, best_columns(a_TI, down_HI, kept)[0], rtol=RELATIVE, atol=1e-6
    )


@pytest.mark.parametrize(("width", "chunk"), [(37, 32), (100, 7)], ids=["one-by-one", "in-chunks"])
def test_price_is_how_far_the_output_is_off_without_all_cheaper_neurons(
    width: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "CHUNK", chunk)
    a_TI, down_HI = activations(300, width, 12, 1), projection(10, width)
    price_I = reconstruction.eliminate(gram(a_TI), down_HI)
    order = price_I.argsort()
    for num_gone in (1, width // 3, width // 2, width - 1):
        kept = sorted(order[num_gone:].tolist())
        off = best_columns(a_TI, down_HI, kept)[1]
        assert float(price_I[order[num_gone - 1]]) == pytest.approx(off, rel=1e-5)


def test_one_by_one_removes_what_then_costs_least() -> None:
    """Brute force over every choice of the next neuron, to the last."""
    width = 9
    a_TI, down_HI = activations(60, width, 4, 2), projection(5, width)
    left, expected = list(range(width)), []
    while len(left) > 1:
        cost = {
            each: best_columns(a_TI, down_HI, [other for other in left if other != each])[1]
            for each in left
        }
        expected.append(min(cost, key=cost.__getitem__))
        left.remove(expected[-1])
    assert reconstruction.eliminate(gram(a_TI), down_HI).argsort().tolist() == [*expected, *left]


def test_a_loud_neuron_that_two_others_say_together_goes_first() -> None:
    a_TI = activations(100, 12, 12, 3)
    a_TI[:, 5] = 10 * (a_TI[:, 0] + a_TI[:, 7])
    down_HI = projection(6, 12)
    assert a_TI.square().sum(0).argmax() == 5
    assert reconstruction.eliminate(gram(a_TI), down_HI).argmin() in (0, 5, 7)


@pytest.fixture
def tokens() -> packing.PackedTokens:
    generator = torch.Generator().manual_seed(5)
    return packing.pack(
        [
            torch.randint(2, 384, (count,), generator=generator).tolist()
            for count in (60, 33, 47, 81)
        ],
        96,
        1,
    )


def first_outputs(model: PreTrainedModel, tokens: packing.PackedTokens) -> Tensor:
    """The first FFN's output on all tokens that count: its input does not depend on what was
    pruned.
    """
    found: list[Tensor] = []
    ffn = next(iter(feed_forwards(model, find_family(model)).values()))
    handle = ffn.down.register_forward_hook(
        lambda module, args, output: found.append(output[tokens.mask])
    )
    with torch.inference_mode():
        model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    handle.remove()
    return found[0]


def prices(model: PreTrainedModel, tokens: packing.PackedTokens) -> Tensor:
    return reconstruction.prices(gram_module.GramMatrices(model, find_family(model), tokens, 2))


def prune(
    model: PreTrainedModel,
    tokens: packing.PackedTokens,
    width: int,
    compensate: bool,
    protected: packing.PackedTokens | None = None,
    share: float = 0.0,
) -> float:
    """Return what the first layer's dearest removed neuron was priced at."""
    family = find_family(model)
    step = Round(number=1, kind="neurons", width=width, num_layers=5, recovery_share=1.0)
    grams = gram_module.GramMatrices(model, family, tokens, 2, protected, share)
    price_LI = reconstruction.prices(grams)
    plan = plan_neurons(step, price_LI, None, "reconstruction")
    assert plan.kept_neurons is not None
    if compensate:
        compensate_module.compensate_(grams.ffns, grams, plan.kept_neurons)
    compact.compact_(model, family, plan)
    return float(price_LI[0].sort().values[-width - 1])


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "qwen2"])
def test_a_compensated_layer_is_off_by_the_price_and_otherwise_by_more(
    family: str, tokens: packing.PackedTokens
) -> None:
    before = first_outputs(make_model(family), tokens)
    off = {}
    for compensate in (True, False):
        model = make_model(family)
        price = prune(model, tokens, 24, compensate)
        off[compensate] = float((first_outputs(model, tokens) - before).norm())
    assert off[True] == pytest.approx(price, rel=1e-3)
    assert off[False] > 1.05 * price


def test_layers_in_several_passes_give_the_same(
    llama: PreTrainedModel, tokens: packing.PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = prices(llama, tokens)
    monkeypatch.setattr(gram_module, "GRAM_BYTES", 2 * 8 * 48**2)
    torch.testing.assert_close(prices(llama, tokens), at_once, rtol=1e-4, atol=1e-6)


def test_matrices_come_with_the_statistics_pass_and_are_kept_if_all_fit(
    llama: PreTrainedModel, tokens: packing.PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five layers, all or two fit: no further pass, or one for the second two and one for the
    last, each time.
    """
    family, passes = find_family(llama), []
    num_batches = len(tokens.unpacked(tokens.input_ids.numel()))
    llama.model.layers[0].register_forward_pre_hook(lambda module, args: passes.append(module))
    expected = list(gram_module.GramMatrices(llama, family, tokens, len(tokens)))
    for layers_that_fit, further in ((5, [0, 0]), (2, [2, 3])):
        monkeypatch.setattr(gram_module, "GRAM_BYTES", layers_that_fit * 8 * 48**2)
        grams = gram_module.GramMatrices(llama, family, tokens, len(tokens))
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
    grams = list(gram_module.GramMatrices(llama, family, tokens, len(tokens)))
    for ffn in feed_forwards(llama, family).values():
        ffn.down.register_forward_pre_hook(lambda module, args: inputs.append(args[0][tokens.mask]))
    llama(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    for gram_II, a_TI in zip(grams, inputs, strict=True):
        torch.testing.assert_close(gram_II, gram(a_TI), rtol=1e-9, atol=1e-9)


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
        monkeypatch.setattr(gram_module, "RIDGE", 0.0)
        return list(gram_module.GramMatrices(llama, family, of, 2))

    weight = share * tokens.num_tokens / protected.num_tokens
    expected = [
        (1 - share) * corpus + weight * other
        for corpus, other in zip(products(tokens), products(protected), strict=True)
    ]
    alone = statistics.collect(llama, family, tokens, 2)
    for layers_that_fit in (5, 2):
        monkeypatch.setattr(gram_module, "GRAM_BYTES", layers_that_fit * 8 * 48**2)
        for with_statistics in (True, False):
            grams = gram_module.GramMatrices(llama, family, tokens, 2, protected, share)
            if with_statistics:
                counted = statistics.collect(llama, family, tokens, 2, grams=grams)
                assert all(
                    torch.equal(value, alone.tensors()[name])
                    for name, value in counted.tensors().items()
                )
            for _ in range(2):
                for gram_II, expected_II in zip(grams, expected, strict=True):
                    torch.testing.assert_close(gram_II, expected_II, rtol=1e-4, atol=1e-6)


def test_a_pass_with_gradients_does_not_run_through_the_matrices(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    """It would hold the activations of all batches."""
    family = find_family(llama)
    grams = gram_module.GramMatrices(llama, family, tokens, 2)
    statistics.collect(llama, family, tokens, 2, extra=frozenset({"gradients"}), grams=grams)
    assert grams.sums
    assert not any(sums_II.requires_grad for sums_II in grams.sums)


def test_protected_output_changes_less(tokens: packing.PackedTokens) -> None:
    generator = torch.Generator().manual_seed(6)
    protected = packing.pack([torch.randint(2, 384, (200,), generator=generator).tolist()], 96, 1)
    before, off = first_outputs(make_model("llama"), protected), []
    for share in (0.0, 0.5, 0.9):
        model = make_model("llama")
        prune(model, tokens, 24, True, protected, share)
        off.append(float((first_outputs(model, protected) - before).norm()))
    assert off[0] > 1.05 * off[1] > 1.05 * off[2]


def test_padding_does_not_count(llama: PreTrainedModel, tokens: packing.PackedTokens) -> None:
    assert not tokens.mask.all()
    ids = tokens.input_ids.where(tokens.mask, 7)
    other = packing.PackedTokens(ids, tokens.position_ids, tokens.mask)
    assert torch.equal(prices(llama, other), prices(llama, tokens))


def test_nothing_is_left_on_the_model(llama: PreTrainedModel, tokens: packing.PackedTokens) -> None:
    llama.train()
    modes = []
    llama.model.layers[0].register_forward_pre_hook(
        lambda module, args: modes.append(module.training)
    )
    prune(llama, tokens, 24, True)
    llama.model.layers[0]._forward_pre_hooks.clear()
    assert llama.training
    assert not any(modes), "dropout would be in the prices"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())
    assert all(
        parameter.requires_grad and parameter.dtype == torch.float32
        for parameter in llama.parameters()
    )


def test_needs_a_pass_of_its_own() -> None:
    with pytest.raises(ValueError, match="--scorer reconstruction needs a pass of its own"):
        check(Config.from_flat(score_during_recovery=True, data="x", model="x"))


def test_neurons_that_shout_at_one_token_leave_the_gram_matrix_positive_definite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    width = 1536
    a_TI = torch.randn(256, width, generator=torch.Generator().manual_seed(0))
    a_TI[0, :8] = 1000 * torch.linspace(1, 3, 8)
    down = torch.nn.Linear(width, 1)
    model = torch.nn.Sequential(down)
    model.device = torch.device("cpu")
    monkeypatch.setattr(
        gram_module, "feed_forwards", lambda *_: {"0": SimpleNamespace(down=down, width=width)}
    )
    grams = gram_module.GramMatrices(model, None, None, 1)
    with grams.watch():
        grams.expect(torch.ones(1, 256, dtype=torch.bool))
        down(a_TI.unsqueeze(0))
    (gram_II,) = grams
    assert torch.linalg.cholesky_ex(gram_II).info == 0
