"""The model in memory as lm-eval wants it, with batches no larger than their logits' memory allows.

lm-eval compares answers by their log-likelihood from the logits of whole batches, in float32 and
twice. That is what its memory goes to, and it knows no limit: on a CPU the process would be killed.
"""

import contextlib
import copy
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any

import lm_eval.api.model
import lm_eval.api.task
import lm_eval.models.huggingface
import torch
from lm_eval.models.huggingface import HFLM

from ptl_fast.base import distributed
from ptl_fast.base.progress import Steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Of the device's memory, what the logits of a batch may take. Of all of it, not of what is free, so
# that a run has the same batches, and rounds alike, each time.
LOGITS_SHARE = 1 / 8
BLOCK = 32  # at most so many neighbouring requests are one rank's


class SizedModel(HFLM):
    """lm-eval's model, whose batches of log-likelihoods are as large as asked for, or as fit, and
    whose requests all ranks answer a share of: see ``divided``.
    """

    def _loglikelihood_tokens(self, requests: list[Any], *given: Any, **named: Any) -> list[Any]:
        return self._divide("_own_loglikelihoods", requests, given, named)

    def generate_until(self, requests: list[Any], *given: Any, **named: Any) -> list[str]:
        return self._divide("_own_texts", requests, given, named)

    def _divide(self, *asked: Any) -> list[Any]:
        """On the main rank: have all ranks answer."""
        distributed.agree(asked)
        return self._answer(*asked)

    def _answer(
        self, method: str, requests: list[Any], given: tuple[Any, ...], named: dict[str, Any]
    ) -> list[Any]:
        """Every request's answer, on all ranks; each answers a share of them."""

        def answer(blocks: Sequence[list[Any]]) -> list[list[Any]]:
            own = [request for block in blocks for request in block]
            found = iter(getattr(self, method)(own, *given, **named) if own else ())
            return [[next(found) for _ in block] for block in blocks]

        # of neighbours, as the answers to choose from often share their forward pass
        size = min(BLOCK, -(-len(requests) // distributed.world_size())) or 1
        blocks = [requests[first : first + size] for first in range(0, len(requests), size)]
        return [each for block in distributed.divided(answer, blocks) for each in block]

    def serve(self) -> None:
        """On every other rank: answer a share of what the main rank asks, until it has finished."""
        while (asked := distributed.agree(None)) is not None:
            self._answer(*asked)

    def _own_texts(self, requests: list[Any], *given: Any, **named: Any) -> list[str]:
        texts: list[str] = super().generate_until(requests, *given, **named)
        return texts

    def _own_loglikelihoods(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        asked: int = self.batch_size_per_gpu  # type: ignore[has-type]  # lm-eval leaves it out
        answer = max((len(each) for _, _, each in requests), default=0)
        if answer > self.max_length:
            raise ValueError(
                f"an evaluation task has an answer of {answer} tokens, more than the model's"
                f" {self.max_length} positions; leave the task out of --eval-tasks"
            )
        longest = self._longest(requests)
        vocab_size = self.model.get_output_embeddings().weight.shape[0]
        # assigned, as lm-eval reads override_bs only where it looks for a size itself
        self.batch_size_per_gpu = min(asked, fitting(longest, vocab_size, memory(self.device)))
        try:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        finally:
            self.batch_size_per_gpu = asked

    def _longest(self, requests: list[Any]) -> int:
        """Tokens of the longest request, cut as lm-eval cuts it."""
        lengths = (len(context) + len(answer) for _, context, answer in requests)
        return min(max(lengths, default=1), self.max_length)


class _Bar(Steps):
    """tqdm as lm-eval calls it, shown as all of the run's progress is."""

    def __init__(
        self,
        iterable: Iterable[Any] = (),
        *,
        description: str,
        total: float | None = None,
        disable: bool = False,
        **_: Any,
    ) -> None:
        self.iterable = iterable
        # a generator would be empty after it was counted
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        super().__init__(description, total, hidden=disable)

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()


@contextlib.contextmanager
def reporting(description: str) -> Iterator[None]:
    """While this lasts lm-eval's progress bars, which nothing switches off, are ours.

    Args:
        description: what they are called.
    """

    def bar(*iterable: Any, **settings: Any) -> _Bar:
        settings.pop("desc", None)
        return _Bar(*iterable, description=description, **settings)

    modules: list[Any] = [lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface]
    before = [module.tqdm for module in modules]
    try:
        for module in modules:
            module.tqdm = bar
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            module.tqdm = own


@contextlib.contextmanager
def divided(model: SizedModel) -> Iterator[SizedModel]:
    """The model to evaluate on the main rank; on the others, which have answered their share of its
    requests, the body has nothing left to do.
    """
    if not distributed.is_main():
        model.serve()
    try:
        yield model
    finally:
        if distributed.is_main():
            distributed.agree(None)


def make(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int
) -> SizedModel:
    """The model for lm-eval's ``evaluate``."""
    # lm-eval gives its tokenizer a padding token, which must not reach ours
    return SizedModel(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)


def fitting(length: int, vocab_size: int, memory_bytes: int) -> int:
    """How many rows of so many tokens have logits, float32 and twice, that fit; at least one."""
    return max(1, int(LOGITS_SHARE * memory_bytes) // (2 * 4 * length * vocab_size))


def memory(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
