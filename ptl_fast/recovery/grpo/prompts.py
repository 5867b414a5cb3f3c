"""Problems -> what reinforcement learning asks the model, and the answers that are right."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ptl_fast.recovery.grpo.rewards import gold_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.config.grpo import GrpoSettings
    from ptl_fast.data.documents import Document

# What a chat model is asked besides the problem, so that it marks its answer.
INSTRUCTION = "Reason step by step, and put the final answer in \\boxed{}."


def make_prompts(
    documents: "Sequence[Document]",
    tokenizer: "PreTrainedTokenizerBase",
    grpo: "GrpoSettings",
    trains_on_template: bool,
    source: str,
) -> tuple[list[dict[str, Any]], int]:
    """A row {prompt, answer} for every problem that is short enough, and how many are not. A prompt
    is text, or a chat's messages.

    Raises:
        ValueError: as ``check``.
    """
    check(documents, tokenizer, grpo, trains_on_template, source)
    rows = list(_rows(documents, tokenizer, grpo, trains_on_template))
    return rows, sum(_is_problem(document) for document in documents) - len(rows)


def check(
    documents: "Sequence[Document]",
    tokenizer: "PreTrainedTokenizerBase",
    grpo: "GrpoSettings",
    trains_on_template: bool,
    source: str,
) -> None:
    """Raise ValueError when no document has an answer that can be right and a question that is
    short enough.
    """
    if next(_rows(documents, tokenizer, grpo, trains_on_template), None) is None:
        raise ValueError(
            f"{source}: a round has {len(documents)} documents, and none with a question of at"
            f" most {grpo.grpo_prompt_tokens}"
            " tokens and a final answer; grpo needs more {question, answer} data, or a higher"
            " --grpo-prompt-tokens"
        )


def _rows(
    documents: "Sequence[Document]",
    tokenizer: "PreTrainedTokenizerBase",
    grpo: "GrpoSettings",
    trains_on_template: bool,
) -> Iterator[dict[str, Any]]:
    chat = uses_chat(tokenizer, grpo, trains_on_template)
    for document in filter(_is_problem, documents):
        if chat:
            prompt: Any = [{"role": "user", "content": f"{document.question}\n{INSTRUCTION}"}]
            length = len(
                tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            )
        else:
            prompt = document.prompt.rstrip(" ")  # the space is the first token of many answers
            length = len(tokenizer(prompt)["input_ids"])
        if length <= grpo.grpo_prompt_tokens:
            yield {"prompt": prompt, "answer": gold_answer(document.answer)}


def _is_problem(document: "Document") -> bool:
    """Whether there is a question, and an answer that a response could give: an empty box is none."""
    return bool(document.question) and bool(gold_answer(document.answer))


def uses_chat(
    tokenizer: "PreTrainedTokenizerBase", grpo: "GrpoSettings", trains_on_template: bool
) -> bool:
    """Whether a prompt is a chat's. Auto: where there is a chat template, unless the run also
    trains on --template.

    Raises:
        ValueError: a chat is asked for, and the tokenizer has no chat template.
    """
    has_template = tokenizer.chat_template is not None
    if grpo.grpo_prompt == "chat" and not has_template:
        raise ValueError(
            "--grpo-prompt chat: the model's tokenizer has no chat template; use --grpo-prompt"
            " template"
        )
    return has_template and (
        grpo.grpo_prompt == "chat" or (grpo.grpo_prompt == "auto" and not trains_on_template)
    )
