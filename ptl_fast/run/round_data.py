"""Each round's part of the training data; the parts are disjoint.

Held in memory and made anew at every start: the same seed and the same decisions of the quality
gate give the same parts, so a resumed run trains on the same sequences.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptl_fast.data.chats import marks
from ptl_fast.data.packing import pack, padding_token
from ptl_fast.run import text

if TYPE_CHECKING:
    from array import array

    from transformers import PreTrainedTokenizerBase

    from ptl_fast.config.config import Config
    from ptl_fast.data.chats import Encoded
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.data.sampling import Corpus
    from ptl_fast.pruning.schedule import Round


class RoundData:
    """The rounds' parts of the corpus, as documents and as packed sequences.

    ``training[n - 1]`` holds the packed sequences of round n.

    Args:
        corpus: has one subset for each round of the schedule.
        sequence_length: tokens per packed sequence.
        pad: id of the padding token.
        source: the value of --data, for messages.
        count_answers: whether statistics count answers alone; the corpus must know its answers.
        learn_answers: whether training learns answers alone; likewise.
    """

    def __init__(
        self,
        corpus: "Corpus",
        sequence_length: int,
        pad: int,
        source: str,
        *,
        count_answers: bool = False,
        learn_answers: bool = False,
    ) -> None:
        self.count_answers, self.learn_answers = count_answers, learn_answers
        self.corpus, self.sequence_length, self.pad, self.source = (
            corpus,
            sequence_length,
            pad,
            source,
        )
        self.training = [self._pack(number) for number in range(1, len(corpus.subsets) + 1)]

    @classmethod
    def of(
        cls,
        config: "Config",
        corpus: "Corpus",
        tokenizer: "PreTrainedTokenizerBase",
        source: str,
    ) -> "RoundData":
        """The rounds' parts of a corpus, packed; what counts in them is what the settings say.

        Args:
            corpus: drawn with ``text.finds_answers``.
            source: what messages call the data.

        Raises:
            ValueError: a part does not fill a sequence, or holds no answer that training needs.
        """
        return cls(
            corpus,
            config.data.sequence_length,
            padding_token(tokenizer),
            source,
            count_answers=text.counts_answers(config),
            learn_answers=text.learns_answers(config),
        )

    def summary(self, config: "Config") -> str:
        """One line on chats and answers in the training data; empty if there is nothing to say."""
        said = []
        if self.corpus.num_chats:
            num_documents = sum(map(len, self.corpus.subsets))
            said.append(
                f"{self.corpus.num_chats:,} of {num_documents:,} training documents are written by"
                f" the model's own chat template (--template {config.data.template})."
            )
        if self.count_answers or self.learn_answers:
            said.append(self._answers(config))
        return " ".join(said)

    def calibration(self, number: int, num_tokens: int) -> "PackedTokens":
        """The calibration tokens of round ``number``: the first ``num_tokens`` of its part.

        If the part is shorter, the parts of later rounds follow it, and then those of earlier ones.

        Raises:
            ValueError: none of them is of an answer, although statistics count answers alone.
        """
        # later ones first: this model has not yet trained on them
        tokens, *others = [*self.training[number - 1 :], *self.training[: number - 1]]
        for part in others:
            if tokens.num_tokens < num_tokens:
                tokens = tokens.followed_by(part)
        # a scorer that needs a loss takes that of the tokens that count
        tokens = dataclasses.replace(tokens.first(num_tokens), learn_answers=self.count_answers)
        if not tokens.num_counted:
            raise ValueError(
                f"--calibrate-on answers: the {tokens.num_tokens} calibration tokens of round"
                f" {number} hold no answer; raise --calibration-tokens, or use --calibrate-on all"
            )
        return tokens

    def counted(self, numbers: "Sequence[int]", num_tokens: int) -> dict[int, int]:
        """{round: how many of its ``calibration`` tokens count}."""
        return {each: self.calibration(each, num_tokens).num_counted for each in numbers}

    def one_sequence(self) -> "PackedTokens":
        """The first sequence; all of its tokens count, as it may hold no answer."""
        return dataclasses.replace(self.training[0].first(1), count_answers=False)

    def replace(self, number: int, documents: "Sequence[Encoded]") -> None:
        """Train and calibrate round ``number`` on these documents instead of its part's.

        A round that is split has its part of the corpus again.
        """
        ids, answers = [each.ids for each in documents], [each.answers for each in documents]
        self.training[number - 1] = self._packed(number, ids, answers)

    def stop_before(self, number: int) -> None:
        """Drop the parts of the rounds from ``number`` on: the quality gate has ended the run."""
        del self.training[number - 1 :]

    def split(self, groups: "Sequence[Sequence[Round]]") -> None:
        """Split the part of each round that a smaller step has turned into several rounds.

        Args:
            groups: for each round so far, the rounds that take its place.
        """
        self.corpus = self.corpus.cut(_shares(groups))
        # the sequences of an unsplit round stay as they are: packing them again would cost time
        self.training = [
            whole if len(group) == 1 else self._pack(step.number)
            for whole, group in zip(self.training, groups, strict=True)
            for step in group
        ]

    def lacks(self, groups: "Sequence[Sequence[Round]]", needs_questions: bool) -> str | None:
        """Why the data is too small for such a split, as a clause; None if it is not.

        Args:
            groups: as for ``split``, which is not done.
            needs_questions: whether recovery poses problems, so each part must have a question.
        """
        corpus = self.corpus.cut(_shares(groups))
        # the same test as packing makes, which would fail only after the round was undone
        if any(sum(map(len, subset)) < self.sequence_length for subset in corpus.subsets):
            return "half of the round's data would not fill a sequence"
        if needs_questions and not all(
            any(document.question for document in documents) for documents in corpus.documents
        ):
            return "half of the round's data would have no question"
        return None

    def _answers(self, config: "Config") -> str:
        """How much of the data is answers, and who looks at them alone."""
        num_tokens = num_answered = num_without = 0
        for subset, answers in zip(self.corpus.subsets, self.corpus.answers, strict=True):
            for ids, borders in zip(subset, answers, strict=True):
                num_tokens += len(ids)
                num_answered += sum(marks(borders, len(ids)))
                num_without += borders is not None and not borders
        line = (
            f"{num_answered / num_tokens:.0%} of the training tokens are answers; statistics count"
            f" {config.score.calibrate_on} (--calibrate-on), training learns"
            f" {config.recovery.train_on} (--train-on)."
        )
        if num_without:
            line += f" In {num_without:,} documents no answer could be told from the rest."
        return line

    def _pack(self, number: int) -> "PackedTokens":
        """Pack a round's part of the corpus; raises ValueError if it does not fill a sequence."""
        answers = self.corpus.answers[number - 1]
        return self._packed(number, self.corpus.subsets[number - 1], answers)

    def _packed(
        self,
        number: int,
        documents: "Sequence[Sequence[int]]",
        answers: "Sequence[array[int] | None]",
    ) -> "PackedTokens":
        """Pack documents for a round; what counts in them is what the settings say."""
        source = f"round {number}'s part of {self.source}"
        needs_answers = self.count_answers or self.learn_answers
        tokens = pack(
            documents,
            self.sequence_length,
            self.pad,
            source,
            answers if needs_answers else None,
        )
        tokens = dataclasses.replace(
            tokens, count_answers=self.count_answers, learn_answers=self.learn_answers
        )
        if not self.learn_answers:
            return tokens
        # a mean over no label would be NaN: a long question fills whole sequences
        tokens = tokens.rows(tokens.teaches)
        if not len(tokens):
            raise ValueError(
                f"--train-on answers: {source} holds no answer; give other data, or use --train-on"
                " all"
            )
        return tokens


def _shares(groups: "Sequence[Sequence[Round]]") -> list[list[float]]:
    """The weights for ``Corpus.cut``: each round gets data in proportion to its tokens."""
    return [[step.recovery_share for step in group] for group in groups]
