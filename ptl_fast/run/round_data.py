"""Each round's part of the data: no round sees another's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptl_fast.data.packing import pack

if TYPE_CHECKING:
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.data.sampling import Corpus
    from ptl_fast.pruning.schedule import Round


class RoundData:
    """The corpus cut into the rounds' parts, as documents and as packed sequences.

    Args:
        corpus: a subset for each round of the schedule.
        sequence_length: tokens of a packed sequence.
        pad: the token for padding.
        source: --data, for messages.
    """

    def __init__(self, corpus: "Corpus", sequence_length: int, pad: int, source: str) -> None:
        self.corpus, self.sequence_length, self.pad, self.source = (
            corpus,
            sequence_length,
            pad,
            source,
        )
        self.training = [self._pack(number) for number in range(1, len(corpus.subsets) + 1)]

    def calibration(self, number: int, num_tokens: int) -> "PackedTokens":
        """The first of a round's own data, and where that is short, of the rounds' that follow, and
        then of those before.
        """
        tokens, *others = [*self.training[number - 1 :], *self.training[: number - 1]]
        for part in others:
            if tokens.num_tokens < num_tokens:
                tokens = tokens.followed_by(part)
        return tokens.first(num_tokens)

    def stop_before(self, number: int) -> None:
        """Forget the parts of the rounds from ``number`` on."""
        del self.training[number - 1 :]

    def split(self, groups: "Sequence[Sequence[Round]]") -> None:
        """Cut the part of each round that became several; the others' sequences stay as they are."""
        self.corpus = self.corpus.cut(_shares(groups))
        self.training = [
            whole if len(group) == 1 else self._pack(step.number)
            for whole, group in zip(self.training, groups, strict=True)
            for step in group
        ]

    def lacks(self, groups: "Sequence[Sequence[Round]]", needs_questions: bool) -> str | None:
        """What some round would lack of data after such a split, if it lacks something."""
        corpus = self.corpus.cut(_shares(groups))
        if any(sum(map(len, subset)) < self.sequence_length for subset in corpus.subsets):
            return "half of the round's data would not fill a sequence"
        if needs_questions and not all(
            any(document.question for document in documents) for documents in corpus.documents
        ):
            return "half of the round's data would have no question"
        return None

    def _pack(self, number: int) -> "PackedTokens":
        source = f"round {number}'s part of {self.source}"
        return pack(self.corpus.subsets[number - 1], self.sequence_length, self.pad, source)


def _shares(groups: "Sequence[Sequence[Round]]") -> list[list[float]]:
    return [[step.recovery_share for step in group] for group in groups]
