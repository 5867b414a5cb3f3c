"""Have the original model answer training problems itself: calibration data for
benchmarks.methods.reasoning where no --traces are given.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.results import write_text
from benchmarks.methods.reasoning_problems import Problems
from ptl_fast.data.generation import Sampling, answer_batch, by_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def make_traces(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    problems: Problems,
    file: Path,
    batch_size: int,
    max_tokens: int,
) -> None:
    """Answer every problem greedily, and write rows {problem, answer, num_tokens, finished}.

    The file is replaced after every batch; one that was interrupted goes on behind its last batch.
    """
    prompts = problems.prompts(tokenizer)
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    sampling = Sampling(max_new_tokens=max_tokens)
    for indices in by_length(prompts, batch_size)[len(done) // batch_size :]:
        answers = answer_batch(model, tokenizer, [prompts[index] for index in indices], sampling)
        for index, answer in zip(indices, answers, strict=True):
            text = str(tokenizer.decode(answer.tokens, skip_special_tokens=True))
            done.append(
                {
                    "problem": index,
                    "answer": text,
                    "num_tokens": len(answer.tokens),
                    "finished": answer.finished,
                }
            )
        write_text(file, "".join(json.dumps(row) + "\n" for row in done))
        print(f"{file.name}: {len(done)} of {len(prompts)} problems answered", flush=True)
