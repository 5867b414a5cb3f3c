"""The parts for Python: statistics, a plan, removal; and methods of one's own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import ptl_fast
from ptl_fast.baselines import SCORERS
from ptl_fast.demo.problems import generate
from ptl_fast.recovery.registry import RECOVERIES
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from support.runs import RUN

TEXTS = [f"{each['question']}\n{each['answer']}" for each in generate(20, 3, "training")]
LIGHT = """
import sys, ptl_fast
assert not [each for each in sys.modules if each.split(".")[0] in ("torch", "transformers")]
for name in ptl_fast.__all__:
    assert getattr(ptl_fast, name) is not None, name
"""


def test_names_are_imported_when_they_are_used() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        ptl_fast.nope  # noqa: B018


def test_a_model_is_pruned_in_three_lines_and_loads_again(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    statistics = ptl_fast.collect_statistics(llama, TEXTS, tokenizer, sequence_length=64)
    width = statistics.square_LI.shape[1]
    plan = ptl_fast.make_plan(llama, statistics, keep=0.5, width_multiple=8)
    assert plan.width == width // 2
    ptl_fast.compact_(llama, plan)
    assert capsys.readouterr() == ("", ""), "quiet"
    llama.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer(TEXTS[0]).input_ids])
    torch.testing.assert_close(again(ids).logits, llama.eval()(ids).logits)


def test_token_ids_need_no_tokenizer_and_texts_do(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = [tokenizer(text).input_ids for text in TEXTS]
    by_ids = ptl_fast.collect_statistics(llama, ids, sequence_length=64)
    by_text = ptl_fast.collect_statistics(llama, TEXTS, tokenizer, sequence_length=64)
    assert torch.equal(by_ids.square_LI, by_text.square_LI)
    with pytest.raises(ValueError, match="texts need a tokenizer"):
        ptl_fast.collect_statistics(llama, TEXTS)


def test_plans_without_sense_are_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    statistics = ptl_fast.collect_statistics(llama, TEXTS, tokenizer, sequence_length=64)
    for given, message in (
        ({"keep": 1.0}, r"keep=1.0 of \d+ neurons is"),
        ({"keep": 0.5, "scorer": "randm"}, r"unknown scorer randm; .*did you mean random\?"),
        ({"keep": 0.5, "scorer": "reconstruction"}, "needs more than statistics"),
    ):
        with pytest.raises(ValueError, match=message):
            ptl_fast.make_plan(llama, statistics, **given)


def test_methods_of_ones_own_have_names_of_their_own(
    tiny_run: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in (SCORERS, RECOVERIES):  # taken out again at the end
        monkeypatch.setitem(registry, "mine", None)
    for register in (ptl_fast.register_scorer, ptl_fast.register_recovery):
        with pytest.raises(ValueError, match="is taken by ptl_fast"):
            register("random" if register is ptl_fast.register_scorer else "cpt")(print)
    asked: list[int] = []

    @ptl_fast.register_scorer("mine")
    def score(evidence: ptl_fast.Evidence) -> torch.Tensor:
        num_layers, width = evidence.statistics.square_LI.shape
        return -torch.arange(width).expand(num_layers, -1).double()

    @ptl_fast.register_recovery("mine")
    def train(model: PreTrainedModel, task: RecoveryTask) -> RecoveryResult | None:
        asked.append(task.num_tokens)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(0.5)  # type: ignore[union-attr]
        return None

    given = {**tiny_run, **RUN, "rounds": 1, "scorer": "mine", "recovery": "mine"}
    given["undo_recovery"] = False
    report = ptl_fast.compress(**given, output=tmp_path / "run")
    (record,) = report["rounds"]
    assert asked == [record["recovery_tokens"]]
    assert record["eval"] != record["eval_pruned"]
