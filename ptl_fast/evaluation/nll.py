"""Negative log-likelihood (NLL) per token of held-out answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ptl_fast.base import distributed
from ptl_fast.base.progress import progress
from ptl_fast.data import chats as chats_module
from ptl_fast.data.batching import pad_right
from ptl_fast.evaluation.task_names import NLL
from ptl_fast.model.head_chunks import wanted_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ptl_fast.data.documents import Document


NLL_MAX_LENGTH = 2048  # tokens of a document


@torch.inference_mode()
def answer_nll(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    documents: Sequence["Document"],
    batch_size: int,
    max_length: int,
    description: str = NLL,
    *,
    divide: bool = False,
) -> dict[str, float]:
    """Return {"nll": mean negative log-likelihood per answer token, in nats}.

    Question tokens are context and do not count; a document without a question counts as a whole.
    Of a chat all turns of the assistant count, each with the token that ends it.
    Documents are truncated to ``max_length`` tokens, or the model's positions. Logits of a batch
    exist a part at a time.

    Args:
        divide: whether each rank takes a share of the batches, to the same result bit for bit; all
            must call this, with whole models.

    Raises:
        ValueError: no document has an answer token within ``max_length`` tokens.
    """
    model.eval()
    # beyond these, learned positions are an IndexError, and others were never trained
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    max_length = min(max_length, positions or max_length)
    # by length: a batch then has little padding
    ordered = sorted(documents, key=lambda document: len(document.text))
    batches = [ordered[first : first + batch_size] for first in range(0, len(ordered), batch_size)]

    def losses_of(some: Sequence[Sequence["Document"]]) -> list[tuple[list[float], int]]:
        shown = progress(some, description)
        return [_batch_losses(model, tokenizer, batch, max_length) for batch in shown]

    found = distributed.divided(losses_of, batches) if divide else losses_of(batches)
    total, count = sum(loss for losses, _ in found for loss in losses), sum(n for _, n in found)
    if not count:
        raise ValueError(
            f"evaluation task {description}: the documents hold no answer tokens within"
            f" {max_length} tokens"
        )
    return {NLL: total / count}


def _batch_losses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: Sequence["Document"],
    max_length: int,
) -> tuple[list[float], int]:
    """The sums of the answer tokens' losses, a part of the batch each, and how many these are."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    encoded = _encoded(tokenizer, batch)
    input_ids = pad_right([ids for ids, _ in encoded], pad)
    counted = pad_right([answers for _, answers in encoded], 0).bool()
    # position t predicts token t + 1
    counted = counted[:, 1:max_length].to(model.device)
    input_ids = input_ids[:, :max_length].to(model.device)
    following = input_ids[:, 1:][counted]
    # after the last token there is nothing to predict
    wanted = torch.nn.functional.pad(counted, (0, 1))
    losses = []
    for logits, part in wanted_logits(model, input_ids, wanted):
        loss = torch.nn.functional.cross_entropy(logits.float(), following[part], reduction="sum")
        losses.append(loss.item())
    return losses, int(counted.sum())


def _encoded(
    tokenizer: "PreTrainedTokenizerBase", documents: Sequence["Document"]
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Each document's token ids, and for each of them whether it is part of an answer.

    Unlike in training, a document that is no chat has no end-of-sequence token.
    """
    chats = (document for document in documents if document.chat is not None)
    written = chats_module.encode(list(chats), tokenizer, find_answers=True)
    encoded: list[tuple[Sequence[int], Sequence[int]]] = []
    for document in documents:
        if document.chat is not None:
            ids, borders = next(written)
            encoded.append((ids, list(chats_module.marks(borders, len(ids)))))
            continue
        row = tokenizer(document.text, return_offsets_mapping=True, verbose=False)
        # a token counts if it ends inside the answer, even if it begins in the prompt
        is_answer = [end > len(document.prompt) for _, end in row["offset_mapping"]]
        encoded.append((row["input_ids"], is_answer))
    return encoded
