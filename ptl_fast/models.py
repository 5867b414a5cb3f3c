"""Loading a model, its config and its tokenizer, with errors that name the fix."""

import importlib.util
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ptl_fast.config import Config


DEMO = "ptl-demo"
DEMO_FOLDER = Path(__file__).parent / "demo" / "model"


def resolve_device(name: str) -> str:
    """Return the torch device for auto, cpu, cuda or cuda:N; under a launcher, this rank's own GPU.

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
        raise ValueError(f"--device {name} is not present (found {count} CUDA devices); use --device {'cuda' if count else 'cpu'}")
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def load_config(name: str) -> "PretrainedConfig":
    """Read a model's config; no weights are loaded.

    Raises:
        ValueError: no such folder or hub name, or it holds no causal language model with an FFN width and a number of layers.
    """
    name = _bundled(name)
    path = Path(name)
    if path.exists() and not (path / "config.json").is_file():
        raise ValueError(f"{name} is not a model folder: it has no config.json; give a folder saved by save_pretrained")
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if path.exists() else "no such folder, and not found on the hub or in its cache"
        raise ValueError(f"--model {name} cannot be loaded: {reason}") from error
    wanted = ("intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_size")
    missing = [field for field in wanted if not isinstance(getattr(config, field, None), int)]
    if missing:
        raise ValueError(
            f"--model {name} (model_type {config.model_type}) is not supported: looked for {', '.join(wanted)} in its"
            f" config, and did not find {', '.join(missing)}"
        )
    return config


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer.

    Raises:
        ValueError: the folder has none.
    """
    try:
        return AutoTokenizer.from_pretrained(_bundled(name))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--model {name} has no tokenizer that can be loaded; save the tokenizer into the same folder") from error


def load_model(name: str, config: "Config", device: str) -> "PreTrainedModel":
    """Load the weights in the type, on the device and with the attention that the settings ask for.

    Raises:
        ValueError: the weights are missing or do not fit the config.
    """
    dtype = _dtype(config.dtype, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(_bundled(name), dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"--model {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    attention = _attention(config.attn, device, model.dtype)
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"--attn {attention} cannot be used here: {str(error).strip().splitlines()[0]}; use --attn auto"
        ) from error
    model.to(device).eval()  # type: ignore[arg-type]
    _align_parameters_(model)
    return model


def seed_everything(seed: int) -> None:
    """Seed every generator that a stage may use, so that a stage does not depend on what ran before it."""
    random.seed(seed)
    torch.manual_seed(seed)


def _bundled(name: str) -> str:
    return str(DEMO_FOLDER) if name == DEMO else name


def _dtype(name: str, device: str) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device == "cpu" else "auto"
    return getattr(torch, name)


def _attention(name: str, device: str, dtype: torch.dtype) -> str:
    if name != "auto":
        return name
    usable = device != "cpu" and dtype != torch.float32 and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if usable else "sdpa"


@torch.no_grad()
def _align_parameters_(model: torch.nn.Module) -> None:
    """Copy parameters out of the mapped file: GEMM libraries may round differently on memory that is not aligned."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
