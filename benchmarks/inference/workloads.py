"""What is timed of a model, and one run of it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from benchmarks.harness.clock import now


@dataclass(frozen=True)
class Workload:
    """A batch that a model answers.

    - prefill: a forward pass over the prompts
    - decode: the steps of a generation after its first token
    - paper: a whole generation, prefill and decode together
    """

    kind: Literal["prefill", "decode", "paper"]
    batch_size: int
    prompt_length: int
    new_tokens: int
    """1 for prefill."""

    @property
    def context(self) -> int:
        """Tokens in the KV cache halfway through the generation."""
        return self.prompt_length + self.new_tokens // 2

    def columns(self) -> dict[str, Any]:
        """The workload as a row of the results names it: its kind stands under "work"."""
        values = asdict(self)
        return {"work": values.pop("kind"), **values}


@dataclass(frozen=True)
class Times:
    """What one run of a workload took."""

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


def run(model: PreTrainedModel, workload: Workload) -> Times:
    """Run the workload once, on fresh random tokens."""
    sizes = (workload.batch_size, workload.prompt_length)
    tokens = torch.randint(2, model.config.vocab_size, sizes, device=model.device)
    start = now(model.device)
    if workload.kind == "prefill":
        model(tokens, use_cache=True, logits_to_keep=1)
        seconds = now(model.device) - start
        return Times(1e3 * seconds, 1e3 * seconds, tokens.numel() / seconds)
    # generate calls a stopping criterion after every step: the one place to read a clock in there
    clock = TokenClock(model)
    model.generate(  # type: ignore[operator]
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=workload.new_tokens,
        min_new_tokens=workload.new_tokens,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return generation_times(workload, start, clock.times)


def generation_times(workload: Workload, start: float, ready: list[float]) -> Times:
    """Times from when the generation started and when each new token was ready, in seconds."""
    assert len(ready) == workload.new_tokens, "generation stopped early"
    first = ready[0] - start
    if workload.kind == "paper":
        seconds, num_tokens = ready[-1] - start, workload.new_tokens
    else:
        # from the first token on, so that the prefill is not in a step's time
        seconds, num_tokens = (ready[-1] - ready[0]) / (workload.new_tokens - 1), 1
    return Times(1e3 * seconds, 1e3 * first, workload.batch_size * num_tokens / seconds)
