"""Metrics in words that people read, with how to read each.

Evaluation names metrics as its tasks do, lm-eval's with the answer's filter behind a slash.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """How a metric is read."""

    name: str
    higher_is_better: bool | None
    how: str
    is_share: bool = False

    def show(self, value: float) -> str:
        """The value as people write it."""
        return f"{value:.1%}" if self.is_share else f"{value:.4g}"


_RIGHT = "Share of the problems whose final answer is right: higher is better, 100% is all of them."
_RANK = (
    "Share of the questions where the right choice has the highest probability: higher is better."
)
_LOSS = (
    "How much the words of answers that were held back surprise the model, in nats a token: lower"
    " is better, and 0.05 more is a clear loss."
)
_PERPLEXITY = (
    "Among how many words the model hesitates, on average, at each word: lower is better, and 1"
    " would be certainty."
)

READINGS = {
    "nll": Reading("loss on held-out answers", False, _LOSS),
    "perplexity": Reading("perplexity", False, _PERPLEXITY),
    "word_perplexity": Reading("perplexity a word", False, _PERPLEXITY),
    "byte_perplexity": Reading("perplexity a byte", False, _PERPLEXITY),
    "bits_per_byte": Reading("bits a byte of text", False, "Lower is better."),
    "exact_match": Reading("answers right", True, _RIGHT, True),
    "math_verify": Reading("answers right", True, _RIGHT, True),
    "pass@1": Reading("answers right", True, _RIGHT, True),
    "pass_at_1": Reading("programs that pass their tests", True, _RIGHT, True),
    "acc": Reading("choices right", True, _RANK, True),
    "acc_norm": Reading("choices right, by length", True, _RANK, True),
}


def reading(metric: str) -> Reading:
    """How to read a metric; an unknown one keeps its name, and nobody says what is better."""
    base = metric.partition("/")[0]
    if base in READINGS:
        return READINGS[base]
    if base.startswith("pass@"):
        name = f"problems solved in {base.removeprefix('pass@')} tries"
        return Reading(name, True, _RIGHT, True)
    return Reading(metric, None, "As the task defines it.")


def titled(task: str, metric: str) -> str:
    """A metric's name with its task's, for tables and charts."""
    name = reading(metric).name
    return name if task == metric else f"{task}: {name}"
