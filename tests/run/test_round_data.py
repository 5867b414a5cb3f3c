"""Each round has its own part of the data, also where the quality gate splits a round."""

import json
from collections.abc import Sequence
from typing import cast

from ptl_fast.config.prune import PruneSettings
from ptl_fast.data.sampling import Corpus
from ptl_fast.pruning.schedule import make_schedule
from ptl_fast.run.context import RunContext
from ptl_fast.run.quality_gate import Decision
from ptl_fast.run.round_data import RoundData
from ptl_fast.run.rounds import Rounds
from support.gate import gate
from support.plans import growing


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


def test_run_stops_where_half_the_data_would_fill_no_sequence() -> None:
    # 9 for the first round: its three parts would have 12 tokens each
    run = Run(num_documents=27)
    run.judge(9.0, 100, 100)
    decision = run.judge(9.0, 50, 100)
    reason = "half of the round's data would not fill a sequence"
    assert (decision.action, decision.reason) == ("stop", reason)
    assert run.rounds.schedule == run.data.training == []
