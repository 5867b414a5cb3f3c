"""What a round's recovery is given: the tokens that earlier rounds left, its share of a schedule,
and its extensions.
"""

import contextlib
import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import (
    AutoTokenizer,
)

from ptl_fast import compress
from ptl_fast.base import distributed
from ptl_fast.base.run_files import Checkpoint
from ptl_fast.evaluation import tasks
from ptl_fast.recovery import (
    optimizer_state,
    registry,
)
from ptl_fast.recovery.task import (
    RecoveryResult,
    RecoveryTask,
)
from ptl_fast.run import recover_step
from ptl_fast.run.folder import RunFolder
from support.gate import actions
from support.recovery import with_training
from support.runs import RUN, SHORT, UNTIL, Killed
from support.settings import settings

TWO_SHARDS = [f"global_step3/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]


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
    gated: dict[str, Any],
    follow: Callable[[str, Path], None],
    reinforced: list[RecoveryTask],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its tokens stay on top, and its documents its own, also where the quality gate has made
    three rounds of one. Killed, it goes on.
    """
    settings = {
        **gated,
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
    # killed after its last round, and before the result was published
    (tmp_path / "report.json").unlink()
    shutil.rmtree(tmp_path / "final")
    assert compress(**settings)["rounds"] == records


def test_reinforcement_is_extended_in_steps_and_split_with_its_problems(
    gated: dict[str, Any],
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
        **gated,
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
    tokenizer = AutoTokenizer.from_pretrained(gated["model"])
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
    state_kept: bool, gated: dict[str, Any], follow: Callable[[str, Path], None], tmp_path: Path
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
    report = compress(**{**gated, **split, "rounds": 2, "keep": 0.35}, output=tmp_path)
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


def test_recovered_rounds_hand_their_tokens_on(tiny_run: dict[str, str], tmp_path: Path) -> None:
    """The first ends early; the second begins recovered and does not train; the last takes what is
    left.
    """
    report = compress(**tiny_run, **{**RUN, **UNTIL}, output=tmp_path)
    tokens, steps = (
        [record[name] for record in report["rounds"]]
        for name in ("recovery_tokens", "recovery_steps")
    )
    (before, check), (second_check,), last_checks = [
        record["checks"] for record in report["rounds"]
    ]
    limit = json.loads((tmp_path / "dense.json").read_text())["checked_nll"] - 0.5
    assert (before[0], second_check[0]) == (0, 0)
    assert check[1] <= limit < before[1]
    assert second_check[1] <= limit
    assert steps[0] == check[0] + round(check[0] / 3), "recovered at the first check, and closed"
    assert 0 < tokens[0] < 4000
    assert (steps[1], tokens[1]) == (0, 0)
    assert sum(tokens) == 12000, "the last round takes what is left"
    assert last_checks == []
    assert steps[2] > 2 * steps[0]


def test_unrecovered_rounds_take_their_share(tiny_run: dict[str, str], tmp_path: Path) -> None:
    report = compress(**tiny_run, **{**RUN, **UNTIL, "recovered_within": -100.0}, output=tmp_path)
    assert [record["recovery_tokens"] for record in report["rounds"]] == [4000, 4000, 4000]
    assert all(nll > -50 for record in report["rounds"] for _, nll in record["checks"])
    for record in report["rounds"][:2]:
        interval = record["checks"][1][0]
        steps = range(0, round(0.75 * record["recovery_steps"]), interval)
        assert [step for step, _ in record["checks"]] == list(steps), "until the closing begins"
    assert report["rounds"][2]["checks"] == []


def test_round_that_does_not_train_passes_tokens_and_state_on(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """The first round goes as low as --keep allows, so the second finds nothing to remove; the
    third drops a layer.
    """
    settings = {
        **RUN,
        "threshold": 1e9,
        "rounds": 2,
        "drop_layers": 1,
        "keep_optimizer_state": True,
        "anticipate": 1e-3,
    }
    starts: list[bool] = []
    give = optimizer_state.give
    measured, measure = list[str](), tasks.answer_nll
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer_state, "give", lambda *args: (starts.append(True), give(*args)))
        patch.setattr(
            tasks,
            "answer_nll",
            lambda *args, **named: (measured.append(args[-1]), measure(*args, **named))[1],
        )
        report = compress(**tiny_run, **settings, output=tmp_path)
    assert [record["recovery_tokens"] for record in report["rounds"]] == [4000, 0, 8000]
    assert starts == [True], "the third round began warm"
    rounds = [label.removesuffix(": nll") for label in measured if label.startswith("round")]
    again = [f"round {number} {when}" for number in (1, 2, 3) for when in ("pruned", "recovered")]
    assert rounds == [label for label in again if label != "round 2 recovered"], (
        "nothing has changed in between"
    )
    assert report["rounds"][1]["eval"] == report["rounds"][1]["eval_pruned"]


@pytest.mark.parametrize(
    ("files", "ranks", "message"),
    [
        (["optimizer.pt"], None, ""),
        (["optimizer.pt"], 2, "begun without DeepSpeed and would go on with DeepSpeed on 2 ranks"),
        (TWO_SHARDS, 2, ""),
        (TWO_SHARDS, 4, "begun with DeepSpeed on 2 ranks and would go on with DeepSpeed on 4"),
        (TWO_SHARDS, None, "would go on without DeepSpeed"),
        # ZeRO stage 0 divides nothing
        (["global_step3/mp_rank_00_model_states.pt"], 4, ""),
    ],
)
def test_an_optimizer_state_that_is_divided_otherwise_is_refused(
    files: list[str],
    ranks: int | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = Checkpoint(tmp_path / "round-01" / "recovery" / "grpo" / "checkpoint-3")
    for name in files:
        file = checkpoint.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    checkpoint.mark()
    monkeypatch.setattr(distributed, "world_size", lambda: ranks or 1)
    if ranks is not None:
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
    context: Any = SimpleNamespace(
        config=settings(deepspeed="zero2"), device="cpu", folder=RunFolder(tmp_path)
    )
    step: Any = SimpleNamespace(number=1)
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        recover_step.check_ranks(context, step)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("whole", "damaged", "unfinished"):
        checkpoint = Checkpoint(tmp_path / "round-01" / "recovery" / name / "checkpoint-3")
        checkpoint.path.mkdir(parents=True)
        (checkpoint.path / "optimizer.pt").write_bytes(b"moments")
        if name != "unfinished":
            checkpoint.mark()
        if name == "damaged":
            (checkpoint.path / "optimizer.pt").write_bytes(b"moment5")
    context: Any = SimpleNamespace(folder=RunFolder(tmp_path))
    recover_step.tell_damaged_checkpoints(context, cast(Any, SimpleNamespace(number=1)))
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{tmp_path}/round-01/recovery/damaged/checkpoint-3 does not hold what" in line
    assert line.endswith("round 1's training goes on without it.")
