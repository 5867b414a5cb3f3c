"""Chat tasks: the model answers each problem in its own chat template, without examples, and every
answer is judged right or wrong.

Beside how many answers are right they say what a request costs: how long answers are, how many are
cut off or repeat themselves, and the seconds that one takes. A pruned model that is 1.5 times
faster and writes 1.5 times as much is no faster.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ptl_fast.base import distributed
from ptl_fast.base.progress import progress
from ptl_fast.data.answers import BOXED_REQUEST
from ptl_fast.evaluation import kept_answers
from ptl_fast.evaluation.kept_answers import KeptAnswer, Measured

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ptl_fast.config.evaluation import EvaluationSettings
    from ptl_fast.data.generation import Answer

Row = dict[str, Any]
"""A problem, in the columns that its task's loader makes."""

TOKENS, CUT_OFF, REPEATING = "response_tokens", "cut_off", "repeating"
SECONDS = "seconds_per_answer"
COSTS = (TOKENS, CUT_OFF, REPEATING, SECONDS)
"""Metrics that say what an answer costs; all others say how good it is."""


@dataclass(frozen=True, kw_only=True)
class ChatTask:
    """A kind of problem that is put to the model as a user would."""

    load: Callable[[str | None], Sequence[Row]]
    """Problems of a local file or a hub data set; None for the benchmark's own on the hub."""
    question: Callable[[Row], str]
    """What the user says."""
    is_right: Callable[[Row, str], bool]
    """Whether the text of an answer is right."""
    expected: Callable[[Row], str] = lambda row: str(row.get("gold", ""))
    """What is shown to people as the right answer, or as what it must pass."""
    runs_code: bool = False
    """Whether judging executes what the model wrote, in the sandbox."""


class Judged(NamedTuple):
    """An answer of the model, judged."""

    right: bool
    tokens: int
    """Its length, without the prompt and the end-of-sequence token."""
    finished: bool
    """Whether the model ended it; False if it was cut off."""
    repeating: bool
    """Whether its end is one piece again and again."""


@dataclass(frozen=True, kw_only=True)
class LoadedChat:
    """A chat task with its problems as prompts of one tokenizer."""

    task: ChatTask
    problems: Sequence[Row]
    prompts: Sequence[Sequence[int]] = field(repr=False)
    """Token ids of each problem in the chat template, up to where the answer begins."""
    num_samples: int
    """Answers to each problem."""
    max_tokens: int
    """An answer that is longer is cut off there."""
    temperature: float

    @property
    def metrics(self) -> dict[str, bool]:
        """{metric: whether higher is better} of those that a quality gate may look at.

        Not the seconds: two runs would decide differently.
        """
        passes = dict.fromkeys(_pass_names(self.num_samples), True)
        return {**passes, TOKENS: False, CUT_OFF: False, REPEATING: False}

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with the longest answer."""
        return max(map(len, self.prompts)) + self.max_tokens


def load_gsm8k(source: str | None) -> Sequence[Row]:
    """Problems {question, gold} of GSM8K."""
    from ptl_fast.evaluation.lm_eval_tasks.math_tasks import load_gsm8k

    return load_gsm8k(source)["test"].to_list()


def gsm8k_question(row: Row) -> str:
    """The problem, and where the final answer goes."""
    return f"{row['question']}\n{BOXED_REQUEST}"


def gsm8k_is_right(row: Row, text: str) -> bool:
    """Whether the final answer equals the row's, by math-verify."""
    from ptl_fast.data import answers

    return answers.is_right(row["gold"], text)


def load_mbpp(source: str | None) -> Sequence[Row]:
    """Problems {text, setup, test_list} of MBPP."""
    from ptl_fast.evaluation.lm_eval_tasks.code_tasks import load_mbpp

    return load_mbpp(source)["test"].to_list()


def mbpp_tests(row: Row) -> str:
    """The assertions that the code must pass."""
    return "\n".join(row["test_list"])


def mbpp_question(row: Row) -> str:
    """The task, and the assertions that the code must pass."""
    return f"{row['text']}\nYour code should pass these tests:\n\n{mbpp_tests(row)}"


def mbpp_is_right(row: Row, text: str) -> bool:
    """Whether the answer's code passes all assertions. Executes it, in the sandbox."""
    from ptl_fast.evaluation import sandbox

    return sandbox.passes(code_of(text), "\n".join([row["setup"], *row["test_list"]]))


CHAT_TASKS: Mapping[str, ChatTask] = {
    "ptl_gsm8k_chat": ChatTask(load=load_gsm8k, question=gsm8k_question, is_right=gsm8k_is_right),
    "ptl_mbpp_chat": ChatTask(
        load=load_mbpp,
        question=mbpp_question,
        is_right=mbpp_is_right,
        expected=mbpp_tests,
        runs_code=True,
    ),
}
"""By the name in --eval-tasks."""


def code_of(text: str) -> str:
    """The code of an answer: its first fenced block that defines something, or else its first
    block; all of it if it has no fence.

    Later blocks are mostly examples of how to call it. A block that was cut off goes to the end.
    """
    parts = text.split("```")
    # odd parts are inside fences; their first line may name the language
    blocks = [part.partition("\n")[2] for part in parts[1::2]]
    defining = [block for block in blocks if "def " in block or "class " in block]
    return (defining or blocks or [text])[0]


def load(
    task: ChatTask,
    source: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    settings: "EvaluationSettings",
) -> LoadedChat:
    """Load a task's problems, at most --eval-limit of them, as prompts.

    Raises:
        ValueError: the data does not fit, or the tokenizer has no chat template.
    """
    problems = task.load(source)[: settings.eval_limit]
    return LoadedChat(
        task=task,
        problems=problems,
        prompts=as_prompts(tokenizer, [task.question(row) for row in problems]),
        num_samples=settings.eval_samples,
        max_tokens=settings.eval_max_tokens,
        temperature=settings.sampling_temperature,
    )


def as_prompts(tokenizer: "PreTrainedTokenizerBase", questions: Sequence[str]) -> list[list[int]]:
    """Token ids of each question in the tokenizer's chat template.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template, so it cannot be asked as a chat; use the few-shot"
            " tasks ptl_gsm8k and ptl_mbpp instead"
        )
    prompts: list[Any] = [
        # return_dict=False: the ids alone
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in questions
    ]
    return prompts


def run(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    loaded: LoadedChat,
    batch_size: int,
    description: str,
) -> Measured:
    """Answer all problems ``num_samples`` times; return {metric: value}, and each problem's first
    answer.

    ``pass@k``: chance that at least one of k answers is right, in [0, 1], for k = 1, 2, 4, ... up
    to the number of samples; by its unbiased estimate (arXiv 2107.03374). ``response_tokens``:
    mean; ``cut_off``, ``repeating``: shares of the answers; ``seconds_per_answer``: wall-clock
    time of generation, in batches of ``batch_size``.

    The answers depend on the model and the settings alone: the seed is fixed. Each rank answers and
    judges a share of the batches, and all must call this; the seconds of all ranks are added.
    """
    from ptl_fast.data.generation import Sampling, answer_all

    samples: list[list[Judged]] = []
    kept: list[KeptAnswer] = []
    seconds = 0.0
    for number in range(loaded.num_samples):
        sampling = Sampling(
            max_new_tokens=loaded.max_tokens, temperature=loaded.temperature, seed=number
        )
        answers, taken = answer_all(
            model, tokenizer, loaded.prompts, sampling, batch_size, description
        )
        seconds += taken
        judged = judge_all(tokenizer, loaded.task, loaded.problems, answers, description)
        samples.append(judged)
        kept = kept or _kept(tokenizer, loaded, answers, judged)
    return Measured(summary(samples, seconds), kept)


def _kept(
    tokenizer: "PreTrainedTokenizerBase",
    loaded: LoadedChat,
    answers: "Sequence[Answer]",
    judged: Sequence[Judged],
) -> list[KeptAnswer]:
    """The answers to the first problems, to be read."""
    several = list(zip(loaded.problems, answers, judged, strict=True))[: kept_answers.MOST]
    return [
        kept_answers.keep(
            loaded.task.question(row),
            loaded.task.expected(row),
            _text(tokenizer, answer),
            right=each.right,
        )
        for row, answer, each in several
    ]


def _text(tokenizer: "PreTrainedTokenizerBase", answer: "Answer") -> str:
    return str(tokenizer.decode(answer.tokens, skip_special_tokens=True))


def judge_all(
    tokenizer: "PreTrainedTokenizerBase",
    task: ChatTask,
    problems: Sequence[Row],
    answers: "Sequence[Answer]",
    description: str,
) -> list[Judged]:
    """Judge one answer to each problem, in the problems' order; each rank a share of them."""

    def judge_some(pairs: "Sequence[tuple[Row, Answer]]") -> list[Judged]:
        shown = progress(pairs, f"{description}: judge")
        return [judge(tokenizer, task, row, answer) for row, answer in shown]

    return distributed.divided(judge_some, list(zip(problems, answers, strict=True)))


def judge(
    tokenizer: "PreTrainedTokenizerBase", task: ChatTask, row: Row, answer: "Answer"
) -> Judged:
    """Judge an answer to a problem; one that was cut off may still be right."""
    from ptl_fast.data.generation import repeats

    return Judged(
        right=task.is_right(row, _text(tokenizer, answer)),
        tokens=len(answer.tokens),
        finished=answer.finished,
        repeating=repeats(answer.tokens),
    )


def summary(samples: Sequence[Sequence[Judged]], seconds: float) -> dict[str, float]:
    """The metrics of answers, samples[s][p] being answer s to problem p, made in ``seconds``."""
    num_samples, every = len(samples), [each for sample in samples for each in sample]
    num_right = [
        sum(each.right for each in of_problem) for of_problem in zip(*samples, strict=True)
    ]
    passes = {
        name: sum(pass_at(k, num_samples, right) for right in num_right) / len(num_right)
        for name, k in _pass_names(num_samples).items()
    }
    return {
        **passes,
        TOKENS: sum(each.tokens for each in every) / len(every),
        CUT_OFF: sum(not each.finished for each in every) / len(every),
        REPEATING: sum(each.repeating for each in every) / len(every),
        SECONDS: seconds / len(every),
    }


def pass_at(k: int, num_samples: int, num_right: int) -> float:
    """Unbiased estimate of the chance that one of ``k`` answers is right: 1 - C(n-c, k) / C(n, k).

    n answers were drawn of which c are right (arXiv 2107.03374, eq. 1).

    >>> pass_at(2, 4, 1)
    0.5
    """
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def _pass_names(num_samples: int) -> dict[str, int]:
    """{"pass@k": k} for every power of two up to the number of samples, and that itself."""
    powers = [2**power for power in range(num_samples.bit_length())]
    return {f"pass@{k}": k for k in dict.fromkeys([*powers, num_samples])}
