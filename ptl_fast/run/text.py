"""What the settings say of text: how rows are written, and which tokens count.

--template decides the first, --calibrate-on and --train-on the second.
"""

from typing import TYPE_CHECKING

from ptl_fast.data import chats
from ptl_fast.data.documents import CHAT_TEMPLATES, Form, make_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.config.config import Config


def make_form(config: "Config", tokenizer: "PreTrainedTokenizerBase") -> Form:
    """How a row of data becomes a document: --template and the names of the columns.

    Raises:
        ValueError: --template asks for a chat template, and the tokenizer has none.
    """
    data = config.data
    template, use = make_template(data.template), CHAT_TEMPLATES.get(data.template)
    if use is not None and use.required:
        chats.require_template(tokenizer, f"--template {data.template}")
    elif not tokenizer.chat_template:
        use = None
    return Form(data.question_column, data.answer_column, data.text_column, template, use)


def counts_answers(config: "Config") -> bool:
    """Whether statistics count answers alone."""
    return config.score.calibrate_on == "answers"


def learns_answers(config: "Config") -> bool:
    """Whether training learns answers alone."""
    return config.recovery.train_on == "answers"


def finds_answers(config: "Config") -> bool:
    """Whether anybody asks which tokens of the training data are answers."""
    return counts_answers(config) or learns_answers(config)


def prediction(config: "Config") -> str:
    """A dry run's line: how text is written, and which of its tokens count, whatever the data."""
    use = CHAT_TEMPLATES.get(config.data.template)
    chats = "their turns joined as text" if use is None else "in the model's own chat template"
    if use is not None and not use.required:
        chats += " if it has one"
    return (
        f"Text: --template {config.data.template}, chats {chats}. Statistics count"
        f" {config.score.calibrate_on} of its tokens (--calibrate-on), training learns"
        f" {config.recovery.train_on} (--train-on)."
    )
