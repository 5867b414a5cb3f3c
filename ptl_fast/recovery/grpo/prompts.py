"""Turn {question, answer} documents into GRPO prompts and gold answers."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ptl_fast.recovery.grpo.rewards import gold_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.config.grpo import GrpoSettings
    from ptl_fast.data.documents import Document

# Added to a chat prompt, so that the model marks its answer: an unmarked one earns no reward.
INSTRUCTION = "Reason step by step, and put the final answer in \\boxed{}."


def make_prompts(
    documents: "Sequence[Document]",
    tokenizer: "PreTrainedTokenizerBase",
    grpo: "GrpoSettings",
    trains_on_template: bool,
    source: str,
) -> tuple[list[dict[str, Any]], int]:
    """Return ({prompt, answer} for each problem with a short enough prompt, number of the others).

    A prompt is a string, or a list of chat messages (see ``uses_chat``). Documents without a
    question or a final answer are no problems, and count nowhere.

    Args:
        trains_on_template: whether another recovery of the run trains on --template's text.
        source: what error messages call the data.

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
    """Raise ValueError when no document gives a prompt of at most --grpo-prompt-tokens tokens."""
    # stops at the first: tokenizing all of them would delay the start of a run
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
    """Yield {prompt, answer} of each problem whose prompt is short enough, in order."""
    chat = uses_chat(tokenizer, grpo, trains_on_template)
    for document in filter(_is_problem, documents):
        if chat:
            prompt: Any = [{"role": "user", "content": f"{document.question}\n{INSTRUCTION}"}]
            # the length with the template's own tokens, as the model reads it
            length = len(
                tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            )
        else:
            # most tokenizers put the space into the answer's first token: it must not be given
            prompt = document.prompt.rstrip(" ")
            length = len(tokenizer(prompt)["input_ids"])
        if length <= grpo.grpo_prompt_tokens:
            yield {"prompt": prompt, "answer": gold_answer(document.answer)}


def _is_problem(document: "Document") -> bool:
    """Whether there is a question and a non-empty final answer (an empty box is no answer)."""
    return bool(document.question) and bool(gold_answer(document.answer))


def uses_chat(
    tokenizer: "PreTrainedTokenizerBase", grpo: "GrpoSettings", trains_on_template: bool
) -> bool:
    """Whether prompts are chat messages, as --grpo-prompt says.

    ``auto`` means chat if the tokenizer has a chat template, unless the run also trains on
    --template: the model should be asked in the format that it is trained on.

    Raises:
        ValueError: --grpo-prompt chat, and the tokenizer has no chat template.
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
