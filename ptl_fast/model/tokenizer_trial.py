"""A trial of a model's tokenizer and chat template, in a child process with limits.

Both are programs that come with a model: replacements that double a text forty times abort the
process, and a template's loops and ``'x' * 10**10`` take its time and memory. The child has neither
to lose: it encodes a page of text, writes a short chat, and what it does not survive is refused
before the model is loaded.
"""

import functools
import json
import os
import subprocess
import sys
from typing import Any

from ptl_fast.base import restricted_child

CPU_SECONDS = 10
MEMORY_BYTES = 3 * 2**30
NUM_OPEN_FILES = 64
# A tokenizer of single bytes makes 4 tokens of a character; a template's own text, such as a list
# of rules, is a few kB.
MAX_TOKENS_PER_CHARACTER = 16
MAX_CHAT_CHARACTERS = 2**20
PAGE = "".join(map(chr, [*range(9, 11), *range(32, 127), *range(160, 600), 0x4E2D, 0x1F600])) * 4
EXCHANGE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
CHILD = "from ptl_fast.model.tokenizer_trial import serve; serve()"
TOO_MUCH = (
    f"it took more than {CPU_SECONDS} seconds or {MEMORY_BYTES // 2**30} GiB for"
    " {what}, or ended the process ({how})"
)


@functools.lru_cache(maxsize=64)
def try_tokenizer(definition: str) -> str:
    """What is wrong with a tokenizer.json, given as text; empty if nothing is."""
    return _ask({"tokenizer": definition}, "a page of text")


@functools.lru_cache(maxsize=64)
def try_template(template: str) -> str:
    """What is wrong with a chat template; empty if nothing is, or if it refuses the chat."""
    return _ask({"template": template}, "a chat of two words")


def _ask(job: dict[str, str], what: str) -> str:
    """The child's answer: what is wrong."""
    code = f"import sys; sys.path[:] = {sys.path!r}; {CHILD}"
    # no threads, which the child may not start
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.stdout.startswith("tried:"):
        return done.stdout.removeprefix("tried:").strip()
    # a signal's number, or what a library said before it gave up
    told = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    how = f"signal {-done.returncode}" if done.returncode < 0 else (told or ["no reason"])[-1]
    return TOO_MUCH.format(what=what, how=how)


def serve() -> None:
    """The child: try what standard input holds as JSON, and print what is wrong with it."""
    job = json.loads(sys.stdin.read())
    trial = _template if "template" in job else _tokenizer
    found = trial(*job.values())
    # at once: a library's threads would wait for ever
    os.write(1, f"tried:{found}".encode())
    os._exit(0)


def _restrict() -> None:
    restricted_child.die_with_parent()
    restricted_child.restrict(MEMORY_BYTES, NUM_OPEN_FILES, CPU_SECONDS)


def _tokenizer(definition: str) -> str:
    from tokenizers import Tokenizer

    _restrict()
    try:
        tokenizer = Tokenizer.from_str(definition)
    except Exception:  # whoever loads it says why
        return ""
    num_tokens = len(tokenizer.encode(PAGE).ids)
    if num_tokens > MAX_TOKENS_PER_CHARACTER * len(PAGE):
        return f"it makes {num_tokens} tokens of {len(PAGE)} characters"
    return ""


def _template(template: str) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    _restrict()
    longest = 0
    for turns, asks in ((EXCHANGE, False), (EXCHANGE[:1], True)):
        try:
            written: Any = render_jinja_template(
                [turns], chat_template=template, add_generation_prompt=asks
            )
        except MemoryError:
            raise
        except Exception:  # it refuses this chat; whoever writes another is told why
            continue
        longest = max(longest, len(written[0][0]))
    if longest > MAX_CHAT_CHARACTERS:
        return f"it writes {longest} characters for a chat of two words"
    return ""
