"""Checks before any work: unknown methods, tasks and teachers end in a line of the choices."""

import importlib.util
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ptl_fast import compress, planned_sizes
from ptl_fast.evaluation import sandbox
from ptl_fast.run import checks
from support.files import write_rows
from support.mixtures import make_mixture
from support.models import DEMO_MODEL, make_model
from support.runs import DEMO, main
from support.settings import check, settings

DISTILL = {**DEMO, "recovery": "distill", "recovery_growth": 1.0}


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
        "--preset",
        "demo",
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


def test_traces_need_to_know_when_there_are_enough() -> None:
    with pytest.raises(ValueError, match="--recovery-tokens, or how many to ask with --traces-num"):
        check(settings(traces=True))
    check(settings(traces=True, recovery_tokens=9000))
    check(settings(traces=True, traces_number=50))
    check(settings(traces=True, recovery="none"))  # --calibration-tokens


def test_traces_longer_than_the_model_are_refused(tmp_path: Path) -> None:
    too_long = {**DEMO, "traces": True, "traces_max_tokens": 512, "output": tmp_path / "run"}
    with pytest.raises(ValueError, match="--traces-max-tokens: 513 tokens are more than the 512"):
        compress(**too_long)


def test_unknown_names_and_missing_vllm_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**DEMO, "rounds": 1, "output": tmp_path / "run"}
    with pytest.raises(
        ValueError, match="unknown --recovery hope; choose none, cpt, distill, opd, grpo"
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
    find = importlib.util.find_spec
    missing = lambda name, *given: None if name == "vllm" else find(name, *given)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", missing)
    with pytest.raises(ValueError, match="vllm is not installed"):
        compress(**given, recovery="grpo", rollouts="vllm")
    assert not (tmp_path / "run").exists()


def test_token_weights_that_change_nothing_are_refused(tmp_path: Path) -> None:
    weights = {"token_weights": "divergence", "scorer": "magnitude", "compensate": False}
    with pytest.raises(
        ValueError, match=r"changes nothing with --scorer magnitude .* --compensate"
    ):
        compress(**{**DEMO, "rounds": 1, **weights}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_scorer_of_whole_samples_has_no_answers() -> None:
    reference = {"scorer": "reference", "protect": "x"}
    check(settings(**reference))
    with pytest.raises(ValueError, match="--scorer reference reads whole samples, so --calibrate"):
        check(settings(**reference, calibrate_on="answers"))


def test_teachers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError,
        match="other has another vocabulary than --model: 1 tokens differ, such as '<new>'",
    ):
        compress(**DISTILL, teacher=str(tmp_path / "other"), output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"--teacher .*nowhere cannot be loaded: no such folder"):
        compress(**DISTILL, teacher=str(tmp_path / "nowhere"), output=str(tmp_path / "run"))
    few = make_model("llama", vocab_size=200)
    few.save_pretrained(tmp_path / "few")
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(tmp_path / "few")
    with pytest.raises(
        ValueError,
        match=r"--teacher .*few: its tokenizer gives ids beyond the model's 200 embeddings",
    ):
        compress(**DISTILL, teacher=str(tmp_path / "few"), output=str(tmp_path / "run"))
    weights = tmp_path / "few" / "model.safetensors"
    make_model("llama").save_pretrained(tmp_path / "few")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"--teacher .*few: model.safetensors is damaged"):
        compress(**DISTILL, teacher=str(tmp_path / "few"), output=str(tmp_path / "run"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"--teacher .*few has no weights"):
        compress(**DISTILL, teacher=str(tmp_path / "few"), output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distill_weight": 0.0}, "--distill-weight 0.0 is outside"),
        ({"distill_temperature": 0.0}, "--distill-temperature 0.0 must be"),
        ({"distill_top_k": 0}, "--distill-top-k 0 must be at least 1"),
        ({"liger": True}, "--liger never stores the logits"),
        (
            {"recovery": "cpt", "teacher": "x"},
            "--teacher is for .* distill or opd, and --recovery is cpt",
        ),
    ],
)
def test_distillation_without_sense_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(settings(**{"recovery": "distill", **values}))


def test_generated_code_is_not_executed_without_a_filter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sandbox, "missing_protections", lambda: ["landlock", "seccomp"])
    with pytest.raises(ValueError, match="needs seccomp filters"):
        checks._check_sandbox()
    monkeypatch.setattr(sandbox, "missing_protections", lambda: ["namespaces", "signal scope"])
    checks._check_sandbox()
    assert "this system gives no namespaces, no signal scope: see" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"scorer": "llm-pruner", "compensate": False},
            "llm-pruner does not know experts",
        ),
        ({"compensate_inputs": "pruned"}, "other inputs would go to other experts"),
        ({"score_once": True, "drop_layers": 1}, "--score-once and --drop-layers"),
        ({"score_once": True, "keep_experts": 0.5}, "--score-once and --keep-experts"),
    ],
)
def test_what_is_not_there_for_experts_is_refused_before_work(given: dict, message: str) -> None:
    config = settings(model="it", data="data", **given)
    with pytest.raises(ValueError, match=message):
        checks.check_support(config, make_mixture("mixtral").config)


def saved_mixture(folder: Path, width: int, family: str = "mixtral") -> str:
    """A bf16 mixture's folder; its weights are not looked at."""
    config = make_mixture(family, intermediate_size=width).config
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    return str(folder)


ON_CPU: dict = {"data": "data", "device": "cpu", "sequence_length": 64}
NO_WIDTH = "give a --width-multiple that is a multiple of 8"
AS_IT_IS = "the original cannot run in it either; give --dtype float32 --save-dtype float32"


@pytest.mark.parametrize(
    ("width", "given", "message"),
    [
        pytest.param(24, {"keep": 0.5}, NO_WIDTH, id="result"),
        # 20 of 32 in the first round
        pytest.param(32, {"keep": 0.25, "rounds": 2, "steps": "equal"}, NO_WIDTH, id="on-the-way"),
        pytest.param(32, {"keep": 0.5, "threshold": 0.1}, "experts may be", id="scores-decide"),
        pytest.param(12, {"keep": 1.0, "keep_experts": 0.5}, AS_IT_IS, id="original"),
        pytest.param(6, {"keep": 1.0, "drop_layers": 1}, "either; give another model", id="never"),
    ],
)
def test_experts_that_could_not_run_in_their_type_are_refused_before_work(
    width: int, given: dict, message: str, tmp_path: Path
) -> None:
    rounds = None if "drop_layers" in given else 1
    given = {"width_multiple": 4, "rounds": rounds, **given}
    with pytest.raises(ValueError, match=message):
        planned_sizes(model=saved_mixture(tmp_path, width), **ON_CPU, **given)


@pytest.mark.parametrize(
    ("width", "given"),
    [
        pytest.param(24, {"width_multiple": 8, "keep": 0.67}, id="aligned"),
        # a multiple that is none of 8, and a width that is
        pytest.param(32, {"width_multiple": 4, "keep": 0.5, "rounds": 1}, id="width-alone"),
        pytest.param(24, {"width_multiple": 4, "keep": 0.5, "save_dtype": "float32"}, id="float32"),
        # on a CPU the original runs in float32, and it is no round's
        pytest.param(12, {"width_multiple": 8, "keep": 0.67, "rounds": 1}, id="from-an-odd-one"),
    ],
)
def test_experts_that_run_are_not_refused(width: int, given: dict, tmp_path: Path) -> None:
    assert len(planned_sizes(model=saved_mixture(tmp_path, width), **ON_CPU, **given)) > 1


def test_experts_that_are_no_grouped_product_may_have_any_width(tmp_path: Path) -> None:
    name = saved_mixture(tmp_path, 24, "llama4_text")
    sizes = planned_sizes(model=name, **ON_CPU, keep=0.5, rounds=1, width_multiple=4)
    assert sizes[-1]["width"] == 12
