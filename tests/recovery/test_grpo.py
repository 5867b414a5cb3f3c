"""Reinforcement learning rewards what it should, learns, leaves the model as it was, and goes on
where it was killed.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast import compress
from ptl_fast.config.config import Config
from ptl_fast.config.presets import shipped_config
from ptl_fast.data.documents import Document
from ptl_fast.demo.problems import generate
from ptl_fast.recovery import registry
from ptl_fast.recovery.grpo import prompts, rewards
from ptl_fast.recovery.grpo import train as train_module
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from ptl_fast.run import dry_run, report
from ptl_fast.run.rounds import make_schedule
from support.files import write_rows
from support.models import make_model
from support.recovery import Killed, check, killed_at_step, packed, task, with_training

PROBLEMS = [
    Document(problem["question"], problem["answer"]) for problem in generate(24, 3, "training")
]


def config(**settings: object) -> Config:
    """Four steps of eight short rollouts."""
    grpo = {
        "grpo_steps": 4,
        "grpo_prompts": 2,
        "grpo_rollouts": 4,
        "grpo_response_tokens": 6,
        "grpo_prompt_tokens": 64,
    }
    shape = {
        "global_batch": 4,
        "micro_batch": 4,
        "sequence_length": 32,
        "gradient_checkpointing": False,
        "checkpoint_minutes": 0.0,
    }
    given = {
        "model": "x",
        "data": "x",
        "device": "cpu",
        "recovery": "grpo",
        "grpo_learning_rate": 1e-2,
    }
    return Config.from_flat(**{**given, **shape, **grpo, **settings})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the round's recovery."""
    return tmp_path / "round-01" / "recovery"


def given(settings: Config, folder: Path) -> RecoveryTask:
    """The problems of a round."""
    return task(packed(), 500, settings, folder, problems=PROBLEMS)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Random weights, so that responses differ."""
    return make_model("llama", vocab_size=len(tokenizer))


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward the share of digits among a response's characters, which random weights can learn."""
    share = lambda gold, text: sum(letter.isdigit() for letter in text) / max(1, len(text))  # noqa: E731
    monkeypatch.setitem(rewards.REWARDS, "accuracy", share)


# --- rewards


@pytest.mark.parametrize(
    ("gold", "response", "accuracy", "marked"),
    [
        pytest.param("65", " 47+8=55;55*3=65;#### 65", 1, 1, id="right"),
        pytest.param("65", " 47+8=55;55*3=66;#### 66", 0, 1, id="wrong"),
        pytest.param("65", " 47+8=55;55*3=65;", 0, 0, id="right-but-unmarked"),
        pytest.param("7", "so \\boxed{07}", 1, 1, id="another-spelling-of-a-number"),
        pytest.param("\\frac{1}{2}", "Thus \\boxed{0.5}.", 1, 1, id="equal-by-math-verify"),
        pytest.param(
            "\\frac{1}{2}", "Thus \\boxed{\\frac{2}{3}}.", 0, 1, id="unequal-by-math-verify"
        ),
        pytest.param("18", "#### 18 dollars", 1, 1, id="with-its-unit"),
        pytest.param("65", "", 0, 0, id="empty"),
    ],
)
def test_rewards_judge_the_marked_answer(
    gold: str, response: str, accuracy: float, marked: float
) -> None:
    assert rewards.REWARDS["accuracy"](gold, response) == accuracy
    assert rewards.REWARDS["format"](gold, response) == marked


def test_plain_numbers_need_no_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ptl_fast.data.answers.is_right", lambda *arguments: pytest.fail("asked math-verify")
    )
    assert rewards.accuracy("65", "#### 65") == 1
    assert rewards.accuracy("65", "#### 56") == 0


def test_gold_is_what_the_datas_answer_marks() -> None:
    answers = ["2+3=5;#### 5", "It is \\boxed{x^2}.", " 7 "]
    assert [rewards.gold_answer(answer) for answer in answers] == ["5", "x^2", "7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=1", "unknown reward 'speed'"),
        ("accuracy", "is not NAME=WEIGHT"),
        ("accuracy=0", "one of them above 0"),
        ("accuracy=-1,format=2", "at least 0"),
        ("format=nan", "must be finite"),
    ],
)
def test_weights_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.parse_weights(text)


# --- prompts


def asked(
    tokenizer: PreTrainedTokenizerBase,
    settings: Config,
    problems: Sequence[Document] = PROBLEMS,
) -> tuple[list[dict[str, Any]], int]:
    on_text = registry.trains_on_text(",".join(settings.recovery.all_recoveries))
    return prompts.make_prompts(problems, tokenizer, settings.grpo, on_text, "round-01")


def test_prompts_end_where_training_text_goes_on(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """A base model is asked as cpt trains it; the space before the answer is the model's to write."""
    rows, num_too_long = asked(tokenizer, config())
    assert num_too_long == 0
    assert [row["prompt"] for row in rows] == [
        f"Question: {problem.question}\nAnswer:" for problem in PROBLEMS
    ]
    assert [row["answer"] for row in rows] == [
        problem.answer.split("#### ")[1] for problem in PROBLEMS
    ]


def test_long_prompts_are_left_out_and_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    lengths = [
        len(tokenizer(f"Question: {problem.question}\nAnswer:")["input_ids"])
        for problem in PROBLEMS
    ]
    limit = sorted(lengths)[10]
    rows, num_too_long = asked(tokenizer, config(grpo_prompt_tokens=limit))
    assert num_too_long == sum(length > limit for length in lengths) > 0
    assert len(rows) == len(PROBLEMS) - num_too_long
    with pytest.raises(
        ValueError, match="24 documents, and none with a question of at most 3 tokens"
    ):
        asked(tokenizer, config(grpo_prompt_tokens=3))
    with pytest.raises(ValueError, match=r"grpo needs more \{question, answer\} data"):
        asked(tokenizer, config(), [Document("", "plain text")])


@pytest.mark.parametrize(
    ("form", "recovery", "final", "chat"),
    [
        ("auto", "grpo", None, True),
        ("auto", "cpt,grpo", None, False),
        ("auto", "cpt", "grpo", False),
        ("auto", "none", "grpo", True),
        ("chat", "cpt,grpo", None, True),
        ("template", "grpo", None, False),
    ],
)
def test_chat_is_used_where_nothing_trains_on_the_template(
    tokenizer: PreTrainedTokenizerBase, form: str, recovery: str, final: str | None, chat: bool
) -> None:
    settings = config(
        grpo_prompt=form, recovery=recovery, final_recovery=final, grpo_prompt_tokens=500
    )
    talks = copy.deepcopy(tokenizer)
    talks.chat_template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content"
        " }}{% endfor %}<assistant>"
    )
    prompt = asked(talks, settings)[0][0]["prompt"]
    assert (
        prompt == [{"role": "user", "content": f"{PROBLEMS[0].question}\n{prompts.INSTRUCTION}"}]
    ) == chat
    if form == "chat":
        with pytest.raises(ValueError, match="has no chat template"):
            asked(tokenizer, settings)
    else:
        assert isinstance(asked(tokenizer, settings)[0][0]["prompt"], str)


def test_every_problem_comes_once_before_any_comes_twice() -> None:
    rows = [{"prompt": str(number)} for number in range(7)]
    order = [row["prompt"] for row in train_module._in_seeded_order(rows, 17, seed=4)]
    assert len(order) == 17
    assert set(order[:7]) == set(order[7:14]) == {row["prompt"] for row in rows}
    assert order[:7] != order[7:14]
    assert train_module.num_steps(70, config(grpo_steps=None, grpo_prompts=32).grpo) == 2


@pytest.mark.parametrize(("num_ranks", "expected"), [(1, (4, 8)), (2, (4, 4))])
def test_rollouts_are_split_by_tokens(
    num_ranks: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of 2 x 256 tokens holds five rollouts of 100, and four divide a rank's 16 or 32."""
    monkeypatch.setattr("ptl_fast.base.distributed.world_size", lambda: num_ranks)
    settings = config(
        micro_batch=2,
        sequence_length=256,
        grpo_prompts=8,
        grpo_prompt_tokens=60,
        grpo_response_tokens=40,
    )
    assert train_module.rollout_split(settings.grpo, 2 * 256) == expected
    settings.grpo.grpo_micro_batch = 20
    assert train_module.rollout_split(settings.grpo, 2 * 256)[0] == 16, (
        "the largest number up to 20 that divides a rank's rollouts"
    )
    monkeypatch.setattr("ptl_fast.base.distributed.world_size", lambda: 3)
    with pytest.raises(ValueError, match="do not divide among 3 ranks"):
        train_module.rollout_split(settings.grpo, 2 * 256)


# --- learning


def test_learns_what_is_rewarded_and_leaves_all_else(
    model: PreTrainedModel, folder: Path, digits: None
) -> None:
    before, parameters = copy.deepcopy(model), dict(model.named_parameters())
    settings = config(
        grpo_steps=10, reward_weights="accuracy=1", grpo_learning_rate=3e-2, checkpoint_minutes=9
    )
    details = train_module.train(model, given(settings, folder)).details["grpo"]
    assert (details["steps"], details["rollouts"]) == (10, 80)
    assert sum(details["accuracy"][-3:]) / 3 > sum(details["accuracy"][:3]) / 3 + 0.2, details[
        "accuracy"
    ]
    assert details["always_zero"] == []
    assert model.config.to_dict() == before.config.to_dict()
    assert model.generation_config.to_dict() == before.generation_config.to_dict()
    assert not {"forward", "_is_accelerate_prepared"} & set(model.__dict__)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not model.training
    assert model.model_tags is None
    assert all(
        parameter is not parameters[name] and parameter.grad is None
        for name, parameter in model.named_parameters()
    )


def test_kl_is_measured_from_where_the_round_began(
    model: PreTrainedModel, folder: Path, digits: None
) -> None:
    """Not from the model whose name the config has: that one is not pruned."""
    model.config._name_or_path = "no/such-model"
    settings = config(grpo_kl=0.1, grpo_steps=2, checkpoint_minutes=9)
    details = train_module.train(model, given(settings, folder)).details["grpo"]
    assert details["kl"][0] == pytest.approx(0, abs=1e-5)
    assert details["kl"][-1] > 1e-3


def test_killed_reinforcement_ends_bit_identical(
    model: PreTrainedModel, folder: Path, digits: None
) -> None:
    """Also in a sequence, whose finished first part is not run again, and with half the steps run
    by the second process.
    """
    settings = config(recovery="cpt,grpo", learning_rate=1e-3)
    undisturbed, killed = copy.deepcopy(model), copy.deepcopy(model)
    names, own = settings.recovery.recoveries, given(settings, folder)
    other = dataclasses.replace(own, folder=folder.with_name("undisturbed"))
    expected = registry.recover(names, undisturbed, other)
    with pytest.MonkeyPatch.context() as patch:  # the first part's steps are not where it dies
        dies = with_training("grpo", partial(_die_in, train_module.train))
        patch.setitem(registry.RECOVERIES, "grpo", dies)
        with pytest.raises(Killed):
            registry.recover(names, killed, own)
    assert [file.name for file in (folder / "grpo").glob("checkpoint-*")] == ["checkpoint-2"]
    with pytest.MonkeyPatch.context() as patch:
        again = with_training("cpt", lambda *arguments: pytest.fail("it ran again"))
        patch.setitem(registry.RECOVERIES, "cpt", again)
        spent = registry.recover(names, model, own)
    assert spent == expected
    assert spent.num_steps > 0
    assert len(spent.details["grpo"]["reward"]) == 4
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, undisturbed.get_parameter(name)), name


def _die_in(train: Any, *arguments: Any) -> RecoveryResult:
    killed_at_step(2, lambda: train(*arguments))
    raise Killed


# --- runs


SHORT = {"grpo_prompt_tokens": 64, "grpo_response_tokens": 32}
RUN = {
    "recovery_split": "growing",
    "recovery_tokens": 6000,
    "sequence_length": 128,
    "calibration_tokens": 2000,
    "eval_tasks": "nll",
    "eval_limit": 4,
}


def test_rounds_and_the_final_recovery_have_problems_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final one has as much as the last round, and the rounds keep the tokens that they have
    without it.
    """
    tasks: list[RecoveryTask] = []

    def note(model: PreTrainedModel, task: RecoveryTask) -> RecoveryResult:
        tasks.append(task)
        steps = {name: [0.5] for name in ("reward", "truncated", "response_tokens")}
        return RecoveryResult(
            details={"grpo": {"always_zero": ["accuracy"], "steps": 1, "rollouts": 64, **steps}}
        )

    monkeypatch.setitem(registry.RECOVERIES, "grpo", with_training("grpo", note))
    content = compress(
        **RUN,
        rounds=2,
        recovery="grpo",
        final_recovery="grpo",
        device="cpu",
        output=tmp_path / "run",
    )
    assert [task.name for task in tasks] == ["round-01", "round-02", "round-03"]
    texts = [{document.text for document in task.problems} for task in tasks]
    assert all(
        len(text) == len(task.problems) > 10 for text, task in zip(texts, tasks, strict=True)
    )
    assert len(set.union(*texts)) == sum(map(len, texts))
    sizes = [task.tokens.num_tokens for task in tasks]
    assert sizes[0] + sizes[1] == pytest.approx(6000, abs=100)
    assert sizes[2] == pytest.approx(sizes[1], abs=100)
    records = content["rounds"]
    assert [record["kind"] for record in records] == ["neurons", "neurons", "final"]
    assert records[2]["eval_pruned"] == records[1]["eval"]
    assert content["final"]["num_parameters"] == records[1]["num_parameters"]
    assert records[0]["grpo"]["always_zero"] == ["accuracy"]
    assert "3 final" in (tmp_path / "run" / "report.md").read_text()


def test_reward_that_never_comes_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response of two tokens marks no answer. And the same command continues a run that died
    after its last round.
    """
    settings = {
        **RUN,
        "rounds": 1,
        "recovery": "none",
        "final_recovery": "grpo",
        "grpo_steps": 1,
        "grpo_prompts": 2,
    }
    settings |= {"grpo_response_tokens": 2, "device": "cpu", "output": tmp_path / "run"}
    content = compress(**settings)
    line = (
        "Round 2: accuracy and format were 0 for each of 16 rollouts, so there was nothing to"
        " learn from; 100% of the responses"
    )
    assert line in capsys.readouterr().out
    details = content["rounds"][1]["grpo"]
    assert (details["reward"], details["truncated"], details["steps"]) == ([0.0], [1.0], 1)
    assert (
        json.loads((tmp_path / "run" / "report.json").read_text())["rounds"][1]["grpo"] == details
    )
    assert line in (tmp_path / "run" / "report.md").read_text()


def test_line_for_one_reward() -> None:
    details: dict[str, Any] = {
        "always_zero": ["accuracy"],
        "rollouts": 1024,
        "reward": [0.1, 0.0],
        "truncated": [0.1, 0.2],
    }
    line = report.unrewarded_line(3, details)
    assert line.startswith(
        "Round 3: accuracy was 0 for each of 1024 rollouts; try more continual pre-training"
    )
    assert "smaller step (more --rounds)" in line
    line = report.unrewarded_line(3, {**details, "reward": [0.0, 0.0], "truncated": [0.9, 0.7]})
    assert (
        "so there was nothing to learn from; 80% of the responses were cut off: try a higher"
        " --grpo-response-tokens"
    ) in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recovery": "cpt,cpt"}, "name each recovery once"),
        ({"recovery": "none,grpo"}, "none only as --recovery none"),
        ({"final_recovery": "none"}, "none only as --recovery none"),
        ({"grpo_rollouts": 1}, "--grpo-rollouts 1 must be at least 2"),
        ({"grpo_temperature": 0.0}, "--grpo-temperature must be positive"),
        ({"grpo_prompts": 0}, "--grpo-prompts 0 must be at least 1"),
        (
            {"recovery": "grpo", "recovery_split": "until-recovered"},
            "--recovery-split until-recovered is about training on text",
        ),
        (
            {"recovery": "grpo", "score_during_recovery": True},
            "needs --recovery cpt or distill alone",
        ),
        ({"recovery": "cpt,grpo", "anticipate": 1.0}, "needs --recovery cpt or distill alone"),
        (
            {"recovery": "cpt,grpo", "keep_optimizer_state": True},
            "needs --recovery cpt or distill alone",
        ),
    ],
)
def test_settings_that_exclude_one_another_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(config(**{"recovery": "cpt", **settings}))


def test_unknown_names_and_missing_vllm_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**RUN, "rounds": 1, "device": "cpu", "output": tmp_path / "run"}
    with pytest.raises(
        ValueError, match="unknown --recovery hope; choose none, cpt, distill, grpo"
    ):
        compress(**given, recovery="cpt,hope")
    with pytest.raises(ValueError, match="unknown --final-recovery hope"):
        compress(**given, final_recovery="hope")
    write_rows(
        tmp_path / "plain.jsonl",
        *({"text": f"Text number {number}, with no question."} for number in range(300)),
    )
    with pytest.raises(ValueError, match=r"none with a question of at most .* and a final answer"):
        compress(
            **{**given, "recovery_tokens": None, "eval_tasks": "demo_arithmetic"},
            data=tmp_path / "plain.jsonl",
            recovery="grpo",
        )
    with pytest.raises(ValueError, match="has no chat template"):
        compress(**given, recovery="grpo", grpo_prompt="chat")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="vllm is not installed"):
        compress(**given, recovery="grpo", rollouts="vllm")
    assert not (tmp_path / "run").exists()


# --- dry run


def counted(settings: Config, num_tokens: int | None, names: list[str]) -> list[float | None]:
    """Tokens that each of these recoveries trains on, in the demo's dry run."""
    demo: Any = shipped_config("ptl-demo")
    parts = dry_run.estimates(demo, demo, settings, names, num_tokens)
    return [part.num_tokens for part in parts]


def test_dry_run_counts_rollouts_and_text() -> None:
    settings = config(grpo_kl=0.1)
    assert counted(settings, 1000, ["cpt", "grpo"]) == [1000, 4 * 2 * 4 * 6]
    assert counted(settings, None, ["cpt"]) == [None]
    assert counted(config(grpo_steps=None), 1000, ["grpo"]) == [None]
    assert counted(settings, 1000, ["none"]) == [0]


def test_reference_costs_a_forward_pass_and_a_copy_of_the_weights() -> None:
    demo: Any = shipped_config("ptl-demo")
    plain, with_kl = config(), config(grpo_kl=0.1)
    costs = [
        dry_run.estimates(demo, demo, each, ["grpo"], None)[0].flops_per_token
        for each in (plain, with_kl)
    ]
    assert costs[1] / costs[0] == pytest.approx(4 / 3)
    num_bytes = [dry_run.training_bytes(demo, demo, each, 1) for each in (plain, with_kl)]
    assert num_bytes[1] - num_bytes[0] == 2 * 1_416_576


def test_final_recovery_is_the_last_of_the_schedule() -> None:
    settings = config(keep=0.5, rounds=2, recovery="cpt", final_recovery="grpo")
    demo: Any = shipped_config("ptl-demo")
    schedule = make_schedule(settings, demo)
    assert [step.kind for step in schedule] == ["neurons", "neurons", "final"]
    assert [step.number for step in schedule] == [1, 2, 3]
    assert schedule[2].recovery_share == schedule[1].recovery_share
    assert math.isclose(sum(step.recovery_share for step in schedule[:2]), 1)


def test_empty_box_is_no_answer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    assert rewards.accuracy("", "so \\boxed{}") == 0.0
    assert rewards.format_("4", "so \\boxed{}") == 0.0
    problems = [Document("1 + 1 = ?", answer) for answer in ("so \\boxed{}", "#### $$", "#### 2")]
    rows, num_too_long = prompts.make_prompts(problems, tokenizer, config().grpo, False, "data")
    assert ([row["answer"] for row in rows], num_too_long) == (["2"], 0)
    with pytest.raises(
        ValueError, match=r"none with a question of at most 256 tokens and a final answer"
    ):
        prompts.check(problems[:2], tokenizer, config(grpo_prompt_tokens=256).grpo, False, "data")
    with pytest.raises(ValueError, match="names accuracy twice"):
        rewards.parse_weights("accuracy=1,accuracy=0")


def test_what_no_round_could_learn_from_is_refused_before_work_begins(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = {**RUN, "rounds": 1, "recovery": "grpo", "device": "cpu", "output": tmp_path / "run"}
    with pytest.raises(ValueError, match=r"none with a question of at most 2 tokens"):
        compress(**settings, grpo_prompt_tokens=2)
    with pytest.raises(
        ValueError, match=r"--grpo-response-tokens: .* tokens are more than the 512 positions"
    ):
        compress(**settings, grpo_response_tokens=700)
    llama.save_pretrained(tmp_path / "endless")
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    endless.save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="grpo needs a tokenizer with an end-of-sequence token"):
        compress(**settings, model=tmp_path / "endless", data="ptl-demo", width_multiple=8, **SHORT)
    assert not (tmp_path / "run").exists()
