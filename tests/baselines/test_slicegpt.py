"""SliceGPT: rotation alone changes nothing, slicing keeps the principal axes, and the result saves,
loads, trains and resumes.
"""

import contextlib
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ptl_fast import compress
from ptl_fast.baselines.slicegpt import SlicedDecoderLayer, sliced_config
from ptl_fast.baselines.slicing import rotate_and_slice
from ptl_fast.data.packing import PackedTokens
from ptl_fast.model.flops import model_size
from ptl_fast.recovery import checkpoints
from ptl_fast.run.stored import JsonFile
from support.files import write_data
from support.models import DEMO_MODEL, HIDDEN, NUM_LAYERS, make_model
from support.numbers import relative_error
from support.runs import main, without_seconds

# float32 logits of order 1, behind ten blocks of matrices that were multiplied by rotations and
# rounded once.
TOLERANCE = 2e-5
MODELS = [
    pytest.param("llama", {}, id="llama"),
    pytest.param(
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        id="llama-biases-tied",
    ),
    pytest.param("mistral", {}, id="mistral"),
    pytest.param("qwen2", {}, id="qwen2-with-its-biases"),
    pytest.param("qwen3", {}, id="qwen3"),
    pytest.param(
        "gemma2",
        {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.0},
        id="gemma2-capped",
    ),
]


def packed(num_sequences: int = 20, length: int = 24, seed: int = 3) -> PackedTokens:
    """Two documents a row, of 13 tokens and the rest; the last two tokens are padding."""
    input_ids = torch.randint(
        2, 384, (num_sequences, length), generator=torch.Generator().manual_seed(seed)
    )
    position_ids = (torch.arange(length) % 13).repeat(num_sequences, 1)
    position_ids[:, -2:] = 0
    mask = torch.ones(num_sequences, length, dtype=torch.bool)
    mask[:, -2:] = False
    return PackedTokens(input_ids, position_ids, mask)


def sliced(
    model: PreTrainedModel, size: int, tokens: PackedTokens | None = None
) -> PreTrainedModel:
    return rotate_and_slice(model, tokens or packed(), size, 8)[0]


def logits(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids).logits


def confine_(model: Any, num_directions: int) -> None:
    """Make the residual stream lie in a random subspace: what every block adds, and the embeddings,
    are projected on it.
    """
    axes, _ = torch.linalg.qr(
        torch.randn(HIDDEN, num_directions, generator=torch.Generator().manual_seed(5))
    )
    projection = axes @ axes.T
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ projection)
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.copy_(projection @ linear.weight)
                if linear.bias is not None:
                    linear.bias.copy_(projection @ linear.bias)
            if hasattr(
                layer, "post_feedforward_layernorm"
            ):  # its weight must not turn the vectors out of the subspace
                layer.post_attention_layernorm.weight.fill_(0.3)
                layer.post_feedforward_layernorm.weight.fill_(-0.2)


def block_inputs(model: Any, tokens: PackedTokens) -> list[torch.Tensor]:
    """(num_counted_tokens, D) float64 for each block: the stream that enters its norm, in the order
    of computation.
    """
    norms = []
    for layer in model.model.layers:
        if isinstance(layer, SlicedDecoderLayer):
            norms.append(layer.norm)
        else:
            names = ("input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm")
            norms += [getattr(layer, name) for name in names if hasattr(layer, name)][:2]
    inputs: list[torch.Tensor] = []
    handles = [
        norm.register_forward_pre_hook(
            lambda module, args: inputs.append(args[0][tokens.mask].double())
        )
        for norm in norms
    ]
    with torch.inference_mode():
        model.model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs


@pytest.mark.parametrize(("family", "settings"), MODELS)
def test_rotating_without_slicing_leaves_the_logits_unchanged(
    family: str, settings: dict, input_ids: torch.Tensor
) -> None:
    model = make_model(family, **settings)
    expected, embedding = (
        logits(model, input_ids),
        model.get_input_embeddings().weight.detach().clone(),
    )
    rotated = sliced(model, HIDDEN)
    torch.testing.assert_close(logits(rotated, input_ids), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert relative_error(rotated.get_input_embeddings().weight, embedding) > 0.5, (
        "rotated for real"
    )


def test_bfloat16_weights_stay_bfloat16_and_lose_only_roundings(input_ids: torch.Tensor) -> None:
    """Relative 0.03 of the logits: eps is 0.008, and the rotated and the original weights round
    independently in ten blocks.
    """
    model = make_model("gemma2").bfloat16()
    expected = logits(model, input_ids)
    rotated = sliced(model, HIDDEN)
    assert {parameter.dtype for parameter in rotated.parameters()} == {torch.bfloat16}
    assert relative_error(logits(rotated, input_ids), expected) < 0.03


@pytest.mark.parametrize(("family", "settings"), MODELS)
def test_a_stream_in_a_subspace_loses_nothing_when_sliced_to_it(
    family: str, settings: dict, input_ids: torch.Tensor
) -> None:
    """Only so if the kept axes are the subspace, and the norms still divide by the original hidden
    size.
    """
    model = make_model(family, **settings)
    confine_(model, 16)
    expected = logits(model, input_ids)
    small, eigenvalues = rotate_and_slice(model, packed(), 16, 8)
    torch.testing.assert_close(logits(small, input_ids), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert eigenvalues.shape == (2 * NUM_LAYERS, HIDDEN)
    assert eigenvalues[:, 16:].abs().max() < 1e-8 * eigenvalues[:, 0].min()
    assert eigenvalues[:, 15].min() > 1e-4 * eigenvalues[:, 0].max()


def test_slicing_below_the_subspace_changes_the_logits(input_ids: torch.Tensor) -> None:
    model = make_model("llama")
    confine_(model, 16)
    expected = logits(model, input_ids)
    assert (logits(sliced(model, 8), input_ids) - expected).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_unsliced_eigenvalues_are_those_of_the_dense_models_stream(family: str) -> None:
    model, tokens = make_model(family), packed()
    expected = torch.stack(
        [torch.linalg.eigvalsh(stream.T @ stream).flip(0) for stream in block_inputs(model, tokens)]
    )
    _, eigenvalues = rotate_and_slice(model, tokens, HIDDEN, 8)
    torch.testing.assert_close(eigenvalues, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_sliced_stream_stands_in_its_own_principal_axes(family: str) -> None:
    """The covariance of every block's input is the diagonal of the kept eigenvalues: so axes come
    from the already sliced part.
    """
    tokens = packed()
    small, eigenvalues = rotate_and_slice(make_model(family), tokens, 16, 8)
    streams = block_inputs(small, tokens)
    assert len(streams) == 2 * NUM_LAYERS
    for stream, kept in zip(streams, eigenvalues[:, :16], strict=True):
        torch.testing.assert_close(
            stream.T @ stream, kept.diag(), rtol=0, atol=1e-5 * float(kept[0])
        )


def test_padding_and_other_documents_do_not_count() -> None:
    """Other tokens under the padding change no bit; documents packed in one row give what rows of
    their own give.
    """
    tokens = packed()
    other = PackedTokens(tokens.input_ids.clone(), tokens.position_ids, tokens.mask)
    other.input_ids[:, -2:] = 7
    ids, mask = torch.full((40, 13), 7), torch.zeros(40, 13, dtype=torch.bool)
    ids[0::2], mask[0::2] = tokens.input_ids[:, :13], True
    ids[1::2, :9], mask[1::2, :9] = tokens.input_ids[:, 13:22], True
    apart = PackedTokens(ids, torch.arange(13).repeat(40, 1), mask)
    first, second, third = (
        rotate_and_slice(make_model("llama"), corpus, 16, 8)[1] for corpus in (tokens, other, apart)
    )
    assert torch.equal(first, second)
    torch.testing.assert_close(first, third, rtol=1e-4, atol=1e-6 * float(first.max()))


LOAD_ELSEWHERE = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_saved_model_loads_generates_and_is_counted_exactly(
    family: str, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    dense = make_model(family)
    predicted = model_size(sliced_config(dense.config, 24), 21)
    small = sliced(dense, 24)
    small.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(reloaded, input_ids), logits(small, input_ids))
    generated = [
        reloaded.generate(input_ids, max_new_tokens=12, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*generated), "the KV cache must agree with computing everything again"
    assert predicted == model_size(reloaded.config, 21)
    assert predicted["num_parameters"] == reloaded.num_parameters()
    reloaded.set_attn_implementation(
        "eager"
    )  # it computes the full square, so every token sees all 21
    with FlopCounterMode(display=False) as counter:
        logits(reloaded, input_ids[:1])
    assert predicted["flops_per_token"] * 21 == counter.get_total_flops()


def test_number_of_parameters_by_hand() -> None:
    """Hidden 32 to 24, head dimension 8 with 4 heads and 2 KV heads, FFN 48, 384 embeddings, 5
    layers; the last writes 32.
    """
    shortcuts = 9 * 24 * 24 + 24 * 32
    attention = 5 * (24 * 32 + 2 * 24 * 16 + 32 * 24)
    ffn = 5 * 2 * 24 * 48 + 4 * 48 * 24 + 48 * 32
    embedding, norm, head = 384 * 24, 32, 384 * 32
    assert (
        sliced(make_model("llama"), 24).num_parameters()
        == shortcuts + attention + ffn + embedding + norm + head
    )


def test_without_ptl_fast_transformers_refuses_the_folder(tmp_path: Path) -> None:
    sliced(make_model("llama"), 24).save_pretrained(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert (
        "model type `slicegpt_llama` but Transformers does not recognize this architecture"
        in result.stderr
    )


def test_gradient_checkpointing_gives_the_same_gradients(input_ids: torch.Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = sliced(make_model("gemma2"), 24).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids, labels=input_ids, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


RUN = {
    "slice_hidden": 0.25,
    "recovery_tokens": 3000,
    "learning_rate": 1e-3,
    "sequence_length": 128,
    "global_batch": 8,
    "micro_batch": 8,
    "calibration_tokens": 2000,
    "eval_tasks": ["nll", "demo_arithmetic"],
    "eval_limit": 5,
    "checkpoint_minutes": 0,
    "device": "cpu",
}


class Killed(BaseException):
    """As sudden as a signal: nothing in the loop catches it."""


def run_until(written: str, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run, and die as soon as this file is there."""
    write = JsonFile.write

    def write_and_die(self: JsonFile, content: Any) -> None:
        write(self, content)
        if self.path == folder / written:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(JsonFile, "write", write_and_die)
        with contextlib.suppress(Killed):
            compress(**RUN, data=data, output=folder)
    assert (folder / written).is_file()
    assert not (folder / "final").exists()
    gc.collect()  # the folder's lock goes with its owner


def test_run_slices_recovers_and_resumes_bit_identically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    data = write_data(tmp_path / "data.jsonl")
    expected = compress(**RUN, data=data, output=tmp_path / "undisturbed")
    for written in ("round-01/plan.json", "round-01/pruned.json"):
        run_until(written, data, tmp_path / "run", monkeypatch)

    save, num_saves = checkpoints.Checkpoints.on_save, []

    def save_twice(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        num_saves.append(1)
        if len(num_saves) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "on_save", save_twice)
        with contextlib.suppress(Killed):
            compress(**RUN, data=data, output=tmp_path / "run")
    assert list((tmp_path / "run" / "round-01" / "recovery").glob("checkpoint-2/complete")), (
        "recovery goes on from here"
    )
    gc.collect()
    resumed = compress(**RUN, data=data, output=tmp_path / "run")
    assert without_seconds(resumed) == without_seconds(expected)
    for name in (
        "final/model.safetensors",
        "final/config.json",
        "round-01/plan.json",
        "round-01/statistics.safetensors",
    ):
        assert (tmp_path / "run" / name).read_bytes() == (
            tmp_path / "undisturbed" / name
        ).read_bytes(), name
    check_result(tmp_path / "run", resumed)


def check_result(folder: Path, report: dict) -> None:
    """The round is what was asked for, recovery helped, and the sizes in the report are those of
    the saved model.
    """
    (record,), dense = report["rounds"], report["dense"]
    config = json.loads((folder / "final" / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["sliced_hidden_size"]) == (
        "slicegpt_llama",
        128,
        32,
    )
    assert (record["kind"], record["width"], record["num_layers"]) == (
        "hidden",
        dense["width"],
        dense["num_layers"],
    )
    assert (
        dense["eval"]["nll"]["nll"]
        < record["eval"]["nll"]["nll"]
        < record["eval_pruned"]["nll"]["nll"]
    )
    assert record["flops_per_token"] < dense["flops_per_token"]
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    assert record["num_parameters"] == model.num_parameters()
    assert AutoTokenizer.from_pretrained(folder / "final").eos_token is not None
    assert "import ptl_fast.slicegpt" in (folder / "report.md").read_text()
    assert "SliceGPT (arXiv 2401.15024)" in (folder / "final" / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--slice-hidden", "1.5"], "outside (0, 1)"),
        (["--slice-hidden", "0.01"], "rounds to 0, a multiple of 8"),
        (["--slice-hidden", "0.75", "--keep", "0.5"], "does not go with --keep below 1"),
        (["--slice-hidden", "0.75", "--drop-layers", "1"], "does not go with"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_sliced_models_lose_no_layers_and_are_not_sliced_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sliced(make_model("llama"), 24).save_pretrained(tmp_path)
    flags = [
        "--model",
        str(tmp_path),
        "--data",
        "ptl-demo",
        "--dry-run",
        "--sequence-length",
        "128",
    ]
    assert main([*flags, "--keep", "1", "--drop-layers", "1"]) == 2
    assert "the layers of" in capsys.readouterr().err
    assert main([*flags, "--slice-hidden", "0.5"]) == 2
    assert "not possible for model_type slicegpt_llama" in capsys.readouterr().err


def test_dry_run_shows_the_slice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--slice-hidden", "0.75"]) == 0
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.strip().splitlines()
    ]
    dense, tokens = AutoModelForCausalLM.from_pretrained(DEMO_MODEL), packed()
    tokens.input_ids.remainder_(dense.config.vocab_size)
    size = round(0.75 * dense.config.hidden_size)
    assert rows[3][:3] == [
        "1 hidden",
        str(dense.config.intermediate_size),
        str(dense.config.num_hidden_layers),
    ]
    assert rows[3][3] == f"{sliced(dense, size, tokens).num_parameters() / 1e6:.4g}M"
