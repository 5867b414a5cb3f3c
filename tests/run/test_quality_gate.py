"""The quality gate extends recovery, goes back with half the step, or stops with the best model, and
decides alike after a kill.
"""

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptl_fast import compress
from ptl_fast.baselines import ROUND_KINDS
from ptl_fast.config.config import Config
from ptl_fast.config.prune import PruneSettings
from ptl_fast.data.sampling import Corpus
from ptl_fast.evaluation import tasks
from ptl_fast.evaluation.tasks import EvalTask
from ptl_fast.pruning.schedule import Round, make_schedule, token_shares
from ptl_fast.pruning.smaller_steps import split
from ptl_fast.recovery import registry
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from ptl_fast.run import folder as folder_module
from ptl_fast.run import quality_gate, stored
from ptl_fast.run.context import RunContext
from ptl_fast.run.quality_gate import Decision, Gate
from ptl_fast.run.round_data import RoundData
from ptl_fast.run.rounds import Rounds
from support.models import DEMO_MODEL
from support.recovery import with_training
from support.runs import main

# --- decisions, by hand


def gate(**values: Any) -> Gate:
    return Gate(
        **{
            "task": "nll",
            "metric": "nll",
            "higher_is_better": False,
            "max_drop": 0.5,
            "dense": 1.0,
            **values,
        }
    )


@pytest.mark.parametrize(
    ("higher_is_better", "dense", "max_drop", "measured", "passes"),
    [
        pytest.param(True, 0.8, 0.1, 0.7, True, id="accuracy-at-the-limit-whatever-rounding-says"),
        pytest.param(True, 0.8, 0.1, 0.6999, False, id="accuracy-below"),
        pytest.param(True, 0.8, 0.1, 1.0, True, id="accuracy-above-dense"),
        pytest.param(True, 0.8, 0.0, 0.8, True, id="no-drop-allowed-and-none"),
        pytest.param(True, 0.8, 0.0, 0.799, False, id="no-drop-allowed"),
        pytest.param(False, 0.2, 0.1, 0.3, True, id="loss-at-the-limit"),
        pytest.param(False, 0.2, 0.1, 0.3001, False, id="loss-above"),
        pytest.param(False, 0.2, 0.1, 0.0, True, id="loss-below-dense"),
        pytest.param(False, 0.2, 0.1, float("nan"), False, id="loss-nan"),
        pytest.param(True, 0.2, 0.1, float("nan"), False, id="accuracy-nan"),
    ],
)
def test_gate_is_a_distance_from_dense(
    higher_is_better: bool, dense: float, max_drop: float, measured: float, passes: bool
) -> None:
    assert (
        gate(higher_is_better=higher_is_better, dense=dense, max_drop=max_drop).passes(measured)
        is passes
    )


def test_limit_is_on_the_metrics_worse_side() -> None:
    assert gate(higher_is_better=True).limit == 0.5
    assert gate(higher_is_better=False).limit == 1.5


def decide(history: list[Decision], measured: float, own: int = 100, **values: Any) -> Decision:
    """The next decision on a neuron round that removed 64 neurons; it joins the history."""
    extra = quality_gate.extensions(history, 2)
    tokens = (extra[-1].next_tokens or 0) if extra else own
    step = Round(number=2, kind="neurons", width=64, num_layers=4, recovery_share=0.5)
    settings = {
        "max_extra_recovery": 1.0,
        "trains": True,
        "given": own,
        "next_step": 32,
        "reason": None,
        **values,
    }
    made = quality_gate.decide(
        gate(), history, step, removed=64, measured=measured, tokens=tokens, **settings
    )
    history.append(made)
    return made


def test_failed_round_is_extended_then_undone_then_ends_the_run() -> None:
    history: list[Decision] = []
    first, second, third = (decide(history, 9.0) for _ in range(3))
    assert [
        (made.action, made.extension, made.tokens, made.next_tokens)
        for made in (first, second, third)
    ] == [
        ("extend", 0, 100, 50),
        ("extend", 1, 50, 50),
        ("back-off", 2, 50, None),
    ]
    assert third.next_step == 32
    assert (quality_gate.attempt(history, 2), quality_gate.extensions(history, 2)) == (2, []), (
        "the second attempt begins anew"
    )
    assert decide(history, 9.0, own=60, max_extra_recovery=0.8).next_tokens == 30, (
        "half of the round's own tokens"
    )
    assert decide(history, 9.0, own=60, max_extra_recovery=0.8).next_tokens == 18, (
        "and what is left of 0.8"
    )
    last = decide(
        history, 9.0, own=60, max_extra_recovery=0.8, next_step=None, reason="it is the smallest"
    )
    assert (last.action, last.attempt, last.reason) == ("stop", 2, "it is the smallest")
    assert quality_gate.stop(history) == last
    said = quality_gate.stopped_sentence(history)
    assert said is not None
    assert (
        "round 2 failed the gate nll:nll, and it is the smallest. The result is the model after"
        " round 1."
    ) in said


@pytest.mark.parametrize("num_failures", [0, 1, 2])
def test_round_that_passes_goes_no_further(num_failures: int) -> None:
    history: list[Decision] = []
    for _ in range(num_failures):
        assert decide(history, 1.6).action == "extend"
    assert decide(history, 1.5).action == "pass"
    assert quality_gate.has_passed(history, 2)
    assert not quality_gate.has_passed(history, 1)
    assert quality_gate.stopped_sentence(history) is None


@pytest.mark.parametrize(("share", "trains"), [(0.0, True), (0.5, False)])
def test_where_nothing_can_be_extended_a_failed_round_is_undone_at_once(
    share: float, trains: bool
) -> None:
    assert decide([], 9.0, max_extra_recovery=share, trains=trains).action == "back-off"


def test_recovery_without_text_is_extended_too() -> None:
    made = decide([], 9.0, own=0)
    assert (made.action, made.next_share, made.next_tokens) == ("extend", 0.5, 0)


@pytest.mark.parametrize(
    ("own", "more", "expected"),
    [
        pytest.param(0, 0.0, [50, 50], id="nothing-used"),
        pytest.param(0, 0.5, [50, 50, 50], id="nothing-used-and-more-allowed"),
        pytest.param(30, 0.0, [50, 20], id="some-used"),
        pytest.param(30, 0.1, [50, 30], id="some-used-and-more-allowed"),
        pytest.param(100, 0.0, [], id="all-used"),
        pytest.param(100, 0.0099, [], id="too-little-to-measure"),
    ],
)
def test_round_that_ended_early_is_extended_by_what_it_did_not_use(
    own: int, more: float, expected: list[int]
) -> None:
    history: list[Decision] = []
    while decide(history, 9.0, own=own, given=100, max_extra_recovery=more).action == "extend":
        pass
    assert [made.next_tokens for made in history[:-1]] == expected
    assert [made.tokens for made in history] == [own, *expected]
    assert history[-1].action == "back-off"


@pytest.mark.parametrize(
    ("kind", "removed", "multiple", "expected"),
    [
        ("neurons", 384, 32, 192),
        ("neurons", 160, 32, 64),
        ("neurons", 96, 64, 64),
        ("neurons", 64, 32, 32),
        ("neurons", 32, 32, None),
        ("neurons", 18, 16, 16),
        ("layers", 5, 32, 2),
        ("layers", 2, 32, 1),
        ("layers", 1, 32, None),
        ("hidden", 0, 32, None),
        ("none", 0, 32, None),
    ],
)
def test_half_a_step_is_whole_multiples_or_layers(
    kind: Any, removed: int, multiple: int, expected: int | None
) -> None:
    step, reason = ROUND_KINDS[kind].halve(removed, multiple)
    assert step == expected
    assert (reason is None) == (expected is not None)


def growing(num_rounds: int) -> list[float]:
    """Each round has twice the share of the one before."""
    return token_shares(num_rounds, growth=2.0, num_tokens=None, smallest_tokens=0)


def sizes(schedule: Sequence[Round]) -> list[tuple[str, int, int]]:
    return [(step.kind, step.width, step.num_layers) for step in schedule]


def test_halved_step_splits_the_rounds_to_come_where_they_stand() -> None:
    prune = PruneSettings(
        keep=0.5,
        rounds=2,
        drop_layers=4,
        layers_per_round=2,
        order="alternate",
        width_multiple=32,
        steps="equal",
    )
    schedule = make_schedule(prune, growing, 768, 8)
    assert sizes(schedule) == [
        ("neurons", 576, 8),
        ("layers", 576, 6),
        ("neurons", 384, 6),
        ("layers", 384, 4),
    ]
    groups = split(schedule, 3, 96, "width", original=768, multiple=32)
    assert [len(group) for group in groups] == [1, 1, 2, 1], (
        "what came before, and the other kind, stay"
    )
    assert sizes(groups[2]) == [("neurons", 480, 6), ("neurons", 384, 6)]
    groups = split(schedule, 1, 64, "width", original=768, multiple=32)
    smaller = [step for group in groups for step in group]
    assert sizes(groups[0]) == [("neurons", 704, 8), ("neurons", 640, 8), ("neurons", 576, 8)]
    assert sizes(groups[2]) == [("neurons", 512, 6), ("neurons", 448, 6), ("neurons", 384, 6)]
    assert [step.number for step in smaller] == list(range(1, 9))
    assert sum(step.recovery_share for step in smaller) == pytest.approx(1)
    for group, whole in zip(groups, schedule, strict=True):
        assert sum(step.recovery_share for step in group) == pytest.approx(whole.recovery_share)
    groups = split(smaller, 4, 1, "num_layers", original=8, multiple=1)
    assert [sizes(group) for group in groups if group[0].kind == "layers"] == [
        [("layers", 576, 7), ("layers", 576, 6)],
        [("layers", 384, 5), ("layers", 384, 4)],
    ]


def test_uneven_step_leaves_widths_that_are_multiples() -> None:
    """50 -> 32 removed 18 neurons; at most 16 at once leads over 48, the next multiple of 16."""
    schedule = [Round(number=1, kind="neurons", width=32, num_layers=4, recovery_share=0.3)]
    (group,) = split(schedule, 1, 16, "width", original=50, multiple=16)
    assert [step.width for step in group] == [48, 32]
    assert [step.recovery_share for step in group] == pytest.approx([0.3 * 2 / 18, 0.3 * 16 / 18])


# --- schedule and data


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
        corpus = Corpus(held_out=[], subsets=subsets, documents=[[], []], fingerprint="")
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


# --- settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"gate": "nll:nll"}, "give both or neither", id="no-drop"),
        pytest.param({"max_drop": 0.1}, "give both or neither", id="no-gate"),
        pytest.param(
            {"gate": "nll:nll", "max_drop": -0.1}, "--max-drop -0.1 must be", id="negative"
        ),
        pytest.param(
            {"gate": "nll:nll", "max_drop": float("nan")}, "--max-drop nan must be", id="nan"
        ),
        pytest.param({"max_extra_recovery": -1.0}, "--max-extra-recovery -1.0 must be", id="extra"),
        pytest.param(
            {"gate": "nll:nll", "max_drop": 0.1, "threshold": 0.1},
            "--threshold leaves to the scores",
            id="threshold",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.from_flat(model="x", data="x", **values).check()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nll", "'nll' is not of the form TASK:METRIC"),
        ("gsm8k:exact_match", "gsm8k is none of --eval-tasks; choose nll, demo_arithmetic"),
        ("nll:perplexity", "nll has no metric perplexity; choose nll:nll"),
        (
            "demo_arithmetic:acc",
            "demo_arithmetic has no metric acc; choose demo_arithmetic:exact_match/final-number",
        ),
    ],
)
def test_wrong_gate_lists_the_choices_before_work_begins(
    name: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [
        "--eval-tasks",
        "nll,demo_arithmetic",
        "--max-drop",
        "0.1",
        "--recovery-tokens",
        "9000",
        "--device",
        "cpu",
    ]
    assert main([*flags, "--gate", name]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["demo_arithmetic", "ptl_gsm8k"])
def test_metrics_are_known_before_they_are_measured(name: str, tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(
        "".join(json.dumps({"question": "1 + 1 = ?", "answer": "#### 2"}) + "\n" for _ in range(2))
    )
    loaded = tasks.load_lm_eval_task(
        EvalTask(name, name, str(file) if name != "demo_arithmetic" else None)
    )
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(DEMO_MODEL),
        AutoTokenizer.from_pretrained(DEMO_MODEL),
    )
    assert tasks.metrics(loaded) == dict.fromkeys(
        tasks.run_lm_eval(model, tokenizer, loaded, 2, 2), True
    )


SHORT = {"grpo_prompt_tokens": 64, "grpo_response_tokens": 32}


class Killed(Exception):
    pass


# --- whole runs whose measurements are a script: the k-th decision finds the k-th value


@pytest.fixture(scope="module")
def inputs(tiny_run: dict[str, str]) -> dict[str, Any]:
    return {
        **tiny_run,
        "device": "cpu",
        "keep": 0.5,
        "rounds": 1,
        "width_multiple": 8,
        "drop_layers": 2,
        "layers_per_round": 2,
        "sequence_length": 64,
        "global_batch": 4,
        "micro_batch": 4,
        "recovery_tokens": 3000,
        "recovery_split": "equal",
        "learning_rate": 1e-3,
        "calibration_tokens": 500,
        "gradient_checkpointing": False,
        "gate": "nll:nll",
        "max_drop": 0.5,
    }


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Every recovery ends with several garbage collections; most of what they would look at are the
    libraries.
    """
    import_module("transformers.trainer")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Have every round of a folder measure as a script says: p passes, f fails, one letter a
    decision.
    """
    measure = tasks.answer_nll

    def choose(script: str, output: Path) -> None:
        def scripted(*args: Any, **kwargs: Any) -> dict[str, float]:
            measured = measure(*args, **kwargs)
            if not str(args[-1]).startswith("round"):
                return measured
            dense = json.loads((output / "dense.json").read_text())["eval"]["nll"]["nll"]
            file = output / "decisions.json"
            letter = script[len(json.loads(file.read_text())) if file.exists() else 0]
            return {"nll": dense + {"p": 0.5, "f": 0.6}[letter] + measured["nll"] * 1e-12}

        monkeypatch.setattr(tasks, "answer_nll", scripted)

    return choose


def actions(report: dict[str, Any]) -> str:
    return " ".join(
        f"{made['round']}.{made['attempt']}{made['action'][0]}" for made in report["decisions"]
    )


SCRIPT = "ffpfppffpff"
DECIDED = "1.1e 1.1b 1.2p 2.1e 2.1p 3.1p 4.1e 4.1b 4.2p 5.1e 5.1s"


def test_rounds_are_extended_undone_and_split_until_the_smallest_step_fails(
    inputs: dict[str, Any],
    follow: Callable[[str, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No document is trained on in two rounds; an extension sees those of its own round once more."""
    tasks_given: list[RecoveryTask] = []
    train = registry.RECOVERIES["cpt"].train

    def note(model: Any, task: RecoveryTask) -> Any:
        tasks_given.append(task)
        return train(model, task)

    monkeypatch.setitem(registry.RECOVERIES, "cpt", with_training("cpt", note))
    follow(SCRIPT, tmp_path)
    report = compress(**inputs, output=tmp_path)
    assert actions(report) == DECIDED
    assert [
        (record["kind"], record["width"], record["num_layers"]) for record in report["rounds"]
    ] == [
        ("neurons", 40, 5),
        ("neurons", 32, 5),
        ("neurons", 24, 5),
        ("layers", 24, 4),
    ]
    assert [made["step"] for made in report["decisions"]] == [24, 24, 8, 8, 8, 8, 2, 2, 1, 1, 1]
    assert [made["next_step"] for made in report["decisions"] if made["action"] == "back-off"] == [
        8,
        1,
    ]
    names = [
        "01",
        "01-extra-1",
        "01",
        "02",
        "02-extra-1",
        "03",
        "04",
        "04-extra-1",
        "04",
        "05",
        "05-extra-1",
    ]
    assert [task.name for task in tasks_given] == [f"round-{name}" for name in names]
    assert [made["tokens"] for made in report["decisions"]] == [
        task.num_tokens for task in tasks_given
    ]
    assert [task.num_tokens for task in tasks_given] == [
        1500,
        750,
        500,
        500,
        250,
        500,
        1500,
        750,
        750,
        750,
        375,
    ]

    def rows(index: int) -> set[tuple[int, ...]]:
        return {tuple(row.tolist()) for row in tasks_given[index].tokens.input_ids}

    kept = [2, 3, 5, 8, 9]
    assert len(set.union(*map(rows, kept))) == sum(len(rows(index)) for index in kept), (
        "no sequence in two rounds"
    )
    assert all(rows(index) == rows(index - 1) for index in (1, 4, 7, 10)), (
        "an extension has its round's"
    )

    assert [len(record.get("extra_recovery", [])) for record in report["rounds"]] == [0, 1, 0, 0]
    assert [record["recovery_tokens"] for record in report["rounds"]] == [500, 500, 500, 750]
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert (final.config.intermediate_size, final.config.num_hidden_layers) == (24, 4)
    assert report["final"]["eval"] == report["rounds"][-1]["eval"]
    for name in ("round-01.failed-1", "round-04.failed-1", "round-05.failed-1"):
        files = {file.name for file in (tmp_path / name).iterdir()}
        assert {
            "plan.json",
            "record.json",
            "statistics.safetensors",
            "pruned.json",
            "recovered-extra-1.json",
        } <= files
        assert not [file for file in files if file.startswith(("model", "optimizer"))]
        assert len(json.loads((tmp_path / name / "record.json").read_text())["extra_recovery"]) == 1
    folders = {file.name for file in tmp_path.iterdir() if file.is_dir()}
    assert folders == {
        "final",
        "log",
        *(f"round-0{n}" for n in "1234"),
        *(f"round-0{n}.failed-1" for n in "145"),
    }


def test_run_in_smaller_steps_reaches_its_target(
    inputs: dict[str, Any],
    follow: Callable[[str, Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And a finished one answers at once, with what it said."""
    follow(SCRIPT[:-2] + "fp", tmp_path)
    report = compress(**inputs, output=tmp_path)
    assert actions(report).endswith("5.1e 5.1p")
    assert report["stopped"] is None
    assert (report["final"]["width"], report["final"]["num_layers"]) == (24, 3)
    said = capsys.readouterr().out
    assert "Quality gate, round 1, attempt 1, extension 1: nll nll is" in said
    assert (
        "back to the original model, with steps of at most 8 neurons a layer instead of 24." in said
    )
    assert "stopped" not in said
    weights = (tmp_path / "final" / "model.safetensors").stat().st_mtime_ns
    assert compress(**inputs, output=tmp_path)["decisions"] == report["decisions"]
    assert (tmp_path / "final" / "model.safetensors").stat().st_mtime_ns == weights


def test_run_without_a_round_that_passes_ends_with_the_original(
    inputs: dict[str, Any],
    follow: Callable[[str, Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    follow("ffff", tmp_path)
    report = compress(**inputs, output=tmp_path)
    assert actions(report) == "1.1e 1.1b 1.2e 1.2s"
    sentence = (
        "The quality gate stopped this run before its target: round 1 failed the gate nll:nll, and 8"
        " neurons a layer is the smallest step"
        " (--width-multiple 8). The result is the original model, unchanged: no round has passed."
    )
    assert report["stopped"] == sentence
    assert sentence in capsys.readouterr().out
    assert all(
        sentence in (tmp_path / name).read_text() for name in ("report.md", "final/README.md")
    )
    assert report["rounds"] == []
    assert report["final"] == {name: report["dense"][name] for name in report["final"]}
    original, final = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (inputs["model"], tmp_path / "final")
    )
    assert all(torch.equal(tensor, final[name]) for name, tensor in original.items())
    assert not list(tmp_path.glob("round-0?/model"))
    again = compress(**inputs, output=tmp_path)
    assert (again["decisions"], again["stopped"]) == (report["decisions"], sentence)


@pytest.mark.parametrize(
    ("options", "script", "decided"),
    [
        pytest.param(
            {"recovery": "none"},
            "fpppf" + "f",
            "1.1b 1.2p 2.1p 3.1p 4.1b 4.2s",
            id="none-only-goes-back",
        ),
        pytest.param({"keep": 1.0, "drop_layers": 0}, "ff", "1.1e 1.1s", id="training-has-no-step"),
        pytest.param(
            {"keep": 1.0, "drop_layers": 0, "slice_hidden": 0.75},
            "ff",
            "1.1e 1.1s",
            id="slicing-is-one-step",
        ),
    ],
)
def test_what_cannot_help_is_not_tried(
    options: dict,
    script: str,
    decided: str,
    inputs: dict[str, Any],
    follow: Callable[[str, Path], None],
    tmp_path: Path,
) -> None:
    follow(script, tmp_path)
    report = compress(**{**inputs, **options}, output=tmp_path)
    assert actions(report) == decided
    assert report["stopped"]


# --- the quality gate beside other recoveries


@pytest.fixture
def reinforced(monkeypatch: pytest.MonkeyPatch) -> list[RecoveryTask]:
    """What each grpo was given; it trains nothing, and takes as many steps as the settings say."""
    given: list[RecoveryTask] = []

    def note(model: Any, task: RecoveryTask) -> RecoveryResult:
        given.append(task)
        steps = task.grpo.grpo_steps or 1
        curves = {name: [0.5] * steps for name in ("reward", "truncated", "response_tokens")}
        return RecoveryResult(
            details={
                "grpo": {
                    "always_zero": ["accuracy"],
                    "steps": steps,
                    "rollouts": 8 * steps,
                    **curves,
                }
            }
        )

    monkeypatch.setitem(registry.RECOVERIES, "grpo", with_training("grpo", note))
    return given


@pytest.mark.parametrize("name", ["grpo", "cpt"])
def test_final_recovery_is_not_judged_and_stays_last(
    name: str,
    inputs: dict[str, Any],
    follow: Callable[[str, Path], None],
    reinforced: list[RecoveryTask],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its tokens stay on top, and its documents its own, also where the quality gate has made three rounds
    of one. Killed, it goes on.
    """
    settings = {
        **inputs,
        "drop_layers": 0,
        "final_recovery": name,
        "grpo_steps": 4,
        "lr_schedule": "run",
        **SHORT,
    }
    settings["output"] = tmp_path
    follow("ffpppf", tmp_path)
    train, kills = registry.RECOVERIES[name].train, [Killed]
    tasks_given: list[RecoveryTask] = []

    def note(model: Any, task: RecoveryTask) -> RecoveryResult:
        tasks_given.append(task)
        if task.name == "round-04" and kills:
            raise kills.pop()
        return train(model, task)

    monkeypatch.setitem(registry.RECOVERIES, name, with_training(name, note))
    with pytest.raises(Killed):
        compress(**settings)
    gc.collect()
    report = compress(**settings)
    assert actions(report) == "1.1e 1.1b 1.2p 2.1p 3.1p"
    assert [record["kind"] for record in report["rounds"]] == ["neurons"] * 3 + ["final"]
    assert [record["recovery_tokens"] for record in report["rounds"][:3]] == [1000] * 3
    assert tasks_given[-1].name == "round-04"
    assert tasks_given[-1].num_tokens == 3000
    assert tasks_given[-1].tokens.num_tokens == pytest.approx(3000, abs=100)
    records = report["rounds"]
    assert records[3]["eval_pruned"] == records[2]["eval"]
    assert (report["final"]["width"], report["final"]["eval"]) == (24, records[3]["eval"])
    if name == "grpo":
        assert len(tasks_given[-1].problems) > 10
        assert {task.name for task in tasks_given} == {"round-04"}
    else:
        steps = sum(record["recovery_steps"] for record in records[:2])
        positions = {task.name: task.options.schedule_position for task in tasks_given}
        assert positions["round-03"] == (steps, 0), "the run's schedule ends with the last pruning"
        assert positions["round-04"] is None
    assert "4 final" in (tmp_path / "report.md").read_text()


def test_run_that_the_gate_stops_has_no_final_recovery(
    inputs: dict[str, Any], follow: Callable[[str, Path], None], tmp_path: Path
) -> None:
    follow("fpf", tmp_path)
    settings = {
        **inputs,
        "drop_layers": 0,
        "keep": 0.65,
        "recovery": "none",
        "final_recovery": "cpt",
    }
    report = compress(**settings, output=tmp_path)
    assert actions(report) == "1.1b 1.2p 2.1s"
    assert [record["kind"] for record in report["rounds"]] == ["neurons"]
    assert report["final"]["eval"] == report["rounds"][0]["eval"]


def test_reinforcement_is_extended_in_steps_and_split_with_its_problems(
    inputs: dict[str, Any],
    follow: Callable[[str, Path], None],
    reinforced: list[RecoveryTask],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Half of six steps is three; the parts of an undone round have problems of their own, those of
    their text.
    """
    follow("ffpfpp", tmp_path)
    settings = {
        **inputs,
        "drop_layers": 0,
        "recovery": "cpt,grpo",
        "grpo_steps": 6,
        **SHORT,
        "output": tmp_path,
    }
    report = compress(**settings)
    assert actions(report) == "1.1e 1.1b 1.2p 2.1e 2.1p 3.1p"
    assert [task.grpo.grpo_steps for task in reinforced] == [6, 3, 6, 6, 3, 6]
    assert [task.seed for task in reinforced] == [0, 1, 0, 0, 1, 0]
    texts = [{document.text for document in task.problems} for task in reinforced]
    assert texts[1] == texts[0] == texts[2] | texts[3] | texts[5]
    assert texts[4] == texts[3]
    assert len(texts[0]) == len(texts[2]) + len(texts[3]) + len(texts[5]), (
        "no problem in two rounds"
    )
    tokenizer = AutoTokenizer.from_pretrained(inputs["model"])
    for task in reinforced:
        read = {int(token) for token in task.tokens.input_ids.flatten()}
        assert {
            token for document in task.problems for token in tokenizer(document.text)["input_ids"]
        } <= read
        assert (
            sum(len(tokenizer(document.text)["input_ids"]) + 1 for document in task.problems)
            == task.tokens.num_tokens
        )
    (extra,) = report["rounds"][1]["extra_recovery"]
    assert (extra["grpo"]["steps"], report["rounds"][1]["grpo"]["steps"]) == (3, 6)
    line = "Round 2, extension 1: accuracy was 0 for each of 24 rollouts"
    assert line in capsys.readouterr().out
    text = (tmp_path / "report.md").read_text()
    assert line in text
    assert "| 2, extension 1 |" in text


@pytest.mark.parametrize("state_kept", [False, True])
def test_round_that_needed_no_training_trains_when_the_gate_says_otherwise(
    state_kept: bool, inputs: dict[str, Any], follow: Callable[[str, Path], None], tmp_path: Path
) -> None:
    """With until-recovered. Undone, it is not trained before the gate asks for it; what later
    rounds are given stays the same.
    """
    follow("ffffpfppp", tmp_path)
    split = {
        "recovery_split": "until-recovered",
        "recovered_within": 100.0,
        "drop_layers": 0,
        "keep_optimizer_state": state_kept,
    }
    report = compress(**{**inputs, **split, "rounds": 2, "keep": 0.35}, output=tmp_path)
    assert actions(report).startswith("1.1e 1.1e 1.1e 1.1b 1.2p 2.1e 2.1p")
    first, *extra, second = report["decisions"][:5]
    assert (first["tokens"], second["tokens"]) == (0, 0)
    assert [made["tokens"] for made in extra] == [first["next_tokens"]] * 3
    extensions = json.loads((tmp_path / "round-01.failed-1" / "record.json").read_text())[
        "extra_recovery"
    ]
    assert [extension["recovery_tokens"] for extension in extensions] == [
        made["tokens"] for made in extra
    ]
    assert all(extension["recovery_steps"] > 0 for extension in extensions)
    assert report["rounds"][0]["recovery_tokens"] == 0
    assert report["rounds"][-1]["recovery_tokens"] == 3000, "the last round has the whole budget"


# --- interrupted runs


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have a run die before each decision, evaluation, saved model, record, rename and deletion,
    each once; these places.
    """
    places: list[str] = []
    watched = (
        "decisions.json",
        "record.json",
        "recovered.json",
        "recovered-extra-1.json",
        "model",
        "model-extra-1",
    )

    def die_once(place: str) -> None:
        if place not in places:
            places.append(place)
            raise Killed

    def dying(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            path = next(each for each in reversed(args) if isinstance(each, Path))
            if kind != "write" or path.name in watched:
                content = args[1].count(b"action") if path.name == "decisions.json" else ""
                die_once(f"{kind} {path.parent.name}/{path.name} {content}")
            return function(*args)

        return call

    monkeypatch.setattr(stored, "write_atomically", dying(stored.write_atomically, "write"))
    monkeypatch.setattr(stored, "publish", dying(stored.publish, "save"))
    monkeypatch.setattr(folder_module, "publish", dying(folder_module.publish, "save"))
    monkeypatch.setattr(folder_module, "_rename", dying(folder_module._rename, "rename"))
    return places


def without_seconds(report: dict[str, Any]) -> dict[str, Any]:
    records = [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in report["rounds"]
    ]
    return {
        **{name: report[name] for name in ("dense", "decisions", "stopped", "final")},
        "rounds": records,
    }


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.glob(pattern))
    }


STATE = {
    "recovery_split": "until-recovered",
    "recovered_within": -1.2,
    "keep_optimizer_state": True,
    "anticipate": 1e-3,
}
DURING = {"scorer": "output-change", "score_during_recovery": True, "lr_schedule": "run"}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(STATE, id="until-recovered-state-anticipate"),
        pytest.param(DURING, id="score-during-recovery-run-schedule"),
    ],
)
def test_run_killed_at_every_decision_ends_bit_identical(
    options: dict,
    inputs: dict[str, Any],
    follow: Callable[[str, Path], None],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    follow(SCRIPT, tmp_path / "a")
    undisturbed = compress(**{**inputs, **options}, output=tmp_path / "a")
    assert actions(undisturbed) == DECIDED
    follow(SCRIPT, tmp_path / "b")
    places, report = request.getfixturevalue("mortal"), None
    while report is None:
        try:
            report = compress(**{**inputs, **options}, output=tmp_path / "b")
        except Killed:
            gc.collect()  # lets go of the folder, as a process that ends does
    decisions = [place for place in places if place.startswith("write b/decisions.json")]
    assert len(decisions) == len(SCRIPT)
    assert {
        "rename b/round-01.failed-1 ",
        "write round-05.failed-1/record.json ",
        "rename round-02/model ",
    } <= set(places)
    assert without_seconds(report) == without_seconds(undisturbed)
    for pattern in (
        "final/*.json",
        "final/*.safetensors",
        "round-*/plan.json",
        "round-*/statistics.safetensors",
        "decisions.json",
    ):
        assert files(tmp_path / "a", pattern) == files(tmp_path / "b", pattern), pattern
    folders = [
        sorted(str(path.relative_to(tmp_path / run)) for path in (tmp_path / run).glob("round-*/*"))
        for run in "ab"
    ]
    assert folders[0] == folders[1]
    assert not list((tmp_path / "b").rglob("*.tmp"))


# --- the bundled model, and what it really measures

BUNDLED = {
    "rounds": 1,
    "scorer": "output-change",
    "compensate": False,
    "recovery_split": "growing",
    "recovery_tokens": 4000,
    "sequence_length": 128,
    "global_batch": 8,
    "micro_batch": 8,
    "calibration_tokens": 1000,
    "learning_rate": 1.5e-4,
    "lr_schedule": "round",
    "keep_optimizer_state": False,
    "device": "cpu",
}


def test_far_too_large_step_is_extended_then_halved_and_the_run_stops_with_the_best_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """576 of 768 neurons are too many at once, and 192 are not, but 192 more are: all on the screen
    and in both reports.
    """
    settings = {
        **BUNDLED,
        "scorer": "activation",
        "eval_tasks": "nll",
        "eval_limit": 20,
        "gate": "nll:nll",
        "max_drop": 0.004,
    }
    report = compress(**settings, keep=0.25, width_multiple=192, output=tmp_path)
    assert actions(report) == "1.1e 1.1b 1.2p 2.1e 2.1s"
    assert [made["step"] for made in report["decisions"]] == [576, 576, 192, 192, 192]
    dense = report["dense"]["eval"]["nll"]["nll"]
    for made in report["decisions"]:
        assert (made["task"], made["metric"], made["dense"]) == ("nll", "nll", dense)
        assert made["limit"] == pytest.approx(dense + 0.004)
        assert (made["measured"] <= made["limit"]) == (made["action"] == "pass")
    assert report["final"]["width"] == report["rounds"][-1]["width"] == 576
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "final").config.intermediate_size == 576
    text, said = (tmp_path / "report.md").read_text(), capsys.readouterr().out
    for sentence in (
        report["stopped"],
        "back to the original model, with steps of at most 192 neurons a layer instead of 576",
        (
            "the run stops (192 neurons a layer is the smallest step (--width-multiple 192)); the"
            " result is the model after round 1"
        ),
        *(
            f"recovery goes on for {made['next_tokens']:,} tokens"
            for made in report["decisions"]
            if made["action"] == "extend"
        ),
    ):
        assert sentence in text, sentence
        assert sentence in said, sentence
    assert "round 2 failed the gate nll:nll" in report["stopped"]


def test_smaller_steps_rescue_what_one_large_step_loses(tmp_path: Path) -> None:
    """384 neurons at once fail, also when trained longer; two steps, the second scored on what is
    left, reach the target.
    """
    settings = {
        **BUNDLED,
        "learning_rate": 2e-5,
        "max_extra_recovery": 0.1,
        "eval_tasks": "nll",
        "eval_limit": 20,
    }
    report = compress(
        **settings, gate="nll:nll", max_drop=0.0115, keep=0.5, width_multiple=64, output=tmp_path
    )
    assert actions(report) == "1.1e 1.1b 1.2p 2.1p"
    assert report["stopped"] is None
    assert (
        report["final"]["width"]
        == 384
        == json.loads((tmp_path / "round-01.failed-1" / "record.json").read_text())["width"]
    )
    assert (
        report["final"]["eval"]["nll"]["nll"]
        < report["decisions"][1]["limit"]
        < report["decisions"][1]["measured"]
    )


def test_gate_holds_an_accuracy(tmp_path: Path) -> None:
    """480 neurons at once cost more than five points; 192 and then 192 more do not, and the last 96
    do.
    """
    gate = {
        "eval_tasks": "demo_arithmetic",
        "gate": "demo_arithmetic:exact_match/final-number",
        "max_drop": 0.05,
    }
    settings = {**BUNDLED, **gate, "recovery": "none", "eval_limit": 50, "eval_batch": 50}
    report = compress(**settings, keep=0.375, width_multiple=96, output=tmp_path)
    assert actions(report) == "1.1b 1.2p 2.1p 3.1s"
    dense = report["dense"]["eval"]["demo_arithmetic"]["exact_match/final-number"]
    assert [made["limit"] for made in report["decisions"]] == [pytest.approx(dense - 0.05)] * 4
    assert [made["measured"] < made["limit"] for made in report["decisions"]] == [
        True,
        False,
        False,
        True,
    ]
    assert report["final"]["width"] == 384
    assert report["final"]["eval"]["demo_arithmetic"]["exact_match/final-number"] >= dense - 0.05


def test_different_values_look_different() -> None:
    assert quality_gate.told_apart(0.5, 0.5, 0.25) == ["0.5000", "0.5000", "0.2500"]
    assert quality_gate.told_apart(0.00006, 0.00007, 0.00007) == ["0.00006", "0.00007", "0.00007"]


def test_round_that_diverges_is_undone(
    inputs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not extended: the step is halved until none is left, and the result is the original.
    Without a gate it is an error.
    """
    settings = {
        **inputs,
        "learning_rate": 1e9,
        "drop_layers": 0,
        "keep": 0.6667,
        "rounds": 1,
        "width_multiple": 8,
    }
    report = compress(**settings, output=tmp_path / "run")
    actions = [
        (decision["action"], decision["step"], decision["measured"])
        for decision in report["decisions"]
    ]
    assert actions == [("back-off", 16, None), ("stop", 8, None)]
    assert report["final"]["width"] == report["dense"]["width"]
    assert "recovery diverged: back to the original model" in capsys.readouterr().out
    failed = json.loads((tmp_path / "run" / "round-01.failed-1" / "record.json").read_text())
    assert "recovery's loss is" in failed["diverged"]
    assert "| diverged |" in (tmp_path / "run" / "report.md").read_text()
    assert compress(**settings, output=tmp_path / "run")["decisions"] == report["decisions"], (
        "again, it only reads"
    )
    ungated = {name: value for name, value in settings.items() if name not in ("gate", "max_drop")}
    with pytest.raises(ValueError, match=r"recovery's loss is .* lower --learning-rate"):
        compress(**ungated, output=tmp_path / "other")
