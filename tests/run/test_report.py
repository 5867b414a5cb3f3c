"""The report says what happened, and what to do where a reward never came."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from benchmarks.methods.reasoning_rehearsal import TEMPLATE
from ptl_fast import compress
from ptl_fast.run import report
from support.chat_templates import with_template
from support.chats import gsm8k_file
from support.models import DEMO_MODEL
from support.runs import DEMO, RUN


def test_report_has_the_promised_form(tiny_run: dict[str, str], tmp_path: Path) -> None:
    compress(**tiny_run, **{**RUN, "rounds": 2, "recovery": "none"}, output=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    names = {"environment", "config", "dense", "rounds", "sizes", "final", "text", "bytes_on_disk"}
    assert set(report) == names
    size = {"num_parameters", "num_layers", "width", "flops_per_token", "eval"}
    assert set(report["dense"]) == set(report["final"]) == size
    assert [record["round"] for record in report["rounds"]] == [1, 2]
    for record in report["rounds"]:
        assert size | {"round", "kind", "seconds"} <= set(record)
        assert set(record["seconds"]) == {"calibrate", "compact", "recover", "evaluate"}
    assert report["final"]["eval"] == report["rounds"][-1]["eval"]
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| 2 neurons |" in text
    assert "neurons a layer" in text
    for record, plan in (
        (record, json.loads((tmp_path / f"run/round-0{record['round']}/plan.json").read_text()))
        for record in report["rounds"]
    ):
        scores = load_file(tmp_path / f"run/round-0{record['round']}/statistics.safetensors")[
            "scores"
        ]
        kept = torch.tensor(plan["kept_neurons"])
        went = torch.ones_like(scores, dtype=torch.bool).scatter_(1, kept, False)
        highest = [float(row[gone].max()) for row, gone in zip(scores, went, strict=True)]
        assert record["highest_removed"] == pytest.approx(highest, rel=1e-5)
        assert record["lowest_kept"] == pytest.approx(
            scores.gather(1, kept).amin(1).tolist(), rel=1e-5
        )
        assert (
            max(
                a - b for a, b in zip(record["highest_removed"], record["lowest_kept"], strict=True)
            )
            <= 0
        )
    for file in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "README.md",
    ):
        assert (tmp_path / "run" / "final" / file).is_file(), file
    modes = {file.stat().st_mode for file in (tmp_path / "run" / "final").iterdir()}
    assert len(modes) == 1, "weights must be as readable as the rest"


def test_lines_for_dropped_layers() -> None:
    nothing = {"into": None, "ridge": None, "made_up_for": None, "reason": None}
    folded = [
        {**nothing, "layers": [0], "reason": "no layer stays before it"},
        {**nothing, "layers": [3, 4, 5], "into": 2, "ridge": 0.01, "made_up_for": 0.7349},
    ]
    assert report.folded_lines(4, folded) == [
        "Round 4: layer 0 was not compensated: no layer stays before it.",
        "Round 4: layers 3 to 5 were folded into layer 2's down projection, which makes up for"
        " 73.5% of what went (squared norm, on tokens set aside; ridge 0.01).",
    ]


def test_answers_to_chats_have_a_table_of_their_own_and_can_be_gated(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    AutoModelForCausalLM.from_pretrained(DEMO_MODEL).save_pretrained(tmp_path / "model")
    with_template(tokenizer, TEMPLATE, adds_tokens=False).save_pretrained(tmp_path / "model")
    file = gsm8k_file(tmp_path / "test.jsonl", 5)
    settings = {
        **DEMO,
        "preset": None,
        "model": tmp_path / "model",
        "data": "ptl-demo",
        "rounds": 1,
        "keep": 0.75,
        "recovery": "none",
        "eval_tasks": f"nll,asked:ptl_gsm8k_chat={file}",
        "eval_samples": 2,
        "output": tmp_path / "run",
    }
    with pytest.raises(ValueError, match="asked has no metric seconds_per_answer; choose asked:pa"):
        compress(**settings, gate="asked:seconds_per_answer", max_drop=1.0)
    with pytest.raises(ValueError, match=r"asked: its longest prompt .* lower --eval-max-tokens"):
        compress(**settings, eval_max_tokens=500)
    content = compress(**settings, eval_max_tokens=12, gate="asked:pass@1", max_drop=1.0)
    measured = content["final"]["eval"]["asked"]
    assert set(measured) == {
        "pass@1",
        "pass@2",
        "response_tokens",
        "cut_off",
        "repeating",
        "seconds_per_answer",
    }
    assert 0 < measured["response_tokens"] <= 12
    assert [made["action"] for made in content["decisions"]] == ["pass"]
    text = (tmp_path / "run" / "report.md").read_text()
    evaluation, costs = text.partition("## What an answer costs")[::2]
    assert "asked pass@2" in evaluation
    assert "response_tokens" not in evaluation
    assert [line.split()[1] for line in costs.splitlines()[4:7]] == ["asked"] * 3
    examples = content["examples"]["asked"]
    assert examples["compared"] == 4
    assert list(examples["right"]) == ["dense", "round 1 pruned"], "recovery none: one model"
    assert sum(examples["changes"].values()) == 4
    assert f"asked, 4 problems: {examples['changes']['became wrong']} became wrong" in text
    assert "nll" not in content["examples"], "a loss asks for no answers"
    again = compress(**settings, eval_max_tokens=12, gate="asked:pass@1", max_drop=1.0)
    assert again["examples"] == content["examples"]
