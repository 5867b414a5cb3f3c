"""A head of its own beside a config that says it is tied to the embedding.

transformers keeps both weights and warns. Whoever reads the config alone, such as another inference
engine or a count of parameters, takes the embedding for the head: so the config is corrected.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# names in checkpoints: of Llama and most others, GPT-NeoX, Mistral's own
HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output)\.weight")
EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|embed_in|tok_embeddings|word_embeddings)\.weight")
ROWS = 4096  # of the two matrices that are in memory at a time


def correct_config_(config: "PretrainedConfig", folder: Path | None) -> None:
    """Have a model's config say that its head is not tied, if its files hold two matrices.

    Args:
        folder: where its weights are; None if they are not in a folder.
    """
    if says_tied(config) and folder is not None and _has_own_head(folder):
        _say_untied_(config)


def correct_loaded_(model: "PreTrainedModel") -> None:
    """The same for a loaded model, whatever its files are."""
    loaded: Any = model
    head, embedding = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    if head is not None and says_tied(loaded.config) and head.weight is not embedding.weight:
        _say_untied_(loaded.config)


def says_tied(config: "PretrainedConfig") -> bool:
    """Whether a config says that the head is tied; some of models of several parts do not say."""
    return getattr(config, "tie_word_embeddings", False)


def _say_untied_(config: "PretrainedConfig") -> None:
    # the config of a multimodal model's text says it too
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False


def _has_own_head(folder: Path) -> bool:
    """Whether a folder's safetensors files hold a head that is not equal to the embedding."""
    heads, embeddings = (_find(folder, name) for name in (HEAD, EMBEDDING))
    if not heads or not embeddings:
        return False
    (file, name), (other_file, other_name) = heads[0], embeddings[0]
    with safe_open(file, framework="pt") as one, safe_open(other_file, framework="pt") as other:
        head_VH, embedding_VH = one.get_slice(name), other.get_slice(other_name)
        num_rows, hidden = head_VH.get_shape()
        if [num_rows, hidden] != embedding_VH.get_shape():
            return True
        # a tied model may hold both, and then all of them are read
        return any(
            not bool((head_VH[first : first + ROWS] == embedding_VH[first : first + ROWS]).all())
            for first in range(0, num_rows, ROWS)
        )


def _find(folder: Path, name: re.Pattern[str]) -> list[tuple[Path, str]]:
    """The tensors with such a name, each with its file; from the headers."""
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                found += [(file, key) for key in sorted(tensors.keys()) if name.fullmatch(key)]
        except (OSError, SafetensorError):  # loading says what is wrong with it
            continue
    return found
