"""Load a model, its config and its tokenizer, with errors that name the flag and the fix."""

import hashlib
import importlib.util
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ptl_fast.base.console import reason
from ptl_fast.model import padding, tying

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ptl_fast.config.model import ModelSettings


DEMO = "ptl-demo"
DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "model"
FINGERPRINT_BYTES = 2**20  # bytes hashed at a weight file's beginning, and as many at its end


def resolve_device(name: str) -> str:
    """Return the torch device for auto, cpu, cuda or cuda:N, and make a GPU the current device.

    Without a number it is the GPU of this rank (the launcher's LOCAL_RANK), or the first one.

    Raises:
        ValueError: the device is unknown or not present.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise ValueError(f"unknown --device {name}; choose auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(index or os.environ.get("LOCAL_RANK", "0"))
    if number >= count:
        raise ValueError(
            f"--device {name} is not present (found {count} CUDA devices); use --device"
            f" {'cuda' if count else 'cpu'}"
        )
    # Triton and NCCL use the current device, not that of their tensors
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def load_config(name: str) -> "PretrainedConfig":
    """Read a model's config, without its weights.

    Args:
        name: a folder, a name on the Hugging Face hub, or ``ptl-demo``.

    Raises:
        ValueError: there is no such model, or its config lacks one of the fields that give the
            model's size.
    """
    name = _bundled(name)
    path = Path(name)
    if path.exists() and not (path / "config.json").is_file():
        raise ValueError(
            f"{name} is not a model folder: it has no config.json; give a folder saved by"
            " save_pretrained"
        )
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # transformers raises many types for a bad config
        why = (
            reason(error)
            if path.exists()
            else "no such folder, and not found on the hub or in its cache"
        )
        raise ValueError(f"--model {name} cannot be loaded: {why}") from error
    wanted = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    missing = [field for field in wanted if not isinstance(getattr(config, field, None), int)]
    if missing:
        raise ValueError(
            f"--model {name} (model_type {config.model_type}) is not supported: looked for"
            f" {', '.join(wanted)} in its"
            f" config, and did not find {', '.join(missing)}"
        )
    padding.drop_padding_(config)
    tying.correct_config_(config, local_folder(name))
    return config


def load_tokenizer(name: str, flag: str = "--model") -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer; it must be a fast one.

    Args:
        flag: the command-line flag that errors name.

    Raises:
        ValueError: there is no such model, it has no tokenizer, or only a slow one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(_bundled(name))
    except Exception as error:  # transformers raises many types for a bad tokenizer
        if not name or not Path(_bundled(name)).is_dir():
            raise ValueError(
                f"{flag} {name!r}: no such folder, and not found on the hub or in its cache"
            ) from error
        raise ValueError(
            f"{flag} {name} has no tokenizer that can be loaded ({reason(error)}); save the"
            " tokenizer into the same folder"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"{flag} {name} has only a slow tokenizer; convert it to a tokenizer.json first"
        )
    return tokenizer


def check_teacher(teacher: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Check that --teacher can be used with the tokenizer of --model, without loading its weights.

    Raises:
        ValueError: its vocabulary differs from the tokenizer's, it has fewer embeddings than there
            are token ids, or its weight files are missing or truncated.
    """
    theirs, ours = load_tokenizer(teacher, "--teacher").get_vocab(), tokenizer.get_vocab()
    ids = {token for name, token in ours.items() if name != tokenizer.pad_token}
    different = sorted(
        token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token)
    )
    if different:
        raise ValueError(
            f"--teacher {teacher} has another vocabulary than --model: {len(different)} tokens"
            f" differ, such as {different[0]!r};"
            " its predictions are compared token by token, so give a teacher with the same"
            " tokenizer"
        )
    try:
        config = AutoConfig.from_pretrained(_bundled(teacher))
    except Exception as error:  # transformers raises many types for a bad config
        raise ValueError(f"--teacher {teacher} cannot be loaded: {reason(error)}") from error
    num_embeddings = config.get_text_config().vocab_size
    if max(ids) >= num_embeddings:
        raise ValueError(
            f"--teacher {teacher}: its tokenizer gives ids beyond the model's {num_embeddings}"
            " embeddings"
        )
    folder = Path(_bundled(teacher))
    if folder.is_dir() and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise ValueError(
            f"--teacher {teacher} has no weights; give a folder saved by save_pretrained"
        )
    # opening reads the header and compares it with the file's size, so a copy that was cut off
    # shows here and not after hours
    for file in folder.glob("*.safetensors"):
        try:
            safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"--teacher {teacher}: {file.name} is damaged ({reason(error)}); copy it again"
            ) from error


def load_model(
    name: str, settings: "ModelSettings", device: str, flag: str = "--model"
) -> "PreTrainedModel":
    """Load a causal language model in eval mode, with the settings' dtype and attention.

    Args:
        flag: the command-line flag that errors name.

    Raises:
        ValueError: the weights are missing or do not fit the config, or the attention
            implementation is not available.
    """
    dtype = _dtype(settings.dtype, device)
    try:
        config = AutoConfig.from_pretrained(_bundled(name))
        # a config that was read already is taken as it is, so only where it must be another
        corrected = {"config": config} if padding.drop_padding_(config) else {}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            _bundled(name), dtype=dtype, output_loading_info=True, **corrected
        )
    except Exception as error:  # safetensors, torch and transformers raise many types
        raise ValueError(f"{flag} {name} cannot be loaded: {reason(error)}") from error
    model, info = loaded
    # transformers only warns of missing weights, and initializes them at random. Left-over weights
    # outside the decoder layers do no harm
    unplaced = [key for key in info["unexpected_keys"] if ".layers." in key]
    for keys in (info["missing_keys"], info["mismatched_keys"], unplaced):
        if keys:
            raise ValueError(
                f"{flag} {name}: weights and config.json do not belong together, they differ in"
                f" {min(map(str, keys))}"
            )
    attention = _attention(settings.attn, device, model)
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"--attn {attention} cannot be used here: {reason(error)}; use --attn auto"
        ) from error
    tying.correct_loaded_(model)
    padding.drop_generated_padding_(model)
    model.to(device).eval()
    _align_parameters_(model)
    return model


def weights_fingerprint(name: str) -> dict[str, str]:
    """Return {file name: fingerprint} of a local model's weights: resuming on others is refused.

    A fingerprint is the file's size and a hash of its first and last MiB; reading gigabytes would
    delay every start. Empty for a model of the hub.
    """
    folder = local_folder(name)
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    return {file.name: _fingerprint(file) for file in files}


def _fingerprint(file: Path) -> str:
    """SIZE-HASH of a file: 16 hex digits of the SHA-256 of its first and last MiB."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        beginning = stream.read(FINGERPRINT_BYTES)
        stream.seek(max(0, size - FINGERPRINT_BYTES))
        return f"{size}-{hashlib.sha256(beginning + stream.read()).hexdigest()[:16]}"


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators: a stage must not depend on what ran before it."""
    random.seed(seed)
    torch.manual_seed(seed)


def local_folder(name: str) -> Path | None:
    """The folder that a model's name means; None for a model of the hub."""
    folder = Path(_bundled(name))
    return folder if folder.is_dir() else None


def _bundled(name: str) -> str:
    """The folder of the bundled demo model for its name; any other name as it is."""
    return str(DEMO_FOLDER) if name == DEMO else name


def _dtype(name: str, device: str) -> torch.dtype | str:
    """The dtype to load; auto is fp32 on a CPU, and the checkpoint's own on a GPU."""
    if name == "auto":
        return torch.float32 if device == "cpu" else "auto"
    return getattr(torch, name)


def _attention(name: str, device: str, model: "PreTrainedModel") -> str:
    """The attention implementation; auto is the fastest that is installed and fits the model."""
    if name != "auto":
        return name
    # flash-attention has kernels for bf16 and fp16 only
    half_on_gpu = device != "cpu" and model.dtype != torch.float32
    if (
        half_on_gpu
        and model._supports_flash_attn
        and importlib.util.find_spec("flash_attn") is not None
    ):
        return "flash_attention_2"
    return "sdpa" if model._supports_sdpa else "eager"


@torch.no_grad()
def _align_parameters_(model: torch.nn.Module) -> None:
    """Copy CPU parameters out of the memory-mapped file into aligned memory.

    On unaligned memory GEMM libraries may take another code path, which rounds differently.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
