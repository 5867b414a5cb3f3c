"""A model is the same whatever form its weights are stored in, and none runs code of its own."""

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3Config,
)

from ptl_fast.config.model import ModelSettings
from ptl_fast.model import loading, stored_weights
from support.configs import tiny_config
from support.models import DEMO_MODEL
from support.stored_models import (
    copy_demo,
    lora,
    to_fp8,
    write_adapter,
    write_fp8,
    write_weights,
)

CODE = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}


def weights(name: Path | str, **settings: object) -> dict[str, torch.Tensor]:
    return dict(loading.load_model(str(name), ModelSettings(**settings), "cpu").state_dict())  # type: ignore[arg-type]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_an_fp8_model_is_its_twin_also_when_saved(dtype: str, tmp_path: Path) -> None:
    write_fp8(tmp_path / "fp8", tmp_path / "twin")
    assert_equal(weights(tmp_path / "fp8", dtype=dtype), weights(tmp_path / "twin", dtype=dtype))
    model = loading.load_model(str(tmp_path / "fp8"), ModelSettings(), "cpu")
    model.save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in settings
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert_equal(saved, load_file(tmp_path / "twin" / "model.safetensors"))
    assert model.generation_config.to_dict() == (
        AutoModelForCausalLM.from_pretrained(tmp_path / "twin").generation_config.to_dict()
    )


def test_experts_stored_one_by_one_in_fp8_are_stacked_as_their_twins(tmp_path: Path) -> None:
    """As Qwen3-30B-A3B-FP8's; MXFP4, as gpt-oss's, is in the next test."""
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=3,
        num_experts_per_tok=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "twin")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "fp8")
    stored, plain = {}, {}
    for name, weight in load_file(tmp_path / "twin" / "model.safetensors").items():
        stored[name] = plain[name] = weight
        if "experts" in name:
            stored[name], scale = to_fp8(weight)
            stored[f"{name}_scale_inv"] = scale
            factor = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            rows, columns = weight.shape
            plain[name] = stored[name].float() * factor[:rows, :columns]
    assert any("experts.2.down_proj" in name for name in stored)
    settings = json.loads((tmp_path / "fp8" / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(settings))
    write_weights(tmp_path / "fp8", stored)
    write_weights(tmp_path / "twin", plain)
    assert_equal(weights(tmp_path / "fp8"), weights(tmp_path / "twin"))


def test_an_mxfp4_model_is_its_twin(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "gpt_oss",
        vocab_size=64,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    for name in ("mxfp4", "twin"):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    stored, plain = {}, {}
    for name, weight in load_file(tmp_path / "twin" / "model.safetensors").items():
        stored[name] = plain[name] = weight
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        del stored[name]
        experts, inputs, outputs = weight.shape
        codes = torch.randint(0, 16, (experts, outputs, inputs))
        exponents = torch.randint(120, 128, (experts, outputs, inputs // 32))
        pairs = codes.view(experts, outputs, inputs // 32, 16, 2)
        stored[f"{name}_blocks"] = (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
        stored[f"{name}_scales"] = exponents.to(torch.uint8)
        factor = (2.0 ** (exponents - 127)).repeat_interleave(32, -1)
        plain[name] = (values[codes] * factor).transpose(1, 2).contiguous()
    settings = json.loads((tmp_path / "mxfp4" / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "mxfp4" / "config.json").write_text(json.dumps(settings))
    write_weights(tmp_path / "mxfp4", stored)
    write_weights(tmp_path / "twin", plain)
    assert_equal(weights(tmp_path / "mxfp4"), weights(tmp_path / "twin"))


@pytest.mark.parametrize("where", ["beside", "alone"])
def test_an_adapter_is_refused_or_merged(where: str, tmp_path: Path) -> None:
    adapter = lora(2)
    if where == "beside":
        copy_demo(tmp_path / "model")
    write_adapter(tmp_path / "model", adapter)
    with pytest.raises(ValueError, match=r"holds a LORA adapter .*; add --merge-adapter"):
        loading.load_config(str(tmp_path / "model"), ModelSettings())
    merged = weights(tmp_path / "model", merge_adapter=True)
    for name, before in weights("ptl-demo").items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        expected = before
        if f"{stem}.lora_A.weight" in adapter:
            left, right = adapter[f"{stem}.lora_B.weight"], adapter[f"{stem}.lora_A.weight"]
            expected = before + 3 * left @ right
        torch.testing.assert_close(merged[name], expected)
    assert loading.load_tokenizer(
        str(tmp_path / "model"), settings=ModelSettings(merge_adapter=True)
    ).get_vocab()


def test_what_is_done_to_the_weights_is_said(tmp_path: Path) -> None:
    write_fp8(tmp_path / "fp8", tmp_path / "twin")
    write_adapter(tmp_path / "fp8", lora(2))
    settings = ModelSettings(merge_adapter=True)
    dequantized, merged = stored_weights.notes(str(tmp_path / "fp8"), settings)
    assert "FP8, with a scale for each block (fp8); they are dequantized" in dequantized
    assert "LORA adapter is merged" in merged
    assert not stored_weights.notes("ptl-demo", ModelSettings())


@pytest.mark.parametrize(
    ("settings", "flag", "message"),
    [
        ({"merge_adapter": True}, "--model", "--merge-adapter: .* holds no adapter"),
        ({"revision": "v1"}, "--model", "--revision v1 is for a model of the hub"),
        ({"revision": "v1"}, "--teacher", "--teacher-revision v1 is for a model of the hub"),
    ],
)
def test_flags_that_have_no_use_are_refused(settings: dict, flag: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stored_weights.find(str(DEMO_MODEL), ModelSettings(**settings), flag)


def test_quantized_by_another_method_is_refused_from_the_config(tmp_path: Path) -> None:
    copy_demo(tmp_path / "model", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ValueError, match=r"--teacher .* quantized by gptq"):
        loading.load_config(str(tmp_path / "model"), flag="--teacher")


def test_code_of_its_own_is_never_run_and_never_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_demo(tmp_path / "model", model_type="mine", auto_map=CODE)
    (tmp_path / "model" / "mine.py").write_text("raise SystemExit('this ran')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    with pytest.raises(ValueError, match=r"--model .*model needs Python code from its own"):
        loading.load_config(str(tmp_path / "model"))


def test_a_tokenizer_with_code_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_demo(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    file.write_text(json.dumps(settings))
    (tmp_path / "model" / "mine.py").write_text("raise SystemExit('this ran')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    with pytest.raises(ValueError, match="its tokenizer needs Python code from its own"):
        loading.load_tokenizer(str(tmp_path / "model"))


def test_a_known_type_needs_no_code_though_it_brings_some(tmp_path: Path) -> None:
    copy_demo(tmp_path / "model", auto_map=CODE)
    (tmp_path / "model" / "mine.py").write_text("raise SystemExit('this ran')\n")
    assert_equal(weights(tmp_path / "model"), weights("ptl-demo"))


def loads(source: str) -> list[ast.Call]:
    """Calls of ``from_pretrained`` or ``from_config`` of one of transformers' Auto classes."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        call
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in ("from_pretrained", "from_config")
        and ast.unparse(call.func.value).startswith(("Auto", "auto_class("))
    ]


def test_every_load_says_that_no_code_is_trusted() -> None:
    """Without a word transformers asks, and somebody may have typed yes."""
    root, found = Path(__file__).parents[2], 0
    for file in (*(root / "ptl_fast").rglob("*.py"), *(root / "benchmarks").rglob("*.py")):
        for call in loads(file.read_text()):
            given = {each.arg: ast.unparse(each.value) for each in call.keywords}
            assert given.get("trust_remote_code") == "False", (file, call.lineno)
            found += 1
    assert found >= 5


def test_a_text_decoder_is_taken_out_as_the_document_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tiny_config("gemma3_text", head_dim=16)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    whole = AutoModelForImageTextToText.from_config(
        Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    ).eval()
    monkeypatch.chdir(tmp_path)
    whole.save_pretrained("whole")
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained("whole")
    document = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    exec(document.split("```python\n")[1].split("```")[0])
    model = loading.load_model("text", ModelSettings(), "cpu")
    ids = torch.randint(6, 300, (2, 16))
    assert torch.equal(model(ids).logits, whole(ids).logits)
