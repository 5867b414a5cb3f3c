"""What was saved is what was measured: a fault on the way ends the run before there is a result,
and without the fault the same command ends as an undisturbed run does.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel

from ptl_fast import compress
from ptl_fast.baselines import flap
from ptl_fast.config.model import ModelSettings
from ptl_fast.data import readers
from ptl_fast.data.documents import Form
from ptl_fast.evaluation.nll import NLL_MAX_LENGTH, answer_nll
from ptl_fast.model import loading
from ptl_fast.pruning import compact
from support.models import DEMO_MODEL, make_model
from support.runs import RUN, Killed, as_flags, main, without_seconds

ONE_ROUND = {**RUN, "rounds": 1, "recovery": "none"}
# without the pattern: with it the wrong lists would often be the right ones
LAYERS = {
    **ONE_ROUND,
    "keep": 1.0,
    "drop_layers": 1,
    "layers_per_round": 1,
    "keep_attention_pattern": False,
}
FLAP = {**ONE_ROUND, "scorer": "flap", "compensate": False}


def wrong_list(patch: pytest.MonkeyPatch) -> None:
    """The lists of a config lose their last entries, whichever layers go."""
    resize = compact.resize_config

    def first(config: Any, width: Any, kept: Any, num_experts: Any) -> None:
        resize(config, width, list(range(len(kept))), num_experts)

    patch.setattr(compact, "resize_config", first)


def dropped_bias(patch: pytest.MonkeyPatch) -> None:
    """The down projections get a bias, and the model no type that has one."""
    patch.setattr(flap, "_become_biased_", lambda model: None)


def in_the_file(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Any:
    def plant(patch: pytest.MonkeyPatch) -> None:
        save = PreTrainedModel.save_pretrained

        def saved(self: PreTrainedModel, folder: Path, **kwargs: Any) -> None:
            save(self, folder, **kwargs)
            tensors = load_file(folder / "model.safetensors")
            edit(tensors)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})

        patch.setattr(PreTrainedModel, "save_pretrained", saved)

    return plant


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("family", "options", "plant", "named"),
    [
        pytest.param(
            "gemma2",
            LAYERS,
            wrong_list,
            "and was measured with sliding_attention",
            id="per-layer-list",
        ),
        pytest.param(
            "llama", FLAP, dropped_bias, "model.layers.0.mlp.down_proj.bias has no place", id="bias"
        ),
        pytest.param(
            "llama",
            ONE_ROUND,
            in_the_file(lambda tensors: tensors.update({UP: tensors[UP].roll(1, 0)})),
            f"{UP} has other values",
            id="shifted-row",
        ),
        pytest.param(
            "llama",
            ONE_ROUND,
            in_the_file(lambda tensors: tensors.pop(UP)),
            f"{UP} is missing",
            id="missing",
        ),
        pytest.param(
            "llama",
            ONE_ROUND,
            in_the_file(lambda tensors: tensors.update({UP: tensors[UP].half()})),
            f"{UP} is saved as float16, and should be float32",
            id="type",
        ),
    ],
)
def test_a_planted_fault_ends_the_run_before_there_is_a_result(
    family: str,
    options: dict[str, Any],
    plant: Callable[[pytest.MonkeyPatch], None],
    named: str,
    tiny_run: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_model(family).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(tmp_path / "model")
    settings = {**tiny_run, **options, "model": str(tmp_path / "model")}
    flags = [*as_flags(settings), "--output", str(tmp_path / "run")]
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        assert main(flags) == 2
    told = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert told.startswith(("error: the model that was saved, ", "error: the pruned model is not"))
    assert named in told
    assert not (tmp_path / "run" / "final").exists()
    assert not (tmp_path / "run" / "round-01" / "model").exists()
    assert main(flags) == 0
    undisturbed = compress(**settings, output=tmp_path / "undisturbed")
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert without_seconds(found) == without_seconds(undisturbed)
    for name in ("config.json", "model.safetensors"):
        runs = [tmp_path / run / "final" / name for run in ("run", "undisturbed")]
        assert runs[0].read_bytes() == runs[1].read_bytes()
    assert not (tmp_path / "run" / "round-01" / "model.tmp").exists()


@pytest.fixture
def half(tiny_run: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same inputs with a bf16 model."""
    make_model("llama").bfloat16().save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(tmp_path / "half")
    return {**tiny_run, "model": str(tmp_path / "half")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, torch.bfloat16, id="originals"),
        pytest.param({"save_dtype": "float32"}, torch.float32, id="asked-for"),
        pytest.param({"recovery": "none"}, torch.bfloat16, id="untrained"),
    ],
)
def test_the_result_has_the_originals_type_and_is_what_was_measured(
    options: dict[str, Any], expected: torch.dtype, half: dict[str, str], tmp_path: Path
) -> None:
    settings = {**half, **RUN, "rounds": 1, **options}
    report = compress(**settings, output=tmp_path / "run")
    final = tmp_path / "run" / "final"
    tensors = load_file(final / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {expected}
    config = json.loads((final / "config.json").read_text())
    assert config["dtype"] == str(expected).removeprefix("torch.")
    model = loading.load_model(str(final), ModelSettings(), "cpu")
    assert model.dtype == torch.float32
    held_out = readers.load_documents(half["eval_tasks"].removeprefix("nll="), Form(), None)
    tokenizer = AutoTokenizer.from_pretrained(final)
    measured = answer_nll(model, tokenizer, held_out, 16, NLL_MAX_LENGTH)
    assert report["final"]["eval"]["nll"] == measured


def test_a_killed_run_of_a_bf16_model_ends_bit_identical(
    half: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its rounds, where the weights in memory are wider than those on disk."""
    settings = {**half, **RUN, "rounds": 2}
    undisturbed = compress(**settings, output=tmp_path / "undisturbed")
    from ptl_fast.run import prune_step

    plan = prune_step.plan_round

    def dies(context: Any, step: Any) -> dict[str, Any]:
        if step.number == 2:
            raise Killed
        return plan(context, step)

    with monkeypatch.context() as patch:
        patch.setattr(prune_step, "plan_round", dies)
        with pytest.raises(Killed):
            compress(**settings, output=tmp_path / "run")
    report = compress(**settings, output=tmp_path / "run")
    assert without_seconds(report) == without_seconds(undisturbed)
    runs = [tmp_path / run / "final" / "model.safetensors" for run in ("run", "undisturbed")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


def test_a_run_of_an_older_version_goes_on_in_the_type_of_its_computation(
    half: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its state.json knows no other type."""
    settings = {**half, **ONE_ROUND, "output": tmp_path / "run"}
    compress(**settings, save_dtype="computed")
    state = tmp_path / "run" / "state.json"
    begun = json.loads(state.read_text())
    del begun["config"]["save_dtype"]
    state.write_text(json.dumps(begun))
    capsys.readouterr()
    compress(**settings)
    assert "goes on as it began: --save-dtype computed" in capsys.readouterr().out
    tensors = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
