"""Means over documents equal those of documents that are run one by one."""

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.data import packing
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.scoring import statistics as statistics_module
from ptl_fast.scoring.document_means import DocumentMeans
from ptl_kernels import Ffn

CLOSE = 1e-5  # models in float64, but transformers' norms compute in float32


@pytest.fixture
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [
        torch.randint(2, 384, (count,), generator=generator).tolist() for count in (6, 11, 4, 9, 1)
    ]


def one_by_one(model: PreTrainedModel, documents: list[list[int]]) -> torch.Tensor:
    """The definition: (mean |a| of a document)^2, added up over documents."""
    total_LI = torch.zeros(5, 48, dtype=torch.float64)

    def add(module: torch.nn.Module, args: tuple, layer: int) -> None:
        total_LI[layer] += args[0][0].double().abs().mean(0) ** 2

    handles = [
        ffn.down.register_forward_pre_hook(
            lambda module, args, layer=layer: add(module, args, layer)
        )
        for layer, ffn in enumerate(feed_forwards(model, find_family(model)).values())
    ]
    with torch.inference_mode():
        for document in documents:
            model(torch.tensor([document]), use_cache=False)
    for handle in handles:
        handle.remove()
    return total_LI


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_document_counts_once_however_long(
    any_model: PreTrainedModel, documents: list[list[int]], batch_size: int
) -> None:
    model, family = any_model.double(), find_family(any_model)
    tokens, extra = packing.pack(documents, 16, 1), frozenset({"documents"})
    taken = statistics_module.collect(model, family, tokens, batch_size, extra=extra)
    assert int(taken.num_documents) == len(documents)
    expected = one_by_one(model, documents)
    torch.testing.assert_close(taken.document_LI, expected, rtol=CLOSE, atol=0.0)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_documents_that_share_a_row_are_told_by_their_positions() -> None:
    """As with flash-attention: means 2 and 5 of one document, 1 and 0 of the other; padding."""
    down = torch.nn.Linear(2, 3, bias=False)
    total_LI, num_documents = torch.zeros(1, 2, dtype=torch.float64), torch.tensor(0)
    means = DocumentMeans(total_LI, num_documents)
    activations = torch.tensor([[[1.0, -4.0], [3.0, 6.0], [-1.0, 0.0], [9.0, 9.0]]])
    mask, positions = torch.tensor([[1, 1, 1, 0]]).bool(), torch.tensor([[0, 1, 0, 0]])
    with means.watch([Ffn(module=down, inputs=[down], down=down)]):
        means.expect(mask, positions)
        down(activations)
    assert total_LI.tolist() == [[4.0 + 1.0, 25.0]]
    assert int(num_documents) == 2
