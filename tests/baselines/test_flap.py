"""FLAP's bias: what it is, that it reloads, and runs that leave it."""

import copy
import gc
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ptl_fast import compress, planned_sizes
from ptl_fast.baselines import flap
from ptl_fast.data import packing
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.pruning.compact import compact_
from ptl_fast.recovery import checkpoints
from ptl_fast.scoring.statistics import collect
from support.models import NUM_LAYERS, WIDTH, make_model
from support.plans import neuron_plan, random_kept
from support.runs import RUN, as_flags, kill_at, main, without_seconds

# FLAP as its paper runs it, and a recovery afterwards
FLAP = {**RUN, "rounds": 1, "scorer": "flap", "compensate": False}
MEANS = torch.tensor([[2.0, -1.0, 5.0]], dtype=torch.float64)


def tiny(**settings: object) -> PreTrainedModel:
    """One layer of three neurons with the columns (3, 4), (1, 0) and (0, 2)."""
    sizes = {"num_hidden_layers": 1, "intermediate_size": 3, "hidden_size": 2}
    heads = {"num_attention_heads": 1, "head_dim": 2}
    model = make_model("llama", **sizes, **heads, **settings)
    model.model.layers[0].mlp.down_proj.weight.data = torch.tensor(
        [[3.0, 1.0, 0.0], [4.0, 0.0, 2.0]]
    )
    return model


def test_bias_by_hand() -> None:
    """Neurons 0 and 2 go, with means 2 and 5: 2 (3, 4) + 5 (0, 2). A later round adds to it."""
    model, family = tiny(), find_family(tiny())
    flap.add_bias_(model, family, MEANS, [[1]])
    bias = model.model.layers[0].mlp.down_proj.bias
    assert bias.tolist() == [6.0, 18.0]
    flap.add_bias_(model, family, MEANS, [[0, 2]])
    assert bias.tolist() == [5.0, 18.0]
    flap.add_bias_(model, family, None, None)
    assert bias.tolist() == [5.0, 18.0]
    assert type(model).__name__ == "FlapLlamaForCausalLM"


def test_a_type_that_has_biases_stays_an_ordinary_checkpoint(tmp_path: Path) -> None:
    model = tiny(mlp_bias=True)
    before = model.model.layers[0].mlp.down_proj.bias.detach().clone()
    flap.add_bias_(model, find_family(model), MEANS, [[1]])
    after = model.model.layers[0].mlp.down_proj.bias.detach()
    torch.testing.assert_close(after - before, torch.tensor([6.0, 18.0]))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_pruned_model_gives_the_mean_of_what_went(any_model: PreTrainedModel) -> None:
    """In every family, also once saved and loaded: on the calibration tokens the mean output of the
    first FFN is what it was, and what the model computes is the dense model with the removed
    activations replaced by their means.
    """
    model, family, kept = any_model, find_family(any_model), random_kept(20)
    documents = [[5, 9, 2, 77, 14, 90], [8, 3, 300]]
    taken = collect(model, family, packing.pack(documents, 9, 1), 1, extra=frozenset({"sums"}))
    means_LI = taken.sum_LI / taken.num_tokens
    dense = copy.deepcopy(model)
    for layer, ffn in enumerate(feed_forwards(dense, family).values()):
        gone = [each for each in range(WIDTH) if each not in kept[layer]]

        def put_means(module: torch.nn.Module, args: tuple, layer: int = layer, gone=gone) -> tuple:  # type: ignore[no-untyped-def]
            replaced = args[0].clone()
            replaced[..., gone] = means_LI[layer, gone].to(replaced.dtype)
            return (replaced,)

        ffn.down.register_forward_pre_hook(put_means)
    flap.add_bias_(model, family, means_LI, kept)
    compact_(model, family, neuron_plan(kept))
    ids = torch.tensor([documents[0]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-4, atol=1e-5)
    assert find_family(model) == family


@pytest.mark.parametrize("name", flap.FLAP_TYPES)
def test_saved_models_reload(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    family = find_family(model)
    flap.add_bias_(model, family, torch.ones(NUM_LAYERS, WIDTH), random_kept(24))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.model_type == f"flap_{name}"
    ids = torch.tensor([[5, 9, 2, 77]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    # the same class again, and no second bias on what was pruned before
    flap.add_bias_(loaded, find_family(loaded), None, None)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_whole_run_resumes_in_its_recovery_to_the_same_result(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """Killed during training: the biases come back from the checkpoint, and the report's sizes are
    the saved model's.
    """
    expected = compress(**tiny_run, **FLAP, output=tmp_path / "undisturbed")
    flags = as_flags({**tiny_run, **FLAP, "output": tmp_path / "run"})
    kill_at("on_save", checkpoints.Checkpoints, 2, flags)
    gc.collect()
    resumed = compress(**tiny_run, **FLAP, output=tmp_path / "run")
    assert without_seconds(resumed) == without_seconds(expected)
    for name in ("final/model.safetensors", "final/config.json", "round-01/plan.json"):
        assert (tmp_path / "run" / name).read_bytes() == (
            tmp_path / "undisturbed" / name
        ).read_bytes(), name
    final = tmp_path / "run" / "final"
    model = AutoModelForCausalLM.from_pretrained(final)
    assert resumed["final"]["num_parameters"] == model.num_parameters()
    assert model.model.layers[0].mlp.down_proj.bias.abs().sum() > 0
    assert AutoTokenizer.from_pretrained(final).eos_token is not None
    for text in ((tmp_path / "run" / "report.md").read_text(), (final / "README.md").read_text()):
        assert "import ptl_fast.flap" in text


def test_rounds_and_layers_keep_what_earlier_rounds_left(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """Layers before neurons: no bias until neurons go. Scores of the first round only; moments
    kept. A resumed run ends the same.
    """
    settings = {
        **FLAP,
        "rounds": 2,
        "drop_layers": 1,
        "order": "layers-then-neurons",
        "score_once": True,
        "keep_optimizer_state": True,
        "keep_rounds": 3,
        "recovery_tokens": 6000,
    }
    report = compress(**tiny_run, **settings, output=tmp_path / "run")
    for number, record in enumerate(report["rounds"], start=1):
        folder = tmp_path / "run" / f"round-0{number}"
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        assert record["num_parameters"] == model.num_parameters()
        assert (model.config.model_type == "flap_llama") is (number > 1)
        assert json.loads((folder / "plan.json").read_text())["down_bias"] is (number > 1)
    # the result goes on as the model of another run
    again = {**tiny_run, **RUN, "rounds": 1, "recovery": "none"}
    again["model"] = str(tmp_path / "run" / "final")
    second = compress(**again, output=tmp_path / "again")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "again" / "final")
    assert second["final"]["num_parameters"] == model.num_parameters()
    assert "import ptl_fast.flap" in (tmp_path / "again" / "report.md").read_text()


def test_what_does_not_fit_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--preset", "demo", "--dry-run", "--scorer", "flap"]) == 2
    assert "add --compensate false, or use --scorer fluctuation" in capsys.readouterr().err
    make_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "granite"}))
    flags = ["--dry-run", "--model", str(tmp_path), "--data", "ptl-demo", "--scorer", "flap"]
    flags += ["--sequence-length", "128", "--width-multiple", "8", "--compensate", "false"]
    assert main(flags) == 2
    assert "not possible for model_type granite" in capsys.readouterr().err


def test_planned_sizes_count_the_biases() -> None:
    """4 layers of 128 more parameters than without, once neurons go, and no more FLOPs."""
    flap_sizes, plain = (
        planned_sizes(preset="demo", scorer=scorer, compensate=False, rounds=2, keep=0.5)
        for scorer in ("flap", "fluctuation")
    )
    more = [
        one["num_parameters"] - other["num_parameters"]
        for one, other in zip(flap_sizes, plain, strict=True)
    ]
    assert more == [0, 4 * 128, 4 * 128]
    assert [one["flops_per_token"] for one in flap_sizes] == [
        one["flops_per_token"] for one in plain
    ]
