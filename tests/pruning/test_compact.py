"""A compacted model is the original with the removed parts masked, and an ordinary checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ptl_fast.model.families import decoder_layers, feed_forwards, find_family
from ptl_fast.pruning.compact import compact_
from ptl_fast.pruning.plan import PruningPlan
from support.models import FAMILIES, NUM_LAYERS, WIDTH, make_model
from support.plans import layer_plan, neuron_plan, random_kept

TOLERANCE = 2e-5  # float32 logits of order 1; the sums run over fewer terms, in another order


def masked_logits(
    model: PreTrainedModel, kept: list[list[int]], input_ids: torch.Tensor
) -> torch.Tensor:
    """Logits of the uncompacted model with the removed neurons' activations set to zero."""
    handles = []
    for feed_forward, indices in zip(
        feed_forwards(model, find_family(model)).values(), kept, strict=True
    ):
        mask = torch.zeros(WIDTH)
        mask[indices] = 1
        handles.append(
            feed_forward.down.register_forward_pre_hook(
                lambda module, args, mask=mask: (args[0] * mask,)
            )
        )
    with torch.inference_mode():
        logits = model(input_ids).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("width", [1, 17, 32, WIDTH - 1])
def test_compacted_model_equals_masked_model(
    any_model: PreTrainedModel, input_ids: torch.Tensor, width: int
) -> None:
    kept = random_kept(width)
    with torch.inference_mode():
        dense = any_model(input_ids).logits
    expected = masked_logits(any_model, kept, input_ids)
    compact_(any_model, find_family(any_model), neuron_plan(kept))
    with torch.inference_mode():
        torch.testing.assert_close(
            any_model(input_ids).logits, expected, atol=TOLERANCE, rtol=TOLERANCE
        )
    assert (dense - expected).abs().max() > 100 * TOLERANCE, (
        "the mask must matter, or this test could not fail"
    )


def test_biases_are_compacted_too(input_ids: torch.Tensor) -> None:
    model, kept = make_model("llama", mlp_bias=True), random_kept(20)
    expected = masked_logits(model, kept, input_ids)
    compact_(model, find_family(model), neuron_plan(kept))
    with torch.inference_mode():
        torch.testing.assert_close(
            model(input_ids).logits, expected, atol=TOLERANCE, rtol=TOLERANCE
        )


def skipped_layer_logits(
    model: PreTrainedModel, dropped: list[int], input_ids: torch.Tensor
) -> torch.Tensor:
    """Logits of the uncompacted model whose dropped layers return their input."""
    handles = []
    for index in dropped:
        layer = decoder_layers(model, find_family(model))[index]
        handles.append(
            layer.register_forward_hook(
                lambda module, args, kwargs, output: args[0] if args else kwargs["hidden_states"],
                with_kwargs=True,
            )
        )
    with torch.inference_mode():
        logits = model(input_ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropped", [[0], [1, 3], [0, 1, 4], [1, 2, 3, 4]], ids=str)
def test_dropped_layers_act_as_skipped_and_reload(
    family: str, dropped: list[int], input_ids: torch.Tensor, tmp_path: Path
) -> None:
    """Also after an odd number of layers, where an alternating attention pattern would shift."""
    model = make_model(family)
    expected = skipped_layer_logits(model, dropped, input_ids)
    compact_(model, find_family(model), layer_plan(dropped))
    with torch.inference_mode():
        torch.testing.assert_close(
            model(input_ids).logits, expected, atol=TOLERANCE, rtol=TOLERANCE
        )
    assert [
        layer.self_attn.layer_idx for layer in decoder_layers(model, find_family(model))
    ] == list(range(NUM_LAYERS - len(dropped)))
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(
            reloaded(input_ids).logits, expected, atol=TOLERANCE, rtol=TOLERANCE
        )
        assert torch.equal(
            reloaded.generate(input_ids, max_new_tokens=12, do_sample=False),
            reloaded.generate(input_ids, max_new_tokens=12, do_sample=False, use_cache=False),
        ), "the KV cache must agree with computing everything again"


LOAD_ELSEWHERE = """
import sys, torch
sys.modules["ptl_fast"] = None  # importing it here would fail
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
stored = torch.load(sys.argv[2])
with torch.inference_mode():
    assert torch.equal(model(stored["input_ids"]).logits, stored["logits"])
num_tokens = model.generate(stored["input_ids"], max_new_tokens=5).shape[1]
print(num_tokens, model.config.num_hidden_layers)
"""


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_saved_model_loads_without_ptl_fast(
    family: str, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    model = make_model(family)
    compact_(model, find_family(model), neuron_plan(random_kept(24)))
    compact_(
        model,
        find_family(model),
        PruningPlan(
            round=2,
            kind="layers",
            scorer="test",
            width=24,
            num_layers=4,
            kept_neurons=None,
            dropped_layers=[2],
            num_rescued=0,
            layer_scores=None,
        ),
    )
    model.save_pretrained(tmp_path / "model")
    with torch.inference_mode():
        torch.save(
            {"input_ids": input_ids, "logits": model(input_ids).logits}, tmp_path / "expected.pt"
        )
    result = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, tmp_path / "model", tmp_path / "expected.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(input_ids.shape[1] + 5), "4"]


def test_per_layer_lists_of_the_config_follow_the_kept_layers() -> None:
    model = make_model("gemma2")
    before = list(model.config.layer_types)
    compact_(model, find_family(model), layer_plan([1]))
    assert model.config.layer_types == [before[index] for index in (0, 2, 3, 4)]
    assert model.config.num_hidden_layers == 4
