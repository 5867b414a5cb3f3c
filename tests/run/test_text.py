"""What the settings say of text: who writes a row, and what is told of the data."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ptl_fast.data import sampling
from ptl_fast.data.documents import CHAT_TEMPLATES, EXCHANGE, TEMPLATES, Document, Form
from ptl_fast.data.readers import Part
from ptl_fast.demo.problems import generate
from ptl_fast.run import text
from support import chat_templates
from support.chat_templates import with_template
from support.settings import settings


@pytest.mark.parametrize(
    ("template", "can_chat", "expected"),
    [
        ("auto", True, Form(chats=CHAT_TEMPLATES["auto"])),
        ("auto", False, Form()),
        ("chat", True, Form(chats=CHAT_TEMPLATES["chat"])),
        ("lines", True, Form()),
        ("paper", True, Form(template=TEMPLATES["paper"])),
    ],
)
def test_who_writes_a_row(
    tokenizer: PreTrainedTokenizerBase, template: str, can_chat: bool, expected: Form
) -> None:
    talks = with_template(tokenizer, chat_templates.CHATML) if can_chat else tokenizer
    assert text.make_form(settings(template=template), talks) == expected
    assert text.make_form(settings(), talks).chats == (CHAT_TEMPLATES["auto"] if can_chat else None)


def test_a_chat_template_that_is_asked_for_must_be_there(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(ValueError, match=r"--template chat: .*tokenizer has no chat template; put"):
        text.make_form(settings(template="chat"), tokenizer)


def test_the_data_is_summed_up_where_there_is_something_to_say(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    talks = with_template(tokenizer, chat_templates.CHATML)
    problems = [Document(**problem) for problem in generate(40, 8, "training")]

    def summary(documents: list[Document], **values: Any) -> str:
        config = settings(**values)
        corpus = sampling.split_corpus(
            [Part("a", 1.0, documents)],
            talks,
            shares=[0.5, 0.5],
            num_tokens=None,
            num_held_out=0,
            seed=1,
            find_answers=text.finds_answers(config),
        )
        return text.summary(config, corpus)

    assert summary(problems) == ""
    chats = [problem._replace(chat=EXCHANGE) for problem in problems[:10]] + problems[10:]
    assert summary(chats, template="chat") == (
        "10 of 40 training documents are written by the model's own chat template"
        " (--template chat)."
    )
    share = sum(len(talks(each.answer)["input_ids"]) + 1 for each in problems)
    share /= sum(len(talks(each.text)["input_ids"]) + 1 for each in problems)
    assert summary(problems, train_on="answers") == (
        f"{share:.0%} of the training tokens are answers; statistics count all (--calibrate-on),"
        " training learns answers (--train-on)."
    )
    # a template that leaves the answers of these chats out
    talks.chat_template = (
        "{%- for message in messages %}"
        "{%- if message.role == 'user' or messages[0].content == '?' %}"
        "{{- message.content + eos_token }}{%- endif %}{%- endfor %}"
    )
    said = summary(chats, template="chat", calibrate_on="answers")
    assert said.endswith("In 10 documents no answer could be told from the rest.")
