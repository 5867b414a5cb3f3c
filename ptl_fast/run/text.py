"""What the settings say of text: how rows are written, and which tokens count.

--template decides the first, --calibrate-on and --train-on the second.
"""

from typing import TYPE_CHECKING

from ptl_fast.data import chats, packing
from ptl_fast.data.documents import CHAT_TEMPLATES, Form, make_template
from ptl_fast.run.round_data import RoundData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.config.config import Config
    from ptl_fast.data.sampling import Corpus


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


def round_data(
    config: "Config", corpus: "Corpus", tokenizer: "PreTrainedTokenizerBase", source: str
) -> RoundData:
    """The rounds' parts of a corpus, packed; what counts in them is what the settings say.

    Args:
        corpus: drawn with ``finds_answers``.
        source: what messages call the data.

    Raises:
        ValueError: a part does not fill a sequence, or holds no answer that training needs.
    """
    return RoundData(
        corpus,
        config.data.sequence_length,
        packing.padding_token(tokenizer),
        source,
        count_answers=counts_answers(config),
        learn_answers=learns_answers(config),
    )


def summary(config: "Config", corpus: "Corpus") -> str:
    """One line on chats and answers in the training data; empty if there is nothing to say."""
    said = []
    if corpus.num_chats:
        num_documents = sum(map(len, corpus.subsets))
        said.append(
            f"{corpus.num_chats:,} of {num_documents:,} training documents are written by the"
            f" model's own chat template (--template {config.data.template})."
        )
    if finds_answers(config):
        said.append(_answers(config, corpus))
    return " ".join(said)


def _answers(config: "Config", corpus: "Corpus") -> str:
    """How much of the data is answers, and who looks at them alone."""
    num_tokens = num_answered = num_without = 0
    for subset, answers in zip(corpus.subsets, corpus.answers, strict=True):
        for ids, borders in zip(subset, answers, strict=True):
            num_tokens += len(ids)
            num_answered += sum(chats.marks(borders, len(ids)))
            num_without += borders is not None and not borders
    line = (
        f"{num_answered / num_tokens:.0%} of the training tokens are answers; statistics count"
        f" {config.score.calibrate_on} (--calibrate-on), training learns"
        f" {config.recovery.train_on} (--train-on)."
    )
    if num_without:
        line += f" In {num_without:,} documents no answer could be told from the rest."
    return line
