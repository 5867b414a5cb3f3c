"""What speedup.py times: a model's work, and one run of it."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from benchmarks.harness.clock import now


@dataclass(frozen=True)
class Work:
    """What is timed."""

    work: Literal["prefill", "decode", "paper"]
    batch_size: int
    prompt_length: int
    new_tokens: int
    """1 for prefill."""

    @property
    def context(self) -> int:
        """Tokens in the cache halfway through the generation."""
        return self.prompt_length + self.new_tokens // 2


@dataclass(frozen=True)
class Times:
    """One run of a work."""

    time_ms: float
    """prefill: the pass; decode: one step; paper: all tokens."""
    first_token_ms: float
    tokens_per_second: float
    """prefill: of the prompt; decode and paper: new ones."""


class TokenClock(StoppingCriteria):
    """Notes when each new token is ready; stops nothing."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.times: list[float] = []

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        self.times.append(now(self.model.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def run(model: PreTrainedModel, work: Work) -> Times:
    """Do the work once, on fresh random tokens."""
    tokens = torch.randint(
        2, model.config.vocab_size, (work.batch_size, work.prompt_length), device=model.device
    )
    start = now(model.device)
    if work.work == "prefill":
        model(tokens, use_cache=True, logits_to_keep=1)
        seconds = now(model.device) - start
        return Times(1e3 * seconds, 1e3 * seconds, tokens.numel() / seconds)
    clock = TokenClock(model)
    model.generate(  # type: ignore[operator]
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=work.new_tokens,
        min_new_tokens=work.new_tokens,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return generation_times(work, start, clock.times)


def generation_times(work: Work, start: float, ready: list[float]) -> Times:
    """Times from when each new token was ready, in seconds."""
    assert len(ready) == work.new_tokens, "generation stopped early"
    first = ready[0] - start
    if work.work == "paper":
        seconds, num_tokens = ready[-1] - start, work.new_tokens
    else:
        seconds, num_tokens = (ready[-1] - ready[0]) / (work.new_tokens - 1), 1
    return Times(1e3 * seconds, 1e3 * first, work.batch_size * num_tokens / seconds)
