"""A chat model is compressed on chats: in its own template, and on what the assistant said."""

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from ptl_fast.demo.problems import generate
from support import chat_templates
from support.chat_templates import with_template
from support.files import write_rows
from support.models import DEMO_MODEL, make_model
from support.processes import kill_when
from support.runs import RUN, as_flags, main, without_seconds


@pytest.fixture
def chat_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a run of a tiny chat model on chats of two exchanges."""
    monkeypatch.chdir(tmp_path)
    make_model("llama").save_pretrained("model")
    talks = with_template(AutoTokenizer.from_pretrained(DEMO_MODEL), chat_templates.CHATML)
    talks.save_pretrained("model")
    problems = list(generate(400, 9, "training"))
    rows = []
    for first, second in zip(problems[::2], problems[1::2], strict=True):
        turns = [{"role": "system", "content": "Be brief."}]
        for problem in (first, second):
            turns += [
                {"role": "user", "content": problem["question"]},
                {"role": "assistant", "content": problem["answer"]},
            ]
        rows.append({"messages": turns})
    write_rows(tmp_path / "data.jsonl", *rows[:-8])
    write_rows(tmp_path / "test.jsonl", *rows[-8:])
    files = {"model": "model", "data": "data.jsonl", "eval_tasks": "nll=test.jsonl"}
    small = {"rounds": 1, "recovery_tokens": 6000, "sequence_length": 128, "recovery": "distill"}
    return as_flags({**RUN, **files, **small, "calibration_tokens": 10**6})


def test_a_run_on_answers_says_so_and_goes_on_bit_identical(
    chat_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*chat_run, "--calibrate-on", "answers", "--train-on", "answers"]
    assert main([*flags, "--output", "undisturbed"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "documents are written by the model's own chat template (--template auto)." in said
    assert "statistics count answers (--calibrate-on), training learns answers" in said
    report = Path("undisturbed/report.md").read_text()
    assert "## Text" in report
    assert "training learns answers" in report
    share = re.search(r"(\d+)% of the training tokens are answers", said)
    assert share is not None
    # calibration reads all that the round trains on
    statistics = load_file("undisturbed/round-01/statistics.safetensors")
    assert int(statistics["num_tokens"]) == pytest.approx(6000 * int(share[1]) / 100, rel=0.1)

    again = [*flags, "--output", "run"]
    assert kill_when("run/round-01/recovery/checkpoint-*/complete", again, tmp_path)
    assert main(again) == 0
    names = ["final/model.safetensors", "round-01/statistics.safetensors"]
    for name in names:
        assert Path("undisturbed", name).read_bytes() == Path("run", name).read_bytes(), name
    reports = [json.loads(Path(run, "report.json").read_text()) for run in ("undisturbed", "run")]
    assert without_seconds(reports[0]) == without_seconds(reports[1])
    assert reports[0]["text"] == reports[1]["text"]


def test_another_template_or_other_tokens_are_another_run(
    chat_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*chat_run, "--recovery", "none", "--output", "run"]
    assert main(flags) == 0, capsys.readouterr().err
    dense = json.loads(Path("run/dense.json").read_text())["eval"]["nll"]["nll"]
    for name, value in (
        ("template", "lines"),
        ("calibrate-on", "answers"),
    ):
        capsys.readouterr()
        assert main([*flags, f"--{name}", value]) == 2
        assert f"its --{name} is" in capsys.readouterr().err
    assert main([*flags[:-1], "joined", "--template", "lines"]) == 0
    joined = json.loads(Path("joined/dense.json").read_text())["eval"]["nll"]["nll"]
    assert joined != dense
