"""Recoveries one after another: what is finished is not run again."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.base.run_files import RecoveryFolder
from ptl_fast.recovery import registry
from ptl_fast.recovery.grpo import train as train_module
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from support.recovery import Killed, grpo_config, killed_at_step, problem_task, with_training


def test_killed_reinforcement_ends_bit_identical(
    model: PreTrainedModel, folder: Path, digits: None
) -> None:
    """Also in a sequence, whose finished first part is not run again, and with half the steps run
    by the second process.
    """
    settings = grpo_config(recovery="cpt,grpo", learning_rate=1e-3)
    undisturbed, killed = copy.deepcopy(model), copy.deepcopy(model)
    names, own = settings.recovery.recoveries, problem_task(settings, folder)
    elsewhere = RecoveryFolder(folder.with_name("undisturbed"))
    other = dataclasses.replace(own, folder=elsewhere)
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


def test_recoveries_on_text_share_the_tokens_and_all_have_the_problems(
    model: PreTrainedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[RecoveryTask] = []

    def note(name: str) -> Callable[..., RecoveryResult]:
        def train(model: PreTrainedModel, task: RecoveryTask) -> RecoveryResult:
            given.append(task)
            task.folder.path.mkdir(parents=True)
            return RecoveryResult(num_steps=1, num_tokens=task.num_tokens, details={name: {}})

        return train

    names = ["cpt", "distill", "grpo"]
    for name in names:
        monkeypatch.setitem(registry.RECOVERIES, name, with_training(name, note(name)))
    own = problem_task(grpo_config(), folder)
    spent = registry.recover(names, model, own)
    assert [task.num_tokens for task in given] == [250] * 3, "half of 500, for two on text"
    assert all(task.problems == own.problems for task in given)
    assert [task.folder.path for task in given] == [folder / name for name in names]
    assert (spent.num_steps, list(spent.details)) == (3, names)
    elsewhere = dataclasses.replace(own, folder=RecoveryFolder(folder / "alone"))
    alone = registry.recover(["cpt"], model, elsewhere)
    assert (alone.num_tokens, given[-1].folder) == (500, elsewhere.folder)


def test_goes_on_with_the_first_that_is_not_finished(folder: Path) -> None:
    names, own = ["cpt", "grpo"], RecoveryFolder(folder)
    assert registry.goes_on(names, own) is None
    for name in names:
        checkpoint = own.method(name).checkpoint(3)
        checkpoint.path.mkdir(parents=True)
        checkpoint.mark()
        assert registry.goes_on(names, own) == name
        own.method(name).finished.mark()
    assert registry.goes_on(names, own) == "grpo", "all are finished: the last one's weights"
    assert registry.goes_on(["cpt"], own.method("cpt")) == "cpt"
    assert registry.goes_on(["cpt"], own.method("nothing")) is None


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(
        ValueError, match="unknown recovery hope; choose none, cpt, distill, opd, grpo"
    ):
        registry.find(["cpt", "hope"])
    given = ("grpo", "none", "cpt,grpo", "grpo, distill", "hope", "opd")
    on_text = [False, False, True, True, True, False]
    assert [registry.trains_on_text(each) for each in given] == on_text


@pytest.mark.parametrize(
    ("names", "is_final", "allowed"),
    [
        (["none"], False, True),
        (["cpt", "grpo"], False, True),
        (["none", "grpo"], False, False),
        (["none"], True, False),
        (["cpt"], True, True),
        ([], True, True),
    ],
)
def test_what_trains_nothing_stands_alone(names: list[str], is_final: bool, allowed: bool) -> None:
    with contextlib.nullcontext() if allowed else pytest.raises(ValueError, match="none trains no"):
        registry.check_idle("--recovery", names, is_final)


def test_only_one_method_that_knows_it_takes_a_divided_model() -> None:
    assert registry.takes_divided(["cpt"])
    for names in (["none"], ["distill"], ["cpt", "grpo"], []):
        assert not registry.takes_divided(names)
