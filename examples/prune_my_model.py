"""Prune a model with the kernels alone: ptl_kernels, torch and transformers, without ptl_fast.

    python examples/prune_my_model.py [MODEL_FOLDER_OR_HUB_NAME] [OUTPUT]

Half of each FFN's neurons go: those that add least to the layer's output on a few texts. The result
is an ordinary checkpoint, which is loaded again and compared.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from ptl_kernels import collect_statistics, compact_ffn_, find_gated_ffns

DEMO = Path(__file__).parents[1] / "ptl_fast" / "demo" / "model"
TEXTS = ["Question: 3 + 4 * 2?\nAnswer: 3 + 4 * 2 = 3 + 8 = 11", "Question: 7 - 5?\nAnswer: 2"]
KEEP = 0.5
logging.disable_progress_bar()


def main(name: str, output: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name).eval()
    # score: how large a neuron's activations are, times its column of the down projection
    with torch.inference_mode(), collect_statistics(model) as statistics:
        for text in TEXTS:
            model(**tokenizer(text, return_tensors="pt").to(model.device))
    ffns = list(find_gated_ffns(model).values())
    norms_LI = torch.stack([ffn.down.weight.detach().float().norm(dim=0).cpu() for ffn in ffns])
    scores_LI = statistics.square().sqrt().cpu() * norms_LI
    # widths of a multiple of 32 suit matrix products
    width = max(1, round(KEEP * ffns[0].width / 32)) * 32
    kept_LK = scores_LI.topk(width, dim=1).indices.sort(dim=1).values
    # remove: rows of gate and up with their biases, columns of down
    layers = []
    for ffn in ffns:
        biases = [linear.bias for linear in ffn.inputs if linear.bias is not None]
        layers.append(([linear.weight for linear in ffn.inputs] + biases, ffn.down.weight))
    compact_ffn_(layers, kept_LK)
    # the sizes that modules and the config record; without the config, the model would not load
    for ffn in ffns:
        for linear in (*ffn.inputs, ffn.down):
            linear.out_features, linear.in_features = linear.weight.shape
    model.config.intermediate_size = width
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    again = AutoModelForCausalLM.from_pretrained(output).eval()
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        difference = (model(**inputs).logits - again(**inputs).logits).abs().max().item()
    print(f"width {width}, {again.num_parameters():,} parameters in {output}")
    print(f"loaded again, its logits differ by at most {difference:g}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(arguments[0] if arguments else str(DEMO), arguments[1] if arguments[1:] else "pruned")
