"""Turn documents with questions into prompts for the recoveries that let the model answer them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ptl_fast.data.answers import BOXED_REQUEST, final_answer
from ptl_fast.data.chats import prompt_messages
from ptl_fast.recovery.rollouts import Rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.data.documents import Document


def make_prompts(
    documents: "Sequence[Document]",
    tokenizer: "PreTrainedTokenizerBase",
    rollouts: Rollouts,
    trains_on_template: bool,
    source: str,
) -> tuple[list[dict[str, Any]], int]:
    """Return ({prompt, answer} for each problem with a short enough prompt, number of the others).

    A prompt is a string, or a list of chat messages (see ``uses_chat``); the answer is the final
    one, and empty without rewards. Documents without a question are no problems, and count nowhere;
    with rewards, neither do those without a final answer.

    Args:
        trains_on_template: whether another recovery of the run trains on --template's text.
        source: what error messages call the data.

    Raises:
        ValueError: as ``check``.
    """
    check(documents, tokenizer, rollouts, trains_on_template, source)
    rows = list(_rows(documents, tokenizer, rollouts, trains_on_template))
    return rows, sum(_is_problem(document, rollouts) for document in documents) - len(rows)


def check(
    documents: "Sequence[Document]",
    tokenizer: "PreTrainedTokenizerBase",
    rollouts: Rollouts,
    trains_on_template: bool,
    source: str,
) -> None:
    """Raise ValueError when no document gives a prompt of at most --METHOD-prompt-tokens tokens."""
    # stops at the first: tokenizing all of them would delay the start of a run
    if next(_rows(documents, tokenizer, rollouts, trains_on_template), None) is None:
        answered = "" if rollouts.gold is None else " and a final answer"
        raise ValueError(
            f"{source}: a round has {len(documents)} documents, and none with a question of at"
            f" most {rollouts.prompt_tokens} tokens{answered}; {rollouts.method} needs more"
            f" {{question, answer}} data, or a higher --{rollouts.method}-prompt-tokens"
        )


def _rows(
    documents: "Sequence[Document]",
    tokenizer: "PreTrainedTokenizerBase",
    rollouts: Rollouts,
    trains_on_template: bool,
) -> Iterator[dict[str, Any]]:
    """Yield {prompt, answer} of each problem whose prompt is short enough, in order."""
    chat = uses_chat(tokenizer, rollouts, trains_on_template)
    # all in one form: TRL takes no text beside messages
    as_turns = chat or any(document.chat is not None for document in documents)
    for document in documents:
        if not _is_problem(document, rollouts):
            continue
        if as_turns:
            prompt: Any = _turns(document, _instruction(document, rollouts) if chat else "")
            # the length with the template's own tokens, as the model reads it
            length = len(
                tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            )
        else:
            # most tokenizers put the space into the answer's first token: it must not be given
            prompt = document.prompt.rstrip(" ")
            length = len(tokenizer(prompt)["input_ids"])
        if length <= rollouts.prompt_tokens:
            gold = "" if rollouts.gold is None else rollouts.gold(document.answer)
            yield {"prompt": prompt, "answer": gold}


def _is_problem(document: "Document", rollouts: Rollouts) -> bool:
    """Whether there is a question and, for rewards, a final answer (an empty box is none).

    TRL's sampling does not describe tools to the model, so a chat that has any is no problem.
    """
    if document.chat is not None and document.chat.tools:
        return False
    return bool(document.question) and (
        rollouts.gold is None or bool(rollouts.gold(document.answer))
    )


def _turns(document: "Document", instruction: str) -> list[dict[str, Any]]:
    """What is said before the last answer: the turns of a chat, or the question as the only one.

    Args:
        instruction: goes below the last of them; empty for none.
    """
    turns = [{"role": "user", "content": document.question}]
    if document.chat is not None:
        turns = prompt_messages(document)
    if instruction:
        turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}\n{instruction}"}
    return turns


def _instruction(document: "Document", rollouts: Rollouts) -> str:
    """What is asked for below the question; empty where the answer needs no box."""
    # with rewards every answer needs a box, as an unmarked one earns none; without, those to
    # questions on code shall not get one
    is_boxed = rollouts.gold is not None or bool(final_answer(document.answer))
    return BOXED_REQUEST if is_boxed else ""


def uses_chat(
    tokenizer: "PreTrainedTokenizerBase", rollouts: Rollouts, trains_on_template: bool
) -> bool:
    """Whether prompts are chat messages, as --METHOD-prompt says.

    ``auto`` means chat if the tokenizer has a chat template, unless the run also trains on
    --template: the model should be asked in the format that it is trained on.

    Raises:
        ValueError: --METHOD-prompt chat, and the tokenizer has no chat template.
    """
    has_template = tokenizer.chat_template is not None
    if rollouts.prompt == "chat" and not has_template:
        raise ValueError(
            f"--{rollouts.method}-prompt chat: the model's tokenizer has no chat template; use"
            f" --{rollouts.method}-prompt template"
        )
    return has_template and (
        rollouts.prompt == "chat" or (rollouts.prompt == "auto" and not trains_on_template)
    )
