"""Does the NLL of a pruned model depend on whether elimination and compensation are fp32 or fp64?

    python -m benchmarks.scoring.bench_working_type --model DIR --data FILE --json FILE

The Gram matrices are collected once, in fp64. Then each layer's neurons are chosen and the others'
columns fitted, once in fp64 throughout, as for narrow layers, and once in fp32 behind the loudest
neurons, as for wide ones, whatever the model's width; and the NLL of held-out answers is measured.

Shape suffixes: L layers, I FFN width, K kept neurons, H hidden size.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.environment import environment
from benchmarks.harness.results import write_json
from ptl_fast.base import positive_definite
from ptl_fast.config.model import ModelSettings
from ptl_fast.data import packing, readers, sampling
from ptl_fast.data.documents import CHAT_TEMPLATES, Form
from ptl_fast.evaluation.nll import NLL, NLL_MAX_LENGTH, answer_nll
from ptl_fast.model import loading
from ptl_fast.model.families import down_projections, find_family
from ptl_fast.pruning.compensate import pruned_projections
from ptl_fast.scoring import reconstruction, statistics

EVAL_BATCH = 16
# the width up to which all is fp64
WAYS = {"fp64": 2**62, "fp32": 0}


@contextmanager
def up_to(narrow: int) -> Iterator[None]:
    """Inside, layers up to this width are fp64."""
    before, positive_definite.NARROW = positive_definite.NARROW, narrow
    try:
        yield
    finally:
        positive_definite.NARROW = before


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """NLL of the whole model, and of the pruned one by each way; how many kept neurons agree."""
    model = loading.load_model(options.model, ModelSettings(), "cpu")
    tokenizer, family = loading.load_tokenizer(options.model), find_family(model)
    form = Form(chats=CHAT_TEMPLATES["auto"] if tokenizer.chat_template else None)
    documents = readers.load_documents(options.data, form)
    held_out, own = documents[: options.held_out], documents[options.held_out :]
    ids = sampling.tokenize(own[: options.documents], tokenizer)
    tokens = packing.pack(ids, options.sequence_length, packing.padding_token(tokenizer))

    def nll() -> float:
        return answer_nll(model, tokenizer, held_out, EVAL_BATCH, NLL_MAX_LENGTH)[NLL]

    found: dict[str, Any] = {"num_tokens": tokens.num_tokens, "dense": nll()}
    _, grams = statistics.collect_with_grams(model, family, tokens, 1)
    downs = down_projections(model, family)
    before = [down.weight_HI.clone() for down in downs]
    kept: dict[str, Tensor] = {}
    for way, narrow in WAYS.items():
        with up_to(narrow):
            prices_LI = reconstruction.prices(grams)
            order_LI = prices_LI.argsort(dim=1, descending=True)
            kept[way] = order_LI[:, : round(options.keep * grams.width)].sort().values
            pruned = pruned_projections(downs, grams, kept[way].tolist())
        for down, fitted_HI in zip(downs, pruned, strict=True):
            down.weight_HI.copy_(fitted_HI)
        found[way] = nll()
        for down, weight_HI in zip(downs, before, strict=True):
            down.weight_HI.copy_(weight_HI)
    found["agreement"] = [
        int(torch.isin(one, other).sum()) / len(one)
        for one, other in zip(kept["fp32"], kept["fp64"], strict=True)
    ]
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--documents", type=int, default=48, help="for calibration")
    parser.add_argument("--held-out", type=int, default=64, help="documents for NLL, the first")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--keep", type=float, default=0.65)
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args(arguments)
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    # names without this machine's folders
    settings |= {name: Path(settings[name]).name for name in ("model", "data")}
    result = {"environment": environment("cpu"), "settings": settings, **measure(options)}
    print(json.dumps(result, indent=1))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
