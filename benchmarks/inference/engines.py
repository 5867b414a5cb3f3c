"""Does another engine compute a compressed model as transformers does, and how much faster is it?

    python -m benchmarks.inference.engines xllamacpp DENSE=DENSE.gguf SMALL=SMALL.gguf --json FILE

Each pair is a model folder and what the engine reads. The greedy tokens of each are compared with
those of transformers in float32, after prompts longer than the attention window, as the export
does it, and with --cut also after their first tokens alone. With --lengths the first model is then
timed beside each other one, by turns: a prompt with its first token, and the tokens after it one by
one (a run with them less a run without, in the same turn). The prediction is the ratio of FLOPs for
prompts, and of the bytes of weights and cache for the tokens after them.
"""

import argparse
import functools
import importlib.metadata
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.harness import clock
from benchmarks.harness.environment import environment
from benchmarks.harness.markdown import to_markdown
from benchmarks.harness.results import errors_in_one_line, write_json
from benchmarks.harness.turns import forth_and_back, median_and_spread
from benchmarks.inference.model_size import ModelSize
from ptl_fast.run import engine_tokens

NEW_TOKENS = 32
COLUMNS = ["prompt", "what", "dense s", "pruned s", "times as fast", "p20 to p80", "predicted"]


def load_ctranslate2(folder: Path, context: int, stepwise: bool = False) -> engine_tokens.Greedy:
    """A converted folder in CTranslate2, in float32.

    Args:
        stepwise: whether prompts are read a token at a time, which the engine does where it returns
            them. Only there does it keep a window: a prompt in one pass attends to all before it.
    """
    import ctranslate2
    from tokenizers import Tokenizer

    threads = torch.get_num_threads()
    model = ctranslate2.Generator(
        str(folder), compute_type="float32", inter_threads=1, intra_threads=threads
    )
    # it wants tokens by name; any tokenizer of the same vocabulary would do
    names = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def greedy(prompt: list[int], number: int) -> list[int]:
        words = [names.id_to_token(token) for token in prompt]
        result = model.generate_batch(
            [words],
            max_length=number + stepwise * len(prompt),
            min_length=number + stepwise * len(prompt),
            sampling_topk=1,
            include_prompt_in_result=stepwise,
            end_token=[],
        )
        return list(result[0].sequences_ids[0])[stepwise * len(prompt) :]

    return greedy


def load_openvino(folder: Path, context: int) -> engine_tokens.Greedy:
    """An exported folder in OpenVINO's runtime, with float32 arithmetic and cache."""
    import numpy
    import openvino

    threads = torch.get_num_threads()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "NUM_STREAMS": 1,
    }
    model = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", settings)
    request = model.create_infer_request()
    asked = {name for each in model.inputs for name in each.names}

    def greedy(prompt: list[int], number: int) -> list[int]:
        request.reset_state()
        tokens, ids, seen = list[int](), prompt, 0
        for _ in range(number):
            fed = {
                "input_ids": numpy.array([ids]),
                "attention_mask": numpy.ones((1, seen + len(ids)), dtype=numpy.int64),
                "position_ids": numpy.arange(seen, seen + len(ids))[None],
                "beam_idx": numpy.zeros(1, dtype=numpy.int32),
            }
            given = {name: value for name, value in fed.items() if name in asked}
            logits = request.infer(given, share_inputs=True, share_outputs=True)["logits"]
            tokens.append(int(logits[0, -1].argmax()))
            seen, ids = seen + len(ids), tokens[-1:]
        return tokens

    return greedy


ENGINES: dict[str, Callable[[Path, int], engine_tokens.Greedy]] = {
    **engine_tokens.ENGINES,
    "ctranslate2": load_ctranslate2,
    "ctranslate2_stepwise": functools.partial(load_ctranslate2, stepwise=True),
    "openvino": load_openvino,
}
PACKAGES = {"llama_cpp": "llama-cpp-python", "ctranslate2_stepwise": "ctranslate2"}
ALL_LOGITS = {"openvino"}
"""Engines whose model file computes the logits of every position of a prompt."""


def compared(
    folder: Path,
    file: Path,
    load: Callable[[Path, int], engine_tokens.Greedy],
    length: int | None = None,
) -> dict[str, Any]:
    """A row of tokens: how many are equal to transformers', of how many.

    Args:
        length: of the prompts, from their beginning; None: whole.
    """
    prompts = [prompt[:length] for prompt in engine_tokens.make_prompts(folder)]
    greedy = load(file, len(prompts[0]) + engine_tokens.NUM_TOKENS)
    made = [greedy(prompt, engine_tokens.NUM_TOKENS) for prompt in prompts]
    found = engine_tokens.compare(*engine_tokens.by_transformers(folder, prompts), made)
    return {
        "model": folder.name,
        "file": file.name,
        "prompts": len(prompts),
        "prompt_length": len(prompts[0]),
        "equal": found.num_equal,
        "compared": found.num_compared,
    }


def timed(
    pair: list[engine_tokens.Greedy], prompt: list[int], turns: int
) -> dict[str, list[list[float]]]:
    """{"prompt": ..., "tokens": ...}: seconds [dense, pruned] of every turn.

    Raises:
        ValueError: an engine ended an answer before its length.
    """
    for greedy in pair:
        greedy(prompt, 2)  # warms up
    seconds: dict[str, list[list[float]]] = {"prompt": [], "tokens": []}
    for turn in range(turns):
        first, after = [0.0, 0.0], [0.0, 0.0]
        for which in forth_and_back([0, 1], turn):
            first[which] = _seconds(pair[which], prompt, 1)
            after[which] = _seconds(pair[which], prompt, 1 + NEW_TOKENS) - first[which]
        seconds["prompt"].append(first)
        seconds["tokens"].append(after)
    return seconds


def _seconds(greedy: engine_tokens.Greedy, prompt: list[int], number: int) -> float:
    start = clock.now()
    tokens = greedy(prompt, number)
    seconds = clock.now() - start
    if len(tokens) != number:
        raise ValueError(f"{len(tokens)} tokens of {number}: the answer ended too early")
    return seconds


def predicted(folders: list[Path], dtype: torch.dtype, length: int, whole: bool) -> dict[str, Any]:
    """{"prompt": ..., "tokens": ...}: how many times as fast the pruned model must be.

    Args:
        folders: of the dense model and the pruned one.
        dtype: of the weights that the engine reads.
        length: of the prompt, in tokens.
        whole: whether the logits of all its positions are computed.
    """
    work: dict[str, list[float]] = {"prompt": [], "tokens": []}
    for folder in folders:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        size = ModelSize(config, dtype)
        others = 2 * config.hidden_size * config.vocab_size * (length - 1) if whole else 0
        work["prompt"].append(size.prefill(1, length)["flops"] + others)
        work["tokens"].append(size.decode(1, length + NEW_TOKENS // 2)["num_bytes"])
    return {name: dense / pruned for name, (dense, pruned) in work.items()}


def speeds(
    engine: str, pairs: list[tuple[Path, Path]], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield the rows of times, of the first model and each other one."""
    longest = max(options.lengths) + NEW_TOKENS + 1
    tokens = _long_prompt(pairs[0][0], max(options.lengths))
    dense = ENGINES[engine](pairs[0][1], longest)
    for folder, file in pairs[1:]:
        both = [dense, ENGINES[engine](file, longest)]
        for length in options.lengths:
            ratios = predicted(
                [pairs[0][0], folder],
                getattr(torch, options.dtype),
                length,
                engine in ALL_LOGITS,
            )
            for what, seconds in timed(both, tokens[:length], options.turns).items():
                speedup, p20, p80 = median_and_spread([one / other for one, other in seconds])
                yield {
                    **{"model": folder.name, "prompt_length": length, "what": what},
                    **{"seconds": seconds, "speedup": speedup, "p20": p20, "p80": p80},
                    "predicted": ratios[what],
                }


def _long_prompt(folder: Path, length: int) -> list[int]:
    """A prompt of this length, of the texts that are compared."""
    tokens = [token for prompt in engine_tokens.make_prompts(folder) for token in prompt]
    return (tokens * (1 + length // len(tokens)))[:length]


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the printed table of times."""
    dense, pruned = (statistics.median(times) for times in zip(*row["seconds"], strict=True))
    return [
        str(row["prompt_length"]),
        {"prompt": "prompt", "tokens": f"{NEW_TOKENS} tokens after it"}[row["what"]],
        f"{dense:.3f}",
        f"{pruned:.3f}",
        f"{row['speedup']:.2f}",
        f"{row['p20']:.2f} to {row['p80']:.2f}",
        f"{row['predicted']:.2f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=list(ENGINES))
    parser.add_argument("pairs", nargs="+", metavar="FOLDER=FILE", help="the dense model first")
    parser.add_argument("--cut", type=int, help="compares also after this many tokens of a prompt")
    parser.add_argument("--lengths", nargs="*", type=int, default=[], help="of timed prompts")
    parser.add_argument("--turns", type=int, default=9, help="at least 2")
    parser.add_argument("--dtype", default="float32", help="of the weights in the engine's files")
    parser.add_argument("--json", type=Path, help="where the results go")
    clock.add_flag(parser)
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        clock.choose(options.clock)
        pairs = [(Path(a), Path(b)) for a, _, b in (pair.partition("=") for pair in options.pairs)]
        about = environment("cpu")
        version = importlib.metadata.version(PACKAGES.get(options.engine, options.engine))
        rows = []
        for pair in pairs:
            for length in [None, options.cut] if options.cut else [None]:
                rows.append(row := compared(*pair, ENGINES[options.engine], length))
                print(
                    f"{row['file']}: {row['equal']} of {row['compared']} tokens equal after prompts"
                    f" of {row['prompt_length']}",
                    flush=True,
                )
        times = list(speeds(options.engine, pairs, options)) if options.lengths else []
        if times:
            print(to_markdown([COLUMNS, *map(cells, times)]))
        if options.json:
            results = {"engine": options.engine, "version": version, "dtype": options.dtype}
            write_json(options.json, {**about, **results, "tokens": rows, "times": times})


if __name__ == "__main__":
    main()
