"""Use ptl_fast as a library: a Prune-Tune Loop around a training step of your own.

    python examples/own_loop.py

Prunes the bundled demo model to half of its FFN width in three rounds. Each round scores neurons on
text, removes some, fits the others' down projection by least squares to make up for them
(compensation), and trains with plain PyTorch. Runs on a CPU, and writes no files.
"""

import torch

from ptl_fast.config.model import ModelSettings
from ptl_fast.data import packing, readers, sampling
from ptl_fast.data.batching import sequence_batches
from ptl_fast.model.families import find_family
from ptl_fast.model.loading import DEMO, load_model, load_tokenizer
from ptl_fast.pruning.compact import compact_
from ptl_fast.pruning.compensate import compensate_
from ptl_fast.pruning.plan import plan_neurons
from ptl_fast.pruning.schedule import Round
from ptl_fast.scoring.gram import GramMatrices
from ptl_fast.scoring.reconstruction import prices

WIDTHS = (640, 512, 384)  # FFN width after each round; the demo model has 768
# optimizer steps per round, tokens per packed sequence, sequences per batch
STEPS, LENGTH, BATCH = 60, 128, 8


def main() -> None:
    model, tokenizer = load_model(DEMO, ModelSettings(), "cpu"), load_tokenizer(DEMO)
    family = find_family(model)
    documents = readers.load_documents(DEMO, limit=4000)
    ids = list(sampling.tokenize(documents, tokenizer))
    tokens = packing.pack(ids, LENGTH, packing.padding_token(tokenizer))
    # text to score neurons on and to fit the down projections to
    calibration = tokens.first(8192)
    for number, width in enumerate(WIDTHS, start=1):
        # of the model as it is now: scores from an earlier round would miss what training changed
        grams = GramMatrices(model, family, calibration, BATCH)
        step = Round(number=number, kind="neurons", width=width, num_layers=4, recovery_share=0.0)
        plan = plan_neurons(step, prices(grams), None, "reconstruction")
        assert plan.kept_neurons is not None
        # in this order: the fit needs the neurons that compaction then removes
        compensate_(grams.downs, grams, plan.kept_neurons, grams.means)
        compact_(model, family, plan)
        # the model is an ordinary transformers model with a smaller intermediate_size
        loss = train(model, tokens, number)
        print(
            f"round {number}: width {width}, {model.num_parameters():,} parameters, loss {loss:.3f}"
        )


def train(model: torch.nn.Module, tokens: packing.PackedTokens, seed: int) -> float:
    """Train for STEPS steps and return the last loss; put your own training here."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    loss = torch.zeros(())
    model.train()
    for batch in sequence_batches(model, tokens.rows(order[: STEPS * BATCH]), BATCH):
        loss = model(**batch.inputs, labels=batch.labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return loss.item()


if __name__ == "__main__":
    main()
