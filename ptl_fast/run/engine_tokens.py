"""The smoke test of an export: the engine's greedy tokens beside transformers'.

Prompts are longer than the model's attention window, as a window in the wrong layers shows nowhere
else. At a token where transformers itself is undecided (its two likeliest differ by less than
UNDECIDED), rounding decides, and what follows in that prompt is not compared.
"""

import importlib.util
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import no_library_bars, say
from ptl_fast.base.progress import progress
from ptl_fast.model import parts
from ptl_fast.model.auto_classes import auto_class

if TYPE_CHECKING:
    from torch import Tensor

NUM_PROMPTS, NUM_TOKENS = 6, 12
BEYOND = 64  # tokens of a prompt beyond the window
WITHOUT_WINDOW = 256  # tokens of a prompt for a model without one
UNDECIDED = 0.05  # nats between the two likeliest tokens; bf16 moves logits by about as much
Greedy = Callable[[list[int], int], list[int]]
"""(prompt, number of tokens) -> at most so many greedy tokens after it, by a loaded engine."""


@dataclass(frozen=True)
class Comparison:
    """How many greedy tokens were compared, and how many were the same."""

    num_equal: int
    num_compared: int

    @property
    def is_equal(self) -> bool:
        """Whether all were the same, and there were some."""
        return 0 < self.num_compared == self.num_equal


def check(model: Path, file: Path, quantized: bool) -> bool:
    """Compare an exported file with the model it is from, and say what came of it.

    Args:
        model: the model's folder.
        quantized: whether the file's weights are.

    Returns:
        False if tokens differ in a file that is not quantized. Quantized weights may differ; what
        is told of them is no verdict. True where no engine is installed, which is told as well.
    """
    engine = next((name for name in ENGINES if importlib.util.find_spec(name)), None)
    if engine is None:
        say(
            "Not checked: to compare its tokens with transformers', pip install llama-cpp-python"
            " (or xllamacpp, which comes built)."
        )
        return True
    prompts = make_prompts(model)
    expected, decided = by_transformers(model, prompts)
    greedy = ENGINES[engine](file, max(map(len, prompts)) + NUM_TOKENS)
    made = [greedy(prompt, NUM_TOKENS) for prompt in progress(prompts, "llama.cpp: prompt")]
    found = compare(expected, decided, made)
    say(
        f"Greedy tokens equal to transformers': {found.num_equal} of {found.num_compared}, after"
        f" {len(prompts)} prompts of {len(prompts[0])} tokens ({engine})."
        + (" The weights are quantized, so some may differ." if quantized else "")
    )
    return quantized or found.is_equal


def compare(
    expected: list[list[int]], decided: list[list[bool]], found: list[list[int]]
) -> Comparison:
    """Count equal tokens of each prompt, up to the first that differs or is undecided.

    After a token that differs, the rest of its prompt counts as different.
    """
    num_equal = num_compared = 0
    for wanted, sure, got in zip(expected, decided, found, strict=True):
        for position, (token, is_sure) in enumerate(zip(wanted, sure, strict=True)):
            if got[position : position + 1] == [token]:
                num_equal, num_compared = num_equal + 1, num_compared + 1
                continue
            # another choice here is rounding, and what follows is another text
            num_compared += len(wanted) - position if is_sure else 0
            break
    return Comparison(num_equal, num_compared)


def make_prompts(model: Path) -> list[list[int]]:
    """Token ids of arithmetic, longer than the window in the model's config."""
    from transformers import AutoTokenizer

    config = parts.saved_fields(model)
    window = config.get("sliding_window") or config.get("attention_chunk_size")
    length = window + BEYOND if window else WITHOUT_WINDOW
    most = config.get("max_position_embeddings", length + NUM_TOKENS) - NUM_TOKENS
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    numbers, prompts = random.Random(0), []
    for _ in range(NUM_PROMPTS):
        text = ""
        ids: list[int] = []
        while len(ids) < length:
            for _ in range(length // 4):
                left, right = numbers.randrange(1000), numbers.randrange(1000)
                text += f"{left} plus {right} is {left + right}. "
            ids = tokenizer(text)["input_ids"]
        prompts.append(ids[: min(length, most)])
    return prompts


def by_transformers(
    model: Path, prompts: list[list[int]]
) -> tuple[list[list[int]], list[list[bool]]]:
    """Greedy tokens of each prompt in float32, and whether each was clearly the likeliest."""
    import torch
    from transformers import AutoConfig

    with no_library_bars():
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        loaded: Any = auto_class(config).from_pretrained(
            model, dtype=torch.float32, trust_remote_code=False
        )
    loaded.eval()
    every, decided = [], []
    for prompt in progress(prompts, "transformers: prompt"):
        tokens, sure = _greedy(loaded, torch.tensor([prompt]))
        every.append(tokens)
        decided.append(sure)
    return every, decided


def _greedy(model: Any, ids: "Tensor") -> tuple[list[int], list[bool]]:
    """Up to NUM_TOKENS greedy tokens after ids (1, T), and whether each was clear.

    They end before the end of the text, which engines do not return.
    """
    import torch

    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    tokens, sure, cache = list[int](), list[bool](), None
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            output = model(ids, past_key_values=cache, use_cache=True)
            best = output.logits[0, -1].log_softmax(-1).topk(2)
            if int(best.indices[0]) in ends:
                break
            tokens.append(int(best.indices[0]))
            sure.append(bool(best.values[0] - best.values[1] >= UNDECIDED))
            cache, ids = output.past_key_values, best.indices[:1].view(1, 1)
    return tokens, sure


def load_llama_cpp_python(file: Path, context: int) -> Greedy:
    """A GGUF file in llama-cpp-python, for prompts and answers of at most ``context`` tokens."""
    import torch
    from llama_cpp import Llama

    model = Llama(str(file), n_ctx=context, n_threads=torch.get_num_threads(), verbose=False)

    def greedy(prompt: list[int], number: int) -> list[int]:
        tokens = model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True)
        return [token for token, _ in zip(tokens, range(number), strict=False)]

    return greedy


def load_xllamacpp(file: Path, context: int) -> Greedy:
    """The same in xllamacpp, llama.cpp's server in this process."""
    import torch
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = context
    settings.n_parallel = 1
    settings.warmup = False
    settings.verbosity = 0
    # more threads than free cores slow llama.cpp several times, as torch
    settings.cpuparams.n_threads = torch.get_num_threads()
    settings.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(settings)
    asked = {"temperature": 0, "logprobs": 1, "ignore_eos": False, "cache_prompt": False}

    def greedy(prompt: list[int], number: int) -> list[int]:
        answer = server.handle_completions({**asked, "prompt": prompt, "n_predict": number})
        return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]

    return greedy


ENGINES: dict[str, Callable[[Path, int], Greedy]] = {
    "llama_cpp": load_llama_cpp_python,
    "xllamacpp": load_xllamacpp,
}
"""{module: (file, tokens of a prompt and its answer) -> the engine with that file loaded}."""
