"""Load a model, its config and its tokenizer, with errors that name the flag and the fix."""

import importlib.util
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from ptl_fast.base import distributed
from ptl_fast.base.console import reason
from ptl_fast.config.checking import nearest
from ptl_fast.model import padding, parts, tokenizer_trial, tying
from ptl_fast.model.checkpoint import DEMO as DEMO
from ptl_fast.model.checkpoint import Checkpoint, bundled, find_checkpoint
from ptl_fast.model.damaged_files import blame
from ptl_fast.model.stored_weights import NEEDS_CODE, find, load_stored, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ptl_fast.config.model import ModelSettings


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
        hint = nearest(name, ("auto", "cpu", "cuda"))
        raise ValueError(f"unknown --device {name}; choose auto, cpu, cuda or cuda:N{hint}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(index) if index else distributed.of_launcher("LOCAL_RANK", 0)
    if number >= count:
        raise ValueError(
            f"--device {name} is not present (found {count} CUDA devices); use --device"
            f" {'cuda' if count else 'cpu'}"
        )
    # Triton and NCCL use the current device, not that of their tensors
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def load_config(
    name: str, settings: "ModelSettings | None" = None, flag: str = "--model"
) -> "PretrainedConfig":
    """Read a model's config, without its weights; without its quantization, which is undone. Of a
    model of several parts it is that of its text decoder, where that can be compressed.

    Args:
        name: a folder, a name on the Hugging Face hub, or ``ptl-demo``.
        settings: its revision, and whether its adapter may be merged.
        flag: the command-line flag that errors name.

    Raises:
        ValueError: there is no such model, its config cannot be read, or it cannot be had as
            ordinary weights (quantization, adapters, code of its own).
    """
    checkpoint = find(name, settings, flag)
    try:
        config = read_config(checkpoint)
    except Exception as error:  # transformers raises many types for a bad config
        if checkpoint.needs_code:
            raise ValueError(f"{flag} {name} {NEEDS_CODE}") from error
        raise ValueError(_cannot_be_loaded(flag, checkpoint, error)) from error
    tying.correct_config_(config, local_folder(checkpoint.name))
    return parts.decoder_config(config)


def _cannot_be_loaded(flag: str, checkpoint: Checkpoint, error: Exception) -> str:
    """A library's reason, and the file that is to blame."""
    name = checkpoint.name
    return f"{flag} {name} cannot be loaded: {reason(error)}{blame(local_folder(name))}"


def load_tokenizer(
    name: str, flag: str = "--model", settings: "ModelSettings | None" = None
) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer; it must be a fast one.

    Args:
        flag: the command-line flag that errors name.
        settings: the revision of a hub model, and whether its adapter is merged.

    Raises:
        ValueError: there is no such model, it has no tokenizer, or only a slow one, or it or its
            chat template does not get through its trial.
    """
    # before it is loaded: that may already end the process
    file = Path(bundled(name)) / "tokenizer.json"
    if name and file.is_file():
        _check_tokenizer(file.read_text("utf-8", errors="replace"), f"{flag} {name}")
    try:
        tokenizer = _tokenizer(bundled(name), settings)
        # odd values of its settings show at its first text
        tokenizer("a")
    except Exception as error:  # transformers raises many types for a bad tokenizer
        if not name or not Path(bundled(name)).is_dir():
            raise ValueError(
                f"{flag} {name!r}: no such folder, and not found on the hub or in its cache"
            ) from error
        if "trust_remote_code" in str(error):
            raise ValueError(f"{flag} {name}: its tokenizer {NEEDS_CODE}") from error
        raise ValueError(
            f"{flag} {name} has no tokenizer that can be loaded"
            f" ({reason(error)}{blame(local_folder(name))}); save the"
            " tokenizer into the same folder"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"{flag} {name} has only a slow tokenizer; convert it to a tokenizer.json first"
        )
    if not file.is_file():
        _check_tokenizer(tokenizer.backend_tokenizer.to_str(), f"{flag} {name}")
    _check_templates(tokenizer, f"{flag} {name}")
    return tokenizer


def _check_tokenizer(definition: str, what: str) -> None:
    if wrong := tokenizer_trial.try_tokenizer(definition):
        raise ValueError(f"{what}: its tokenizer cannot be used: {wrong}; correct tokenizer.json")


def _check_templates(tokenizer: "PreTrainedTokenizerBase", what: str) -> None:
    """Try the tokenizer's chat templates: it has one, none, or several by name."""
    templates = tokenizer.chat_template or {}
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        if wrong := tokenizer_trial.try_template(template):
            raise ValueError(
                f"{what}: its chat template cannot be used: {wrong}; correct it, or remove it from"
                " the model's folder"
            )


def _tokenizer(name: str, settings: "ModelSettings | None") -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder or repository; of an adapter without one, its model's."""
    revision = settings.revision if settings is not None else None
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception:
        base = find_checkpoint(name, revision)
        if base.name == name:
            raise
        return AutoTokenizer.from_pretrained(
            base.name, revision=base.revision, trust_remote_code=False
        )


def check_teacher(
    teacher: str,
    tokenizer: "PreTrainedTokenizerBase",
    settings: "ModelSettings | None" = None,
) -> None:
    """Check that --teacher can be used with the tokenizer of --model, without loading its weights.

    Args:
        settings: its revision on the hub.

    Raises:
        ValueError: its vocabulary differs from the tokenizer's, it has fewer embeddings than there
            are token ids, or its weight files are missing or truncated.
    """
    theirs, ours = load_tokenizer(teacher, "--teacher", settings).get_vocab(), tokenizer.get_vocab()
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
    num_embeddings = load_config(teacher, settings, "--teacher").get_text_config().vocab_size
    if max(ids) >= num_embeddings:
        raise ValueError(
            f"--teacher {teacher}: its tokenizer gives ids beyond the model's {num_embeddings}"
            " embeddings"
        )
    folder = Path(bundled(teacher))
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
    """Load a causal language model in eval mode, with the settings' dtype and attention. Of a model
    of several parts it is the text decoder inside (``parts.whole_of``).

    Args:
        flag: the command-line flag that errors name.

    Raises:
        ValueError: the weights are missing or do not fit the config, or the attention
            implementation is not available.
    """
    checkpoint, dtype = find(name, settings, flag), _dtype(settings.dtype, device)
    try:
        loaded: Any = load_stored(checkpoint, dtype)
    except Exception as error:  # safetensors, torch and transformers raise many types
        raise ValueError(_cannot_be_loaded(flag, checkpoint, error)) from error
    model, info = loaded
    # transformers only warns of missing weights, and initializes them at random. Left-over weights
    # outside the decoder layers do no harm
    unplaced = [key for key in info["unexpected_keys"] if ".layers." in key]
    for keys in (info["missing_keys"], info["mismatched_keys"], unplaced):
        if keys:
            raise ValueError(
                f"{flag} {name}: weights and config.json do not belong together, they differ in"
                f" {min(map(_told, keys))}"
            )
    set_attention_(model, settings, device)
    tying.correct_loaded_(model)
    padding.drop_generated_padding_(model)
    model.to(device).eval()
    _align_parameters_(model)
    try:
        decoder = parts.decoder_of(model)
        parts.check_logits(decoder)
    except ValueError as error:
        raise ValueError(_cannot_be_loaded(flag, checkpoint, error)) from error
    return decoder


def _told(key: Any) -> str:
    """An entry of transformers' loading info: a tensor's name, or with the shapes that differ."""
    if isinstance(key, str):
        return key
    name, stored, wanted = key
    return f"{name}, which is stored as {list(stored)}, and by the config {list(wanted)}"


def set_attention_(model: "PreTrainedModel", settings: "ModelSettings", device: str) -> None:
    """Set the attention implementation that the settings ask for.

    Raises:
        ValueError: it is not available.
    """
    attention = _attention(settings.attn, device, model)
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"--attn {attention} cannot be used here: {reason(error)}; use --attn auto"
        ) from error


def computed_dtype(
    settings: "ModelSettings", device: str, config: "PretrainedConfig"
) -> torch.dtype:
    """The type that ``load_model`` computes in, where the config says which the weights have."""
    dtype = _dtype(settings.dtype, device)
    if isinstance(dtype, torch.dtype):
        return dtype
    own = config.get_text_config().dtype
    return own if isinstance(own, torch.dtype) else torch.float32


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators: a stage must not depend on what ran before it."""
    random.seed(seed)
    torch.manual_seed(seed)


def local_folder(name: str) -> Path | None:
    """The folder that a model's name means; None for a model of the hub."""
    folder = Path(bundled(name))
    return folder if folder.is_dir() else None


def weights_folder(name: str, settings: "ModelSettings") -> Path | None:
    """The folder of a model's weights, which an adapter alone may name; None on the hub."""
    return local_folder(find(name, settings).name)


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
