"""Rotation alone changes nothing, and slicing keeps the principal axes of the residual stream."""

from typing import Any

import pytest
import torch

from ptl_fast.baselines.slicegpt import SlicedDecoderLayer
from ptl_fast.baselines.slicing import rotate_and_slice
from ptl_fast.data.packing import PackedTokens
from support.models import HIDDEN, NUM_LAYERS, make_model
from support.numbers import relative_error
from support.slicing import logits, packed, sliced

# float32 logits of order 1, behind ten blocks of matrices that were multiplied by rotations and
# rounded once.
TOLERANCE = 2e-5
MODELS = [
    pytest.param("llama", {}, id="llama"),
    pytest.param(
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        id="llama-biases-tied",
    ),
    pytest.param("mistral", {}, id="mistral"),
    pytest.param("qwen2", {}, id="qwen2-with-its-biases"),
    pytest.param("qwen3", {}, id="qwen3"),
    pytest.param(
        "gemma2",
        {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.0},
        id="gemma2-capped",
    ),
]


def confine_(model: Any, num_directions: int) -> None:
    """Make the residual stream lie in a random subspace: what every block adds, and the embeddings,
    are projected on it.
    """
    axes, _ = torch.linalg.qr(
        torch.randn(HIDDEN, num_directions, generator=torch.Generator().manual_seed(5))
    )
    projection = axes @ axes.T
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ projection)
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.copy_(projection @ linear.weight)
                if linear.bias is not None:
                    linear.bias.copy_(projection @ linear.bias)
            if hasattr(
                layer, "post_feedforward_layernorm"
            ):  # its weight must not turn the vectors out of the subspace
                layer.post_attention_layernorm.weight.fill_(0.3)
                layer.post_feedforward_layernorm.weight.fill_(-0.2)


def block_inputs(model: Any, tokens: PackedTokens) -> list[torch.Tensor]:
    """(num_counted_tokens, D) float64 for each block: the stream that enters its norm, in the order
    of computation.
    """
    norms = []
    for layer in model.model.layers:
        if isinstance(layer, SlicedDecoderLayer):
            norms.append(layer.norm)
        else:
            names = ("input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm")
            norms += [getattr(layer, name) for name in names if hasattr(layer, name)][:2]
    inputs: list[torch.Tensor] = []
    handles = [
        norm.register_forward_pre_hook(
            lambda module, args: inputs.append(args[0][tokens.mask].double())
        )
        for norm in norms
    ]
    with torch.inference_mode():
        model.model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs


@pytest.mark.parametrize(("family", "settings"), MODELS)
def test_rotating_without_slicing_leaves_the_logits_unchanged(
    family: str, settings: dict, input_ids: torch.Tensor
) -> None:
    model = make_model(family, **settings)
    expected, embedding = (
        logits(model, input_ids),
        model.get_input_embeddings().weight.detach().clone(),
    )
    rotated = sliced(model, HIDDEN)
    torch.testing.assert_close(logits(rotated, input_ids), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert relative_error(rotated.get_input_embeddings().weight, embedding) > 0.5, (
        "rotated for real"
    )


def test_bfloat16_weights_stay_bfloat16_and_lose_only_roundings(input_ids: torch.Tensor) -> None:
    """Relative 0.03 of the logits: eps is 0.008, and the rotated and the original weights round
    independently in ten blocks.
    """
    model = make_model("gemma2").bfloat16()
    expected = logits(model, input_ids)
    rotated = sliced(model, HIDDEN)
    assert {parameter.dtype for parameter in rotated.parameters()} == {torch.bfloat16}
    assert relative_error(logits(rotated, input_ids), expected) < 0.03


@pytest.mark.parametrize(("family", "settings"), MODELS)
def test_a_stream_in_a_subspace_loses_nothing_when_sliced_to_it(
    family: str, settings: dict, input_ids: torch.Tensor
) -> None:
    """Only so if the kept axes are the subspace, and the norms still divide by the original hidden
    size.
    """
    model = make_model(family, **settings)
    confine_(model, 16)
    expected = logits(model, input_ids)
    small, eigenvalues = rotate_and_slice(model, packed(), 16, 8)
    torch.testing.assert_close(logits(small, input_ids), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert eigenvalues.shape == (2 * NUM_LAYERS, HIDDEN)
    assert eigenvalues[:, 16:].abs().max() < 1e-8 * eigenvalues[:, 0].min()
    assert eigenvalues[:, 15].min() > 1e-4 * eigenvalues[:, 0].max()


def test_slicing_below_the_subspace_changes_the_logits(input_ids: torch.Tensor) -> None:
    model = make_model("llama")
    confine_(model, 16)
    expected = logits(model, input_ids)
    assert (logits(sliced(model, 8), input_ids) - expected).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_unsliced_eigenvalues_are_those_of_the_dense_models_stream(family: str) -> None:
    model, tokens = make_model(family), packed()
    expected = torch.stack(
        [torch.linalg.eigvalsh(stream.T @ stream).flip(0) for stream in block_inputs(model, tokens)]
    )
    _, eigenvalues = rotate_and_slice(model, tokens, HIDDEN, 8)
    torch.testing.assert_close(eigenvalues, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_sliced_stream_stands_in_its_own_principal_axes(family: str) -> None:
    """The covariance of every block's input is the diagonal of the kept eigenvalues: so axes come
    from the already sliced part.
    """
    tokens = packed()
    small, eigenvalues = rotate_and_slice(make_model(family), tokens, 16, 8)
    streams = block_inputs(small, tokens)
    assert len(streams) == 2 * NUM_LAYERS
    for stream, kept in zip(streams, eigenvalues[:, :16], strict=True):
        torch.testing.assert_close(
            stream.T @ stream, kept.diag(), rtol=0, atol=1e-5 * float(kept[0])
        )


def test_padding_and_other_documents_do_not_count() -> None:
    """Other tokens under the padding change no bit; documents packed in one row give what rows of
    their own give.
    """
    tokens = packed()
    other = PackedTokens(tokens.input_ids.clone(), tokens.position_ids, tokens.mask)
    other.input_ids[:, -2:] = 7
    ids, mask = torch.full((40, 13), 7), torch.zeros(40, 13, dtype=torch.bool)
    ids[0::2], mask[0::2] = tokens.input_ids[:, :13], True
    ids[1::2, :9], mask[1::2, :9] = tokens.input_ids[:, 13:22], True
    apart = PackedTokens(ids, torch.arange(13).repeat(40, 1), mask)
    first, second, third = (
        rotate_and_slice(make_model("llama"), corpus, 16, 8)[1] for corpus in (tokens, other, apart)
    )
    assert torch.equal(first, second)
    torch.testing.assert_close(first, third, rtol=1e-4, atol=1e-6 * float(first.max()))
