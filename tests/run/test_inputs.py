"""What a run reads: the settings of the data reach it, and each round has problems of its own."""

import copy
import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast import compress
from ptl_fast.demo.problems import generate
from ptl_fast.recovery import registry
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from ptl_fast.run import inputs
from support.recovery import with_training
from support.runs import DEMO, SHORT, main
from support.settings import settings


def test_data_settings_reach_the_run_and_belong_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two weighted sources, named columns and an own template; another template does not continue
    the run.
    """
    monkeypatch.chdir(tmp_path)
    problems = generate(300, 9, "training")
    rows = ({"frage": problem["question"], "antwort": problem["answer"]} for problem in problems)
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("b.jsonl").write_text(
        "".join(
            json.dumps({"antwort": f"{row} = {row}", "frage": "Same?"}) + "\n" for row in range(500)
        )
    )
    Path("c.txt").write_text("\n\n".join(f"{row} + 0 = {row}" for row in range(100)))
    flags = (
        "--model ptl-demo --data a.jsonl@3,b.jsonl@1 --question-column frage --answer-column"
        " antwort --protect c.txt --rounds 1"
    )
    flags += (
        " --keep 0.75 --width-multiple 32 --recovery-tokens 3000 --sequence-length 128"
        " --calibration-tokens 500 --eval-limit 8"
    )
    flags += " --global-batch 8 --micro-batch 8 --device cpu --output run"
    assert main([*flags.split(), "--template", r"Q {question}\nA {answer}"]) == 0, (
        capsys.readouterr().err
    )
    report = json.loads(Path("run/report.json").read_text())
    assert report["final"]["eval"]["nll"]["nll"] > 0
    assert main([*flags.split(), "--template", "paper"]) == 2
    assert "template" in capsys.readouterr().err


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
        **DEMO,
        rounds=2,
        recovery="grpo",
        final_recovery="grpo",
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


def test_what_no_round_could_learn_from_is_refused_before_work_begins(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = {**DEMO, "rounds": 1, "recovery": "grpo", "output": tmp_path / "run"}
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


def test_an_own_deepspeed_file_is_an_input_and_a_shipped_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    found = []
    for content in ("{}", '{"zero_optimization": {"stage": 2}}'):
        file.write_text(content)
        config = settings(model="ptl-demo", deepspeed=str(file))
        found.append(inputs._files_fingerprint(config, [])["deepspeed"])
    assert found[0] != found[1]
    shipped = settings(model="ptl-demo", deepspeed="zero2")
    assert "deepspeed" not in inputs._files_fingerprint(shipped, [])
