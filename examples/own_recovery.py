"""A training step of your own between rounds, in a run that otherwise is ptl_fast's: it can be
killed and goes on, and its result is compared and saved as any other.

    python examples/own_recovery.py [OUTPUT]
"""

import sys

import torch

from ptl_fast import RecoveryTask, compress, register_recovery
from ptl_fast.data.batching import sequence_batches

BATCH = 8


@register_recovery("own")
def recover(model: torch.nn.Module, task: RecoveryTask) -> None:
    """Train in place on the round's tokens; put your own training here."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    generator = torch.Generator().manual_seed(task.seed)
    num_steps = max(1, task.num_tokens // (BATCH * task.sequence_length))
    rows = torch.randint(len(task.tokens), (num_steps * BATCH,), generator=generator)
    model.train()
    # packed documents do not see one another, and padding has no label
    for batch in sequence_batches(model, task.tokens.rows(rows), BATCH):
        model(**batch.inputs, labels=batch.labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(output: str, **settings: object) -> None:
    def told(record: dict, model: torch.nn.Module) -> None:
        print(f"round {record['round']}: width {model.config.intermediate_size}, {record['eval']}")

    settings = {"preset": "demo", "recovery": "own", "recovery_split": "growing", **settings}
    compress(**settings, output=output, callbacks=[told])


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "runs/own-recovery")
