"""What the settings say of text: who writes a row, and what is told of the data."""

import pytest
from transformers import PreTrainedTokenizerBase

from ptl_fast.data.documents import CHAT_TEMPLATES, TEMPLATES, Form
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
