"""Let a model answer prompts, in batches, and say of each answer whether it ended by itself.

transformers generates. What the model's own generation config asks for (a repetition penalty,
top-k) is switched off: answers are drawn from the model's distribution as it is, which is what is
compared before and after pruning.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ptl_fast.base import distributed
from ptl_fast.base.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# An answer repeats itself when its end is the same piece again and again: at least so many times,
# and over at least so many tokens. Pieces are at most LONGEST_PIECE tokens long.
NUM_REPEATS, REPEATED_TOKENS, LONGEST_PIECE = 4, 32, 64
# of a batch's answers; then it goes on without them
ENDED_SHARE = 1 / 4
SELECTABLE = {DynamicLayer, DynamicSlidingWindowLayer}  # caches whose rows can be taken out


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int
    """An answer that is longer is cut off there."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token each time (greedy)."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    stop_repeating: bool = False
    """Whether an answer that ``repeats`` is cut off at once."""


class Answer(NamedTuple):
    """One answer to a prompt."""

    tokens: list[int]
    """Token ids, without the prompt and without the end-of-sequence token."""
    finished: bool
    """Whether the model ended it; False if it was cut off."""


def answer_all(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int,
    description: str,
) -> tuple[list[Answer], float]:
    """Answer every prompt; return the answers in the prompts' order, and the seconds that they
    took. Each rank answers a share of the batches, and all must call this; their seconds are added.

    Args:
        prompts: token ids of each, not empty.
        batch_size: prompts in a forward pass.
        description: label of the progress bar.
    """

    def answer(batch: Sequence[int]) -> tuple[list[Answer], float]:
        start = time.perf_counter()
        found = answer_batch(model, tokenizer, [prompts[index] for index in batch], sampling)
        return found, time.perf_counter() - start

    batches = by_length(prompts, batch_size)
    found = distributed.divided(
        lambda some: [answer(batch) for batch in progress(some, description)], batches
    )
    answers: dict[int, Answer] = {}
    for batch, (given, _) in zip(batches, found, strict=True):
        answers.update(zip(batch, given, strict=True))
    return [answers[index] for index in range(len(prompts))], sum(taken for _, taken in found)


def by_length(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Indices of the prompts, batch by batch: the longest first, so that batches need little
    padding and the one that takes most memory shows at once whether it fits.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


@torch.inference_mode()
def answer_batch(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
) -> list[Answer]:
    """Answer these prompts in one batch, padded on the left.

    The random numbers depend on ``sampling.seed`` and the batch alone; torch's own generators are
    as they were afterwards. Dropout is off, and the model's mode is as it was afterwards.
    """
    ends = stop_tokens(model, tokenizer)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        produced = _generate(model, prompts, sampling, ends)
    model.train(was_training)
    return [_cut(tokens, set(ends), sampling) for tokens in produced]


def _generate(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: list[int],
) -> list[list[int]]:
    """Each prompt's answer, with whatever follows its end in the batch.

    Answers that have ended are computed on with the others, to no purpose, until all have. So the
    batch stops when ENDED_SHARE of them has, and goes on without these, from its key-value cache.
    """
    longest, ends_E = max(map(len, prompts)), torch.tensor(ends, device=model.device)
    rows = [[ends[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    tokens_BT = torch.tensor(rows, device=model.device)
    mask_BT = torch.tensor(real, device=model.device)
    cache: dict[str, Any] = {}
    produced: list[list[int]] = [[] for _ in prompts]
    left = torch.arange(len(prompts), device=model.device)
    while len(left):
        ended = _Ended(longest, ends_E, sampling.stop_repeating)
        made = model.generate(  # type: ignore[operator]
            tokens_BT,
            attention_mask=mask_BT,
            generation_config=_generation_config(sampling, ends, longest),
            stopping_criteria=StoppingCriteriaList([ended]),
            **cache,
        )
        tokens_BT = made.sequences
        if tokens_BT.shape[1] == longest + sampling.max_new_tokens:
            ended.rows_B = torch.ones_like(ended.rows_B)
        for index, row in zip(
            left[ended.rows_B].tolist(), tokens_BT[ended.rows_B].tolist(), strict=True
        ):
            produced[index] = row[longest:]
        stays = (~ended.rows_B).nonzero()[:, 0]
        cache = _select(made.past_key_values, stays) if len(stays) else {}
        left, tokens_BT = left[stays], tokens_BT[stays]
        mask_BT = F.pad(mask_BT[stays], (0, tokens_BT.shape[1] - mask_BT.shape[1]), value=1)
    return produced


def _select(cache: Any, rows: Tensor) -> dict[str, Any]:
    """These rows of a key-value cache, as an argument of ``generate``; nothing for another kind of
    cache, such as that of linear attention: the rows' tokens are then read once more.
    """
    kinds = {type(layer) for layer in getattr(cache, "layers", [None])}
    if not kinds <= SELECTABLE:
        return {}
    cache.batch_select_indices(rows)
    return {"past_key_values": cache}


def stop_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that end an answer: the tokenizer's end of sequence, and those that the model's
    generation config names beside it (chat models end a turn with a token of its own).

    Raises:
        ValueError: there is none, so no answer would ever end.
    """
    named: Any = getattr(model.generation_config, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    ends = [each for each in (tokenizer.eos_token_id, *listed) if each is not None]
    if not ends:
        raise ValueError("the tokenizer has no end-of-sequence token; set eos_token")
    return list(dict.fromkeys(ends))


def repeats(tokens: Sequence[int]) -> bool:
    """Whether the end of an answer is one piece, again and again: it would go on for ever.

    >>> repeats([5, 6] * 20), repeats([5, 6, 7] * 3)
    (True, False)
    """
    return bool(_repeating_rows(torch.tensor([list(tokens)]))[0])


def _repeating_rows(tokens: Tensor) -> Tensor:
    """Of each row, whether it ``repeats``: (rows, length) int64 -> (rows,) bool."""
    found = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for piece in range(1, LONGEST_PIECE + 1):
        length = max(NUM_REPEATS * piece, REPEATED_TOKENS)
        if tokens.shape[1] < length:
            break
        end = tokens[:, -length:]
        found |= (end[:, piece:] == end[:, :-piece]).all(1)
    return found


class _Ended(StoppingCriteria):
    """Which answers have ended, or repeat themselves; all stop when these are ENDED_SHARE."""

    def __init__(self, prompt_length: int, ends_E: Tensor, stop_repeating: bool) -> None:
        self.prompt_length, self.ends_E, self.stop_repeating = prompt_length, ends_E, stop_repeating
        self.rows_B = torch.empty(0, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        # what has ended is padded with an end
        self.rows_B = torch.isin(input_ids[:, -1], self.ends_E)
        if self.stop_repeating:
            self.rows_B |= _repeating_rows(input_ids[:, self.prompt_length :])
        return self.rows_B | (self.rows_B.sum() >= ENDED_SHARE * len(self.rows_B))


def _generation_config(sampling: Sampling, ends: list[int], prompt_length: int) -> GenerationConfig:
    """Everything that the model's own generation config might ask for is named and off."""
    # greedy generation warns of settings of sampling
    drawn: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        drawn = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # off; greedy answers have none, and transformers warns where it is named
            "top_k": 0,
        }
    return GenerationConfig(
        **drawn,
        num_beams=1,
        repetition_penalty=1.0,
        max_length=prompt_length + sampling.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
        use_cache=True,
        return_dict_in_generate=True,
    )


def _cut(tokens: list[int], ends: set[int], sampling: Sampling) -> Answer:
    """The answer up to the first end-of-sequence token; what follows is padding."""
    length = next((index for index, token in enumerate(tokens) if token in ends), None)
    if length is None:
        return Answer(tokens, finished=False)
    answer = tokens[:length]
    # an answer that was stopped for repeating itself is padded like one that ended
    return Answer(answer, finished=not (sampling.stop_repeating and repeats(answer)))
