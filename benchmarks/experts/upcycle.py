"""Make a mixture of experts of the bundled model: sparse upcycling (arXiv 2212.05055).

Every expert begins as a quarter of the neurons of the bundled model's FFN, and the router at
random. The router's weights of a token's two experts add up to one, so with down projections four
times as large the layer's output is what it was, on average over the quarters. Training then lets
the experts, and the router, become different.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from ptl_fast.demo.problems import generate
from ptl_fast.demo.train import as_text, batches, learning_rate
from ptl_fast.model.checkpoint import DEMO_FOLDER

NUM_EXPERTS, ACTIVE = 8, 2
PARTS = 4  # an expert has this fraction of the FFN's neurons
SEED = 7


def upcycled() -> MixtralForCausalLM:
    """The mixture before its training."""
    dense: Any = AutoModelForCausalLM.from_pretrained(
        DEMO_FOLDER, dtype=torch.float32, trust_remote_code=False
    )
    old = dense.config
    config = MixtralConfig(
        vocab_size=old.vocab_size,
        hidden_size=old.hidden_size,
        intermediate_size=old.intermediate_size // PARTS,
        num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads,
        num_key_value_heads=old.num_key_value_heads,
        head_dim=old.head_dim,
        max_position_embeddings=old.max_position_embeddings,
        rope_parameters=old.rope_parameters,
        rms_norm_eps=old.rms_norm_eps,
        tie_word_embeddings=old.tie_word_embeddings,
        bos_token_id=old.bos_token_id,
        eos_token_id=old.eos_token_id,
        pad_token_id=old.pad_token_id,
        sliding_window=None,
        num_local_experts=NUM_EXPERTS,
        num_experts_per_tok=ACTIVE,
    )
    torch.manual_seed(SEED)
    mixture = MixtralForCausalLM(config)
    # all but the FFNs has the same names; the router stays as it was drawn
    others = {name: each for name, each in dense.state_dict().items() if ".mlp." not in name}
    mixture.load_state_dict(others, strict=False)
    for layer, own in zip(mixture.model.layers, dense.model.layers, strict=True):
        _fill_(layer.mlp.experts, own.mlp)
    return mixture


@torch.no_grad()
def _fill_(experts: Any, ffn: Any) -> None:
    """Give each expert a part of an FFN's neurons; each neuron is in as many experts."""
    width, filled = ffn.gate_proj.out_features, 0
    while filled < NUM_EXPERTS:
        # all parts of one order, so that these experts have every neuron once
        for part_I in torch.randperm(width).chunk(PARTS):
            both = [linear.weight[part_I] for linear in (ffn.gate_proj, ffn.up_proj)]
            experts.gate_up_proj[filled] = torch.cat(both)
            experts.down_proj[filled] = PARTS * ffn.down_proj.weight[:, part_I]
            filled += 1


def save_tokenizer(folder: Path) -> None:
    """Put the bundled model's tokenizer beside a model."""
    AutoTokenizer.from_pretrained(DEMO_FOLDER, trust_remote_code=False).save_pretrained(folder)


def train(
    model: MixtralForCausalLM, num_steps: int, batch_size: int, peak: float
) -> dict[str, float]:
    """Train on new problems of the bundled model's kind; returns what that took, and the loss.

    The loss has Mixtral's term that spreads the tokens over the experts.
    """
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER, trust_remote_code=False)
    problems = generate(num_steps * batch_size, SEED, "training")
    encoded = tokenizer(list(map(as_text, problems)), return_token_type_ids=False)["input_ids"]
    documents = [[*ids, tokenizer.eos_token_id] for ids in encoded]
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    start, num_tokens, losses = time.perf_counter(), 0, list[float]()
    model.train()
    batched = batches(documents, batch_size, tokenizer.pad_token_id)
    for step, (input_ids, labels) in enumerate(tqdm(batched, total=num_steps, desc="train")):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, peak, num_warmup=20)
        mask = _attended(labels)
        output = model(input_ids, attention_mask=mask, labels=labels, output_router_logits=True)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += int(mask.sum())
        losses.append(output.loss.item())
    model.eval()
    last = losses[-max(1, num_steps // 10) :]
    return {
        "steps": num_steps,
        "tokens": num_tokens,
        "first_loss": losses[0],
        "last_loss": sum(last) / len(last),
        "seconds": round(time.perf_counter() - start),
    }


def _attended(labels: Tensor) -> Tensor:
    """1 where a token is, 0 where padding is."""
    return (labels != -100).long()
