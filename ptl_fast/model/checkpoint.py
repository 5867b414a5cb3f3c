"""Find out what a model's folder, or its repository on the hub, holds, before anything is loaded.

Beside ordinary weights it may hold quantized ones (model/quantized.py) and an adapter, with or
without the weights that it belongs to (model/adapters.py). Nothing here runs code of the model's
own, and no weights are read.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig
from transformers.utils.hub import cached_file, extract_commit_hash

from ptl_fast.base import json_text

if TYPE_CHECKING:
    from torch import Tensor

DEMO = "ptl-demo"
DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "model"
FINGERPRINT_BYTES = 2**20  # bytes hashed at a weight file's beginning, and as many at its end

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
# what is read before transformers checks the config
OBJECTS = ("text_config", "quantization_config", "compression_config", "auto_map")
# What the config counts by modules, in the families' words. Modules are made one by one, even
# without weights: those of a damaged config with 10^9 layers would take days and all memory.
COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("num_experts", "num_local_experts", "n_routed_experts"),
)
MOST_MODULES = 10_000
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A trained change of a model's weights, stored beside them or alone."""

    name: str
    """Folder or hub name."""
    revision: str | None
    config: dict[str, Any]
    """Content of its adapter_config.json."""

    @property
    def kind(self) -> str:
        """PEFT's name of the kind, such as LORA."""
        return str(self.config.get("peft_type", "PEFT"))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a model's weights lie, and of what kind they are."""

    name: str
    """Folder or hub name of the weights; not of the adapter, where that lies elsewhere."""
    revision: str | None
    """Branch, tag or commit of a hub repository; None is its main branch."""
    config: dict[str, Any]
    """Content of config.json."""
    adapter: Adapter | None = None

    @property
    def place(self) -> tuple[str, str | None]:
        """Name and revision."""
        return self.name, self.revision

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the weights are quantized, by the config; None for ordinary weights."""
        # compression_config: what compressed-tensors wrote before it had transformers' name
        for config in (self.config, self.config.get("text_config") or {}):
            for field in ("quantization_config", "compression_config"):
                if config.get(field):
                    return config[field]
        return None

    @property
    def needs_code(self) -> bool:
        """Whether the repository brings Python code of its own for the config or the model."""
        return bool(
            {"AutoConfig", "AutoModelForCausalLM"} & (self.config.get("auto_map") or {}).keys()
        )


def bundled(name: str) -> str:
    """The folder of the bundled demo model for its name; any other name as it is."""
    return str(DEMO_FOLDER) if name == DEMO else name


def find_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Look at a model's folder, or at its repository on the hub.

    Args:
        name: a folder, a name on the Hugging Face hub, or ``ptl-demo``.
        revision: branch, tag or commit on the hub.

    Raises:
        OSError: there is neither a config.json nor an adapter, or no such name or revision.
        ValueError: config.json or adapter_config.json is no JSON object.
    """
    name = bundled(name)
    own, adapter = file_of(name, CONFIG, revision), _adapter(name, revision)
    if own is None and adapter is None:
        raise FileNotFoundError(f"{name} has no {CONFIG}, on the hub or in its cache")
    if own is None and adapter is not None:
        # weights elsewhere, in a revision of their own
        name, revision = _base(adapter), adapter.config.get("revision")
    config: Any = PretrainedConfig.get_config_dict(name, revision=revision)[0]
    _check_objects(config)
    return Checkpoint(name=name, revision=revision, config=config, adapter=adapter)


def _check_objects(config: Any) -> None:
    """Raise ValueError unless config.json, and what is an object in it, is one, and its numbers of
    layers and experts are such that a model can be made.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} is no JSON object")
    for field in OBJECTS:
        if not isinstance(config.get(field) or {}, dict):
            raise ValueError(f"{CONFIG}: {field} is no JSON object, but {config[field]!r}")
    for part in (config, config.get("text_config") or {}):
        if part.get(COUNTS[0]) == 0:
            raise ValueError(f"{CONFIG}: {COUNTS[0]} is 0, so that there is nothing to compress")
        for field in COUNTS:
            number = part.get(field)
            if isinstance(number, int | float) and number > MOST_MODULES:
                raise ValueError(
                    f"{CONFIG}: {field} is {number:,}, and no more than {MOST_MODULES:,} can be"
                    " handled; mend it, or copy the model again"
                )


def file_of(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a folder or of a hub repository, downloaded if need be.

    None if there is no such file, or if the hub cannot be reached and its cache does not hold it.

    Raises:
        OSError: there is no such repository, or no such revision of it.
    """
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    found = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def folder_of(name: str, revision: str | None = None) -> Path:
    """The folder that holds a model's files; those of a hub repository are downloaded into it."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.safetensors", "pytorch_model*.bin"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=files))


def read_tensors(folder: Path) -> "dict[str, Tensor]":
    """The tensors of a model's weight files by name, as stored, on the CPU; no adapter's.

    Raises:
        ValueError: the folder has no weights.
    """
    import torch
    from safetensors.torch import load_file

    for whole in ("model.safetensors", "pytorch_model.bin"):
        index, files = folder / f"{whole}.index.json", [folder / whole]
        if index.is_file():
            shards = json_text.loads(index.read_text())["weight_map"].values()
            files = [folder / shard for shard in sorted(set(shards))]
        if not files[0].is_file():
            continue
        tensors: dict[str, Tensor] = {}
        for file in files:
            if file.suffix == ".safetensors":
                tensors |= load_file(file)
            else:
                tensors |= torch.load(file, map_location="cpu", weights_only=True)
        return tensors
    raise ValueError(f"{folder} has no model.safetensors or pytorch_model.bin")


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, those of an adapter included; .bin only without safetensors.

    Raises:
        ValueError: one is a folder, a pipe or a link to nothing: reading it would fail or wait.
    """
    adapters = [folder / file for file in ADAPTER_WEIGHTS[1:]]
    files = list(folder.glob("*.safetensors"))
    # other tools' files, such as training_args.bin, end with .bin too
    if not [file for file in files if file.name not in ADAPTER_WEIGHTS]:
        files += folder.glob("pytorch_model*.bin")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is no file, or a link to none; copy the model again")
    return sorted([*files, *(file for file in adapters if file.is_file())])


def weights_fingerprint(name: str, revision: str | None = None) -> dict[str, str]:
    """Return {file or repository: fingerprint} of a model's weights: others are not resumed on.

    A file's is its size and a hash of its first and last MiB, as reading gigabytes would delay
    every start; an adapter's settings count too. A hub repository's is its commit.
    """
    checkpoint = find_checkpoint(name, revision)
    marks = _fingerprints(checkpoint.name, checkpoint.revision)
    adapter = checkpoint.adapter
    if adapter is None:
        return marks
    settings = json.dumps(adapter.config, sort_keys=True).encode()
    marks[ADAPTER_CONFIG] = hashlib.sha256(settings).hexdigest()[:16]
    if adapter.name != checkpoint.name:
        marks |= {
            f"adapter {file}": mark
            for file, mark in _fingerprints(adapter.name, adapter.revision).items()
        }
    return marks


def _fingerprints(name: str, revision: str | None) -> dict[str, str]:
    """The fingerprints of one folder's weight files, or of one hub repository."""
    if Path(name).is_dir():
        return {file.name: _fingerprint(file) for file in weight_files(Path(name))}
    for file in (CONFIG, ADAPTER_CONFIG):
        commit = extract_commit_hash(_as_text(file_of(name, file, revision)), None)
        if commit is not None:
            return {name: f"commit {commit}"}
    return {}


def _as_text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _fingerprint(file: Path) -> str:
    """SIZE-HASH of a file: 16 hex digits of the SHA-256 of its first and last MiB."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        beginning = stream.read(FINGERPRINT_BYTES)
        stream.seek(max(0, size - FINGERPRINT_BYTES))
        return f"{size}-{hashlib.sha256(beginning + stream.read()).hexdigest()[:16]}"


def _adapter(name: str, revision: str | None) -> Adapter | None:
    """The adapter that a folder or a repository holds, or None."""
    file = file_of(name, ADAPTER_CONFIG, revision)
    if file is None:
        return None
    config = json_text.loads(file.read_text())
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not an adapter's settings")
    return Adapter(name=name, revision=revision, config=config)


def _base(adapter: Adapter) -> str:
    """The name of the model that an adapter without weights beside it was trained on."""
    base = adapter.config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{adapter.name} holds an adapter and no model, and its {ADAPTER_CONFIG} does not name"
            " the model that it belongs to; put the adapter's files into that model's folder"
        )
    return bundled(base)
