"""Logits in chunks are the model's own, in every family, and never are many of them in memory."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from ptl_fast.model import head_chunks
from ptl_fast.model.head_chunks import wanted_logits
from support.models import FAMILIES, make_model

# beside those, families that change the head's output: by a scale, a divisor, a cap
HEADS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("gemma2", {"final_logit_softcapping": 0.5}),
    ("cohere", {"logit_scale": 0.3}),
    ("granite", {"logits_scaling": 7.0}),
    ("gpt_neox", {}),
]


def cut_into(model: PreTrainedModel, input_ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The chunks put together, after a look at their places."""
    parts = list(wanted_logits(model, input_ids, wanted))
    places = [index for _, part in parts for index in range(part.start, part.stop)]
    assert places == list(range(int(wanted.sum())))
    assert all(len(logits) == part.stop - part.start for logits, part in parts)
    return torch.cat([logits for logits, _ in parts])


@pytest.mark.parametrize(
    ("family", "values"), HEADS, ids=[f"{name}{'-'.join(more)}" for name, more in HEADS]
)
@torch.inference_mode()
def test_chunks_together_are_the_models_logits(
    family: str,
    values: dict[str, Any],
    input_ids: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(family, **values)
    wanted = torch.rand(input_ids.shape) < 0.6
    expected = model(input_ids=input_ids, use_cache=False).logits[wanted]
    assert torch.equal(cut_into(model, input_ids, wanted), expected), "a small batch is not cut"
    sizes: list[int] = []
    head = model.get_output_embeddings()
    watch = head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    monkeypatch.setattr(head_chunks, "LOGITS_BYTES", 4 * 384 * 7 + 5)
    found = cut_into(model, input_ids, wanted)
    watch.remove()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert max(sizes) == 7 * 384
    assert torch.equal(model(input_ids=input_ids, use_cache=False).logits[wanted], expected)


@torch.inference_mode()
def test_a_head_that_is_called_in_another_way_gives_the_whole_logits(
    llama: PreTrainedModel, input_ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flat(nn.Linear):
        def __call__(self, hidden: torch.Tensor) -> Any:
            return super().__call__(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])

    llama.lm_head.__class__ = Flat
    wanted = torch.rand(input_ids.shape) < 0.6
    expected = llama(input_ids=input_ids, use_cache=False).logits[wanted]
    monkeypatch.setattr(head_chunks, "LOGITS_BYTES", 4 * 384 * 7)
    assert torch.equal(cut_into(llama, input_ids, wanted), expected)


@torch.inference_mode()
def test_nothing_stays_on_the_head_of_an_evaluation_that_ends_early(
    llama: PreTrainedModel, input_ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_chunks, "LOGITS_BYTES", 4 * 384 * 7)
    chunks = wanted_logits(llama, input_ids, torch.ones_like(input_ids, dtype=torch.bool))
    next(chunks)
    assert llama.lm_head._forward_pre_hooks
    chunks.close()  # type: ignore[attr-defined]
    assert not llama.lm_head._forward_pre_hooks
