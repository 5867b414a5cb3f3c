"""Small random Gemma 2 models, whole and without some of its layers, to hold engines against.

    python -m benchmarks.inference.windowed_models FOLDER

Writes FOLDER/gemma2, gemma2-without-2-3 (the kinds of layers still take turns) and
gemma2-without-0 (they do not). The weights are random, but large enough that a window in a wrong
layer changes the likeliest tokens; layers go as a run removes them. The tokenizer is the bundled
model's.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.harness.results import errors_in_one_line
from ptl_fast.model.checkpoint import DEMO, bundled
from ptl_fast.model.families import find_family
from ptl_fast.pruning.compact import compact_
from ptl_fast.pruning.plan import PruningPlan

NUM_LAYERS, WIDTH, WINDOW = 6, 128, 32
DROPPED: dict[str, list[int]] = {
    "gemma2": [],
    "gemma2-without-2-3": [2, 3],
    "gemma2-without-0": [0],
}
"""{name of a folder: the layers that are removed}."""
NOISE = 0.2  # standard deviation added to every weight; by 0.1 a wrong window often changes nothing


def random_gemma2(vocab_size: int, end: int) -> PreTrainedModel:
    """A float32 Gemma 2 whose layers 0, 2 and 4 have a window of 32 tokens.

    Args:
        end: the token that ends a text.
    """
    config = AutoConfig.for_model(
        "gemma2",
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        max_position_embeddings=512,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, trust_remote_code=False
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * NOISE)
    return model


def without(model: PreTrainedModel, dropped: list[int]) -> None:
    """Remove layers from the model in place."""
    plan = PruningPlan(
        round=1,
        kind="layers",
        scorer="",
        width=WIDTH,
        num_layers=NUM_LAYERS - len(dropped),
        kept_neurons=None,
        dropped_layers=dropped,
    )
    compact_(model, find_family(model), plan)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        tokenizer = AutoTokenizer.from_pretrained(bundled(DEMO), trust_remote_code=False)
        # Gemma's has all three; CTranslate2 cannot load a Gemma 2 whose tokenizer lacks one
        tokenizer.bos_token = tokenizer.unk_token = tokenizer.eos_token
        for name, dropped in DROPPED.items():
            model = random_gemma2(len(tokenizer), tokenizer.eos_token_id)
            without(model, dropped)
            model.save_pretrained(options.folder / name)
            tokenizer.save_pretrained(options.folder / name)


if __name__ == "__main__":
    main()
