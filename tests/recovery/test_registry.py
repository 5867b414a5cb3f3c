"""Recoveries one after another: what is finished is not run again."""

import copy
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.recovery import registry
from ptl_fast.recovery.grpo import train as train_module
from ptl_fast.recovery.task import RecoveryResult
from support.recovery import Killed, grpo_config, grpo_task, killed_at_step, with_training


def test_killed_reinforcement_ends_bit_identical(
    model: PreTrainedModel, folder: Path, digits: None
) -> None:
    """Also in a sequence, whose finished first part is not run again, and with half the steps run
    by the second process.
    """
    settings = grpo_config(recovery="cpt,grpo", learning_rate=1e-3)
    undisturbed, killed = copy.deepcopy(model), copy.deepcopy(model)
    names, own = settings.recovery.recoveries, grpo_task(settings, folder)
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
