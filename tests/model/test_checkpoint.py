"""What a folder or a repository holds is known before anything of it is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ptl_fast.model import checkpoint
from ptl_fast.model.checkpoint import find_checkpoint, weights_fingerprint
from support.models import DEMO_MODEL
from support.stored_models import copy_demo, lora, write_adapter

COMMITS = ("a" * 40, "b" * 40)


def hub_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, *commits: str) -> None:
    """Make ``folder`` a cache of the hub with OWNER/NAME at these commits; main is the last."""
    repository = folder / "models--owner--name"
    for commit in commits:
        snapshot = repository / "snapshots" / commit
        if not snapshot.exists():
            shutil.copytree(DEMO_MODEL, snapshot)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commits[-1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_other_weights_have_another_fingerprint(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they differ near the beginning or the end, or in size."""
    monkeypatch.setattr(checkpoint, "FINGERPRINT_BYTES", 1000)
    llama.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    first = weights_fingerprint(str(tmp_path))
    assert list(first) == ["model.safetensors"]
    seen = {first["model.safetensors"]}
    for changed in (b"x" + whole[1:], whole[:-1] + b"x", whole + b"\0"):
        file.write_bytes(changed)
        seen |= set(weights_fingerprint(str(tmp_path)).values())
    assert len(seen) == 4
    file.write_bytes(whole)
    assert weights_fingerprint(str(tmp_path)) == first


def test_bin_files_count_where_there_is_nothing_else(tmp_path: Path) -> None:
    weights = copy_demo(tmp_path / "model")
    folder = tmp_path / "model"
    torch.save(weights, folder / "pytorch_model.bin")
    torch.save({}, folder / "training_args.bin")
    assert list(weights_fingerprint(str(folder))) == ["model.safetensors"]
    (folder / "model.safetensors").unlink()
    first = weights_fingerprint(str(folder))
    assert list(first) == ["pytorch_model.bin"]
    torch.save({name: 0.7 * each for name, each in weights.items()}, folder / "pytorch_model.bin")
    assert weights_fingerprint(str(folder)).keys() == first.keys()
    assert weights_fingerprint(str(folder)) != first


def test_a_model_of_the_hub_is_known_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(tmp_path, monkeypatch, COMMITS[0])
    assert weights_fingerprint("owner/name") == {"owner/name": f"commit {COMMITS[0]}"}
    hub_cache(tmp_path, monkeypatch, *COMMITS)
    assert weights_fingerprint("owner/name") == {"owner/name": f"commit {COMMITS[1]}"}
    old = weights_fingerprint("owner/name", COMMITS[0])
    assert old == {"owner/name": f"commit {COMMITS[0]}"}
    with pytest.raises(OSError, match="other"):
        find_checkpoint("owner/other")


def test_an_adapter_is_found_beside_the_weights_and_alone(tmp_path: Path) -> None:
    copy_demo(tmp_path / "beside")
    assert find_checkpoint(str(tmp_path / "beside")).adapter is None
    for name in ("beside", "alone"):
        write_adapter(tmp_path / name, lora(2))
    beside, alone = (find_checkpoint(str(tmp_path / name)) for name in ("beside", "alone"))
    assert beside.adapter is not None
    assert alone.adapter is not None
    assert (beside.name, alone.name) == (str(tmp_path / "beside"), str(DEMO_MODEL))
    assert alone.adapter.kind == "LORA"


def test_an_adapter_counts_for_the_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    write_adapter(folder, lora(2))
    seen = [weights_fingerprint(str(folder))]
    assert "model.safetensors" in seen[0], "its model's weights"
    write_adapter(folder, lora(2), lora_alpha=7)
    seen.append(weights_fingerprint(str(folder)))
    write_adapter(folder, lora(2, seed=1))
    seen.append(weights_fingerprint(str(folder)))
    assert len({json.dumps(each) for each in seen}) == 3


def test_an_adapter_that_names_no_model_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, lora(2), base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not name the model that it belongs to"):
        find_checkpoint(str(tmp_path))


@pytest.mark.parametrize("where", ["quantization_config", "compression_config", "text_config"])
def test_quantization_is_seen_wherever_a_config_says_it(where: str, tmp_path: Path) -> None:
    said = {"quant_method": "fp8"}
    value = {"quantization_config": said} if where == "text_config" else said
    copy_demo(tmp_path / "model", **{where: value})
    assert find_checkpoint(str(tmp_path / "model")).quantization == said
    assert find_checkpoint("ptl-demo").quantization is None


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_tensors_are_read_from_shards(kind: str, tmp_path: Path) -> None:
    whole = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    parts = [{"a": torch.ones(2)}, {"b": torch.zeros(3)}]
    from safetensors.torch import save_file

    for number, part in enumerate(parts):
        file = tmp_path / f"part-{number}.{kind}"
        (save_file if kind == "safetensors" else torch.save)(part, file)
    weight_map = {"a": f"part-0.{kind}", "b": f"part-1.{kind}"}
    (tmp_path / f"{whole}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert checkpoint.read_tensors(tmp_path).keys() == {"a", "b"}
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        checkpoint.read_tensors(empty)


def test_the_bundled_model_is_a_folder() -> None:
    weights = checkpoint.read_tensors(checkpoint.folder_of(checkpoint.bundled("ptl-demo")))
    assert weights.keys() == load_file(DEMO_MODEL / "model.safetensors").keys()


@pytest.mark.parametrize("field", ["num_hidden_layers", "n_layer", "num_experts"])
@pytest.mark.parametrize("nested", [False, True])
def test_more_modules_than_can_be_made_are_refused(
    field: str, nested: bool, tmp_path: Path
) -> None:
    for number, told in ((10**9, "1,000,000,000, and no more"), (10_000, None)):
        own = {field: number}
        content = {"model_type": "llama", **({"text_config": own} if nested else own)}
        (tmp_path / "config.json").write_text(json.dumps(content))
        if told is None:
            find_checkpoint(str(tmp_path))
            continue
        with pytest.raises(ValueError, match=told):
            find_checkpoint(str(tmp_path))


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 0}))
    with pytest.raises(ValueError, match="num_hidden_layers is 0"):
        find_checkpoint(str(tmp_path))
