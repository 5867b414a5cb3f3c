"""Train the demo's bundled model from scratch: ``python -m ptl_fast.demo.train --output DIR``.

Takes about an hour on 2 CPU cores. The log (DIR/train.jsonl) has the validation accuracy along the
way. The learning rate is constant for the last 20% of the steps, so the end of the log shows
whether longer training would still help.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ptl_fast.demo.problems import as_prompt, generate

END, PAD = "<|endoftext|>", "<|pad|>"
TRAINING_SEED, VALIDATION_SEED = 0, 1
NUM_CHECKED = 500  # validation problems of each accuracy in the log


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with 384 tokens.

    The task's words become single tokens, every digit is a token of its own, and the byte alphabet
    makes any text encodable.
    """
    tokenizer = Tokenizer(models.BPE())
    # single digits: the model should learn arithmetic on digits, not a table of two-digit tokens
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=512
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama of four layers.

    86% of its parameters are in the FFNs, so that pruning half of the neurons shows in the total.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def as_text(problem: dict[str, str]) -> str:
    """The training text: prompt and answer."""
    return f"{as_prompt(problem)} {problem['answer']}"


def batches(
    documents: list[list[int]], batch_size: int, pad: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (input_ids, labels), both int64 (batch_size, longest), right-padded; labels with -100.

    Goes through the documents once, in order; an incomplete last batch is left out.
    """
    for first in range(0, len(documents) - batch_size + 1, batch_size):
        group = documents[first : first + batch_size]
        longest = max(map(len, group))
        rows = torch.tensor([row + [pad] * (longest - len(row)) for row in group])
        lengths = torch.tensor([len(row) for row in group])
        # by length and not by token id, so that the end token keeps its label in any tokenizer
        ignored = torch.arange(longest) >= lengths[:, None]
        yield rows, rows.masked_fill(ignored, -100)


def learning_rate(step: int, num_steps: int, peak: float, num_warmup: int = 200) -> float:
    """Linear warm-up, cosine to 5% of the peak over the first 80% of the steps, then constant."""
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, 0.8 * num_steps - num_warmup))
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.inference_mode()
def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[dict[str, str]]
) -> float:
    """Percentage of problems whose greedy completion equals the reference, chain of thought too."""
    model.eval()
    # left padding: generation continues at a sequence's last position
    batch = tokenizer(
        [as_prompt(problem) for problem in problems],
        return_tensors="pt",
        padding=True,
        padding_side="left",
        return_token_type_ids=False,
    )
    output = model.generate(**batch, max_new_tokens=48, do_sample=False)  # type: ignore[misc]
    answers = tokenizer.batch_decode(
        output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    model.train()  # training goes on after the check
    matches = [
        answer.strip() == problem["answer"]
        for answer, problem in zip(answers, problems, strict=True)
    ]
    return 100 * sum(matches) / len(matches)


def train(output: Path, num_problems: int, batch_size: int, peak: float) -> None:
    """Train for one epoch on distinct problems; save model, tokenizer and log under ``output``.

    Args:
        num_problems: training problems; with ``batch_size``, they give the number of steps.
        batch_size: problems in an optimizer step.
        peak: peak learning rate.
    """
    torch.manual_seed(TRAINING_SEED)
    problems = generate(num_problems, TRAINING_SEED, "training")
    checked = generate(NUM_CHECKED, VALIDATION_SEED, "validation")
    texts = [as_text(problem) for problem in problems]
    # the task has a few dozen words: a part of the texts has them all
    tokenizer = build_tokenizer(texts[:10000])
    documents = [
        [*ids, tokenizer.eos_token_id]
        for ids in tokenizer(texts, return_token_type_ids=False)["input_ids"]
    ]
    model = build_model(tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    num_steps = len(documents) // batch_size
    output.mkdir(parents=True, exist_ok=True)
    num_tokens, start, losses = 0, time.perf_counter(), []
    with (output / "train.jsonl").open("w") as log:
        bar = tqdm(
            batches(documents, batch_size, tokenizer.pad_token_id),
            total=num_steps,
            desc="train",
            mininterval=10,
        )
        for step, (input_ids, labels) in enumerate(bar):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, num_steps, peak)
            loss = model(input_ids=input_ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            num_tokens += int((labels != -100).sum())
            losses.append(loss.item())
            # 25 times, and after the last step; the saved model is usable from the first time on
            if (step + 1) % max(1, num_steps // 25) == 0 or step + 1 == num_steps:
                record = {
                    "step": step + 1,
                    "tokens": num_tokens,
                    "learning_rate": round(optimizer.param_groups[0]["lr"], 7),
                    "loss": round(sum(losses) / len(losses), 4),
                    "exact_match": exact_match(model, tokenizer, checked),
                    "seconds": round(time.perf_counter() - start),
                }
                losses.clear()
                log.write(json.dumps(record) + "\n")
                log.flush()
                tqdm.write(json.dumps(record))
                model.save_pretrained(output)
                tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num-problems", type=int, default=250_000)
    parser.add_argument("--batch-size", type=int, default=48, help="problems a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    train(arguments.output, arguments.num_problems, arguments.batch_size, arguments.learning_rate)


if __name__ == "__main__":
    main()
