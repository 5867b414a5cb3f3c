"""Prompts of reinforcement learning: as training text asks, or as a chat, and none too long."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase

from ptl_fast.config.config import Config
from ptl_fast.data.answers import BOXED_REQUEST
from ptl_fast.data.documents import EXCHANGE, Chat, Document
from ptl_fast.recovery import prompts, registry
from ptl_fast.recovery.grpo import rewards
from ptl_fast.recovery.rollouts import Rollouts
from support import chat_templates
from support.chat_templates import with_template
from support.recovery import PROBLEMS, grpo_config, opd_config


def sampled(settings: Config) -> Rollouts:
    (rollouts,) = registry.rollouts_of(
        settings.recovery.all_recoveries, settings.grpo, settings.opd
    )
    return rollouts


def asked(
    tokenizer: PreTrainedTokenizerBase,
    settings: Config,
    problems: Sequence[Document] = PROBLEMS,
) -> tuple[list[dict[str, Any]], int]:
    on_text = registry.trains_on_text(",".join(settings.recovery.all_recoveries))
    return prompts.make_prompts(problems, tokenizer, sampled(settings), on_text, "round-01")


def test_prompts_end_where_training_text_goes_on(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """A base model is asked as cpt trains it; the space before the answer is the model's."""
    rows, num_too_long = asked(tokenizer, grpo_config())
    assert num_too_long == 0
    assert [row["prompt"] for row in rows] == [
        f"Question: {problem.question}\nAnswer:" for problem in PROBLEMS
    ]
    assert [row["answer"] for row in rows] == [
        problem.answer.split("#### ")[1] for problem in PROBLEMS
    ]


def test_long_prompts_are_left_out_and_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    lengths = [
        len(tokenizer(f"Question: {problem.question}\nAnswer:")["input_ids"])
        for problem in PROBLEMS
    ]
    limit = sorted(lengths)[10]
    rows, num_too_long = asked(tokenizer, grpo_config(grpo_prompt_tokens=limit))
    assert num_too_long == sum(length > limit for length in lengths) > 0
    assert len(rows) == len(PROBLEMS) - num_too_long
    with pytest.raises(
        ValueError, match="24 documents, and none with a question of at most 3 tokens"
    ):
        asked(tokenizer, grpo_config(grpo_prompt_tokens=3))
    with pytest.raises(ValueError, match=r"grpo needs more \{question, answer\} data"):
        asked(tokenizer, grpo_config(), [Document("", "plain text")])


def talking(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with a chat template."""
    talks = copy.deepcopy(tokenizer)
    talks.chat_template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content"
        " }}{% endfor %}<assistant>"
    )
    return talks


@pytest.mark.parametrize(
    ("form", "recovery", "final", "chat"),
    [
        ("auto", "grpo", None, True),
        ("auto", "cpt,grpo", None, False),
        ("auto", "cpt", "grpo", False),
        ("auto", "none", "grpo", True),
        ("chat", "cpt,grpo", None, True),
        ("template", "grpo", None, False),
    ],
)
def test_chat_is_used_where_nothing_trains_on_the_template(
    tokenizer: PreTrainedTokenizerBase, form: str, recovery: str, final: str | None, chat: bool
) -> None:
    settings = grpo_config(
        grpo_prompt=form, recovery=recovery, final_recovery=final, grpo_prompt_tokens=500
    )
    prompt = asked(talking(tokenizer), settings)[0][0]["prompt"]
    assert (
        prompt == [{"role": "user", "content": f"{PROBLEMS[0].question}\n{BOXED_REQUEST}"}]
    ) == chat
    if form == "chat":
        with pytest.raises(ValueError, match="has no chat template"):
            asked(tokenizer, settings)
    else:
        assert isinstance(asked(tokenizer, settings)[0][0]["prompt"], str)


def test_empty_box_is_no_answer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    assert rewards.accuracy("", "so \\boxed{}") == 0.0
    assert rewards.format_("4", "so \\boxed{}") == 0.0
    problems = [Document("1 + 1 = ?", answer) for answer in ("so \\boxed{}", "#### $$", "#### 2")]
    rows, num_too_long = prompts.make_prompts(
        problems, tokenizer, sampled(grpo_config()), False, "data"
    )
    assert ([row["answer"] for row in rows], num_too_long) == (["2"], 0)
    with pytest.raises(
        ValueError, match=r"none with a question of at most 256 tokens and a final answer"
    ):
        prompts.check(
            problems[:2], tokenizer, sampled(grpo_config(grpo_prompt_tokens=256)), False, "data"
        )
    with pytest.raises(ValueError, match="names accuracy twice"):
        rewards.parse_weights("accuracy=1,accuracy=0")


def test_without_rewards_a_question_needs_no_answer_and_code_no_box(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    problems = [
        Document("1 + 1 = ?", "it is #### 2"),
        Document("Write add(a, b).", "def add(a, b):\n    return a + b"),
        Document("", "plain text"),
    ]
    settings = opd_config("teacher", opd_prompt_tokens=200)
    rows, num_too_long = asked(talking(tokenizer), settings, problems)
    assert num_too_long == 0
    assert [row["prompt"][0]["content"] for row in rows] == [
        f"1 + 1 = ?\n{BOXED_REQUEST}",
        "Write add(a, b).",
    ]
    with pytest.raises(ValueError, match="of at most 200 tokens; opd needs more"):
        asked(tokenizer, settings, problems[2:])


def test_a_chat_is_asked_with_all_turns_before_its_last_answer(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """The request for a box goes below the last one, where it is asked for at all."""
    said = ["1 + 1?", "2", "And 2 + 2?", "#### 4"]
    roles = ("user", "assistant") * 2
    turns = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    problem = Document("1 + 1?\n\n2\n\nAnd 2 + 2?", "#### 4", chat=Chat(turns))
    pair = Document("1 + 1?", "#### 2", chat=EXCHANGE)
    with_tools = problem._replace(chat=Chat(turns, [{"name": "add"}]))
    talks = with_template(tokenizer, chat_templates.CHATML)
    for form, request in (("template", ""), ("chat", f"\n{BOXED_REQUEST}")):
        settings = grpo_config(grpo_prompt=form, recovery="grpo", grpo_prompt_tokens=500)
        rows, _ = asked(talks, settings, [problem, pair, with_tools])
        last = [{**turns[2], "content": said[2] + request}]
        assert rows[0] == {"prompt": turns[:2] + last, "answer": "4"}
        assert rows[1]["prompt"] == [{"role": "user", "content": "1 + 1?" + request}]
        assert len(rows) == 2
    assert turns[2]["content"] == said[2]


def test_questions_beside_chats_are_asked_as_chats(tokenizer: PreTrainedTokenizerBase) -> None:
    """A training takes text or messages, not both."""
    pair = Document("1 + 1?", "#### 2", chat=EXCHANGE)
    talks = with_template(tokenizer, chat_templates.CHATML)
    settings = grpo_config(grpo_prompt="template", grpo_prompt_tokens=500)
    rows, _ = asked(talks, settings, [PROBLEMS[0], pair])
    assert rows[0]["prompt"] == [{"role": "user", "content": PROBLEMS[0].question}]
    assert len(datasets.Dataset.from_list(rows)) == 2
