"""Problems -> what reinforcement learning asks the model, and the answers that are right."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptl_fast.rewards import gold_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.config import Config
    from ptl_fast.sources import Document

# What a chat model is asked besides the problem, so that it marks its answer.
INSTRUCTION = "Reason step by step, and put the final answer in \\boxed{}."


def make_prompts(
    documents: "Sequence[Document]", tokenizer: "PreTrainedTokenizerBase", config: "Config", source: str
) -> tuple[list[dict[str, Any]], int]:
    """A row {prompt, answer} for every problem that is short enough, and how many are not. A prompt is text, or a chat's messages.

    Raises:
        ValueError: no document has a question that is short enough.
    """
    chat = uses_chat(tokenizer, config)
    rows: list[dict[str, Any]] = []
    problems = [document for document in documents if document.question]
    for document in problems:
        if chat:
            prompt: Any = [{"role": "user", "content": f"{document.question}\n{INSTRUCTION}"}]
            length = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))
        else:
            prompt = document.prompt.rstrip(" ")  # the space is the first token of many answers
            length = len(tokenizer(prompt)["input_ids"])
        if length <= config.grpo_prompt_tokens:
            rows.append({"prompt": prompt, "answer": gold_answer(document.answer)})
    if not rows:
        raise ValueError(
            f"{source}: none of the {len(documents)} documents has a question of at most {config.grpo_prompt_tokens} tokens; grpo"
            " needs {question, answer} data, or a higher --grpo-prompt-tokens"
        )
    return rows, len(problems) - len(rows)


def uses_chat(tokenizer: "PreTrainedTokenizerBase", config: "Config") -> bool:
    """Whether a prompt is a chat's. Auto: where there is a chat template, unless the run also trains on --template.

    Raises:
        ValueError: a chat is asked for, and the tokenizer has no chat template.
    """
    has_template = tokenizer.chat_template is not None
    if config.grpo_prompt == "chat" and not has_template:
        raise ValueError("--grpo-prompt chat: the model's tokenizer has no chat template; use --grpo-prompt template")
    return has_template and (config.grpo_prompt == "chat" or (config.grpo_prompt == "auto" and not config.trains_on_text))
