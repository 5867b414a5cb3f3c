"""Each round has its own part of the data, also where the quality gate splits a round."""

import itertools
import json
from array import array
from collections.abc import Sequence
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerBase

from ptl_fast.config.prune import PruneSettings
from ptl_fast.data import sampling
from ptl_fast.data.chats import Encoded
from ptl_fast.data.documents import EXCHANGE, Document
from ptl_fast.data.readers import Part
from ptl_fast.data.sampling import Corpus
from ptl_fast.demo.problems import generate
from ptl_fast.pruning.schedule import make_schedule
from ptl_fast.run import text
from ptl_fast.run.context import RunContext
from ptl_fast.run.quality_gate import Decision
from ptl_fast.run.round_data import RoundData
from ptl_fast.run.rounds import Rounds
from support import chat_templates
from support.chat_templates import with_template
from support.gate import gate
from support.plans import growing
from support.settings import settings


class Run:
    """Two rounds of 24 neurons and of 2 layers; documents of four tokens, each one's number four
    times.
    """

    def __init__(self, num_documents: int = 400) -> None:
        prune = PruneSettings(
            keep=0.5, rounds=1, drop_layers=2, layers_per_round=2, width_multiple=8
        )
        schedule = make_schedule(prune, growing, 48, 5)
        self.rounds = Rounds(schedule, 48, 5, 8, ("nll", "nll"))
        documents = [[number] * 4 for number in range(num_documents)]
        third = num_documents // 3
        subsets: list[list[Sequence[int]]] = [list(documents[:third]), list(documents[third:])]
        corpus = Corpus(
            held_out=[], subsets=subsets, documents=[[], []], answers=[[], []], fingerprint=""
        )
        self.data = RoundData(corpus, 16, 0, "data")

    def judge(self, measured: float, tokens: int, given: int) -> Decision:
        """Of the first round."""
        step = self.rounds.schedule[0]
        next_step, _ = self.rounds.smaller_step(step)
        assert next_step is not None
        decision = self.rounds.decide(
            gate(),
            step,
            measured=measured,
            tokens=tokens,
            given=given,
            trains=True,
            max_extra_recovery=0.5,
            lacks=self.data.lacks(self.rounds.split(1, next_step), needs_questions=False),
        )
        RunContext.follow(cast(RunContext, self), decision)
        return decision

    def numbers(self) -> list[set[int]]:
        return [set(tokens.input_ids[tokens.mask].tolist()) for tokens in self.data.training]


def test_split_rounds_share_their_rounds_data_without_overlap() -> None:
    run = Run()
    before = run.numbers()
    assert run.judge(9.0, 100, 100).action == "extend"
    decision = run.judge(9.0, 50, 100)
    assert (decision.action, decision.step, decision.next_step) == ("back-off", 24, 8)
    after = run.numbers()
    assert [step.width for step in run.rounds.schedule] == [40, 32, 24, 24]
    assert set.union(*after[:3]) == before[0]
    assert sum(map(len, after[:3])) == len(before[0]), "no document twice"
    assert max(map(len, after[:3])) - min(map(len, after[:3])) <= 1
    assert after[3] == before[1]
    again = Run()
    for content in json.loads(json.dumps(run.rounds.decisions_as_json())):
        RunContext.follow(cast(RunContext, again), Decision(**content))
    assert again.rounds.schedule == run.rounds.schedule
    assert again.numbers() == after
    assert again.rounds.decisions == run.rounds.decisions


def answered(borders: list[int], length: int = 16, **alone: bool) -> RoundData:
    """Two rounds of documents of 24 tokens each, in sequences of ``length``."""
    documents: list[list[Sequence[int]]] = [[[number] * 24 for number in range(1, 9)]] * 2
    answers: list[list[array[int] | None]] = [[array("i", borders) for _ in range(8)]] * 2
    corpus = Corpus(
        held_out=[], subsets=documents, documents=[[], []], answers=answers, fingerprint=""
    )
    return RoundData(corpus, length, 0, "data", **alone)


def test_calibration_and_training_each_look_at_what_they_should() -> None:
    """Calibration reads as many tokens in either case."""
    for count, learn in itertools.product((False, True), repeat=2):
        data = answered([5, 7, 20, 24], 24, count_answers=count, learn_answers=learn)
        tokens, training = data.calibration(1, 100), data.training[0]
        assert (tokens.num_tokens, training.num_tokens) == (120, 192)
        assert tokens.num_counted == (5 * 6 if count else 120)
        # a scorer that needs a loss takes that of the tokens that count
        rows, trained = tokens[:], training[:]
        assert int((rows["labels"] >= 0).sum()) == 5 * (6 if count else 23)
        assert int((trained["labels"] >= 0).sum()) == 8 * (6 if learn else 23)
        assert int(trained["mask"].sum()) == 8 * (6 if count else 24)


def test_sequences_without_an_answer_are_not_trained_on() -> None:
    """Documents are cut at 16 tokens, and nothing but their beginnings holds an answer."""
    data = answered([4, 9], learn_answers=True)
    assert [len(tokens) for tokens in data.training] == [8, 8]
    assert bool(data.training[0].teaches.all())
    assert len(answered([4, 9], count_answers=True).training[0]) == 12
    with pytest.raises(ValueError, match="--train-on answers: round 1's part of data holds no ans"):
        answered([], learn_answers=True)
    with pytest.raises(ValueError, match="48 calibration tokens of round 1 hold no answer; raise"):
        answered([], length=40, count_answers=True).calibration(1, 30)


def test_run_stops_where_half_the_data_would_fill_no_sequence() -> None:
    # 9 for the first round: its three parts would have 12 tokens each
    run = Run(num_documents=27)
    run.judge(9.0, 100, 100)
    decision = run.judge(9.0, 50, 100)
    reason = "half of the round's data would not fill a sequence"
    assert (decision.action, decision.reason) == ("stop", reason)
    assert run.rounds.schedule == run.data.training == []


def test_a_round_may_train_on_other_documents_until_it_is_split() -> None:
    run = Run()
    before = run.numbers()
    run.data.replace(1, [Encoded([7] * 4, None)] * 9)
    assert run.numbers() == [{7}, before[1]]
    assert run.data.training[0].num_tokens == 36
    run.judge(9.0, 100, 100)
    run.judge(9.0, 50, 100)
    after = run.numbers()
    assert set.union(*after[:3]) == before[0], "its parts are those of the corpus again"
    assert after[3] == before[1]


def test_the_data_is_summed_up_where_there_is_something_to_say(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    talks = with_template(tokenizer, chat_templates.CHATML)
    problems = [Document(**problem) for problem in generate(40, 8, "training")]

    def summary(documents: list[Document], **values: Any) -> str:
        config = settings(**values, sequence_length=128)
        corpus = sampling.split_corpus(
            [Part("a", 1.0, documents)],
            talks,
            shares=[0.5, 0.5],
            num_tokens=None,
            num_held_out=0,
            seed=1,
            find_answers=text.finds_answers(config),
        )
        return RoundData.of(config, corpus, talks, "data").summary(config)

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
