"""What the cells of benchmarks.methods.compare read: common settings, English text, and the bundled
model's problems without one skill.
"""

import argparse
import importlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.results import write_text
from benchmarks.methods.setup import Settings, Setup, demo_base
from ptl_fast.data import readers
from ptl_fast.demo.problems import OPERATIONS, Part, generate

# of each of the two tasks, so that both together take as long as the usual one of 500 problems
NUM_PROBLEMS = 250
# Their docstrings are English text that every Python has.
DOCUMENTED_MODULES = (
    "argparse asyncio base64 bisect calendar collections concurrent.futures configparser"
    " contextlib copy csv datetime"
    " decimal difflib email.message enum fractions functools gzip heapq http.client inspect io"
    " ipaddress itertools json"
    " logging mailbox math multiprocessing os pathlib pickle platform pprint random re sched"
    " shelve shutil socket"
    " statistics string subprocess tarfile tempfile textwrap threading timeit tokenize traceback"
    " typing unittest"
    " urllib.parse urllib.request uuid warnings weakref xml.dom.minidom xml.etree.ElementTree"
    " zipfile"
)


def make_setup(options: argparse.Namespace) -> Setup:
    """What all cells share. Writes the files that they read to the output folder.

    Raises:
        ValueError: the settings do not say how many tokens the cells recover on.
    """
    folder = options.output / "data"
    # --config has the last word
    base = {**_model_settings(options), **_common_settings(options.config)}
    if not base.get("recovery_tokens"):
        raise ValueError("the cells need equal recovery tokens: give recovery_tokens in --config")
    tokens = base["recovery_tokens"]
    needs_unseen = options.model is None and "unseen" in options.studies
    unseen, unseen_text = _unseen(folder, options.split or "test") if needs_unseen else (None, None)
    return Setup(
        base=base,
        english_text=Path(options.protect)
        if options.protect
        else _write_once(folder / "general.txt", english_text),
        unseen=unseen,
        unseen_text=unseen_text,
        sizes=tuple(options.sizes),
        budgets=tuple(options.budgets or (tokens // 4, tokens // 2, tokens)),
    )


def _model_settings(options: argparse.Namespace) -> Settings:
    """The bundled model's settings, or those that name another model."""
    if options.model is None:
        return demo_base(options.split or "test")
    return {"model": options.model, "data": options.data, "eval_tasks": ["nll"]}


def _common_settings(file: Path | None) -> Settings:
    """The settings of --config."""
    if file is None:
        return {}
    import yaml

    settings = yaml.safe_load(file.read_text())
    if isinstance(settings.get("eval_tasks"), str):
        settings["eval_tasks"] = settings["eval_tasks"].split(",")
    return settings


def _unseen(folder: Path, split: str) -> tuple[Settings, Path]:
    """What changes in the cells whose recovery data has no multiplication, and training problems
    that have it.
    """
    files = {
        name: _write_once(folder / f"{split}-{name}.jsonl", make)
        for name, make in unseen_problems(split).items()
    }
    tasks = [f"{name}:demo_arithmetic={files[name]}" for name in ("unseen", "seen")]
    return {"data": str(files["recovery"]), "eval_tasks": tasks}, files["unseen-training"]


def unseen_problems(split: str) -> dict[str, Callable[[], str]]:
    """What makes each file: recovery data without multiplication and training problems with it;
    problems of the split with (unseen) and without it (seen).
    """

    def problems(
        num_drawn: int, seed: int, part: Part, multiply: bool, num_kept: int | None
    ) -> str:
        # more are drawn than kept: which ones have a multiplication is known only afterwards
        drawn = generate(num_drawn, seed, part)
        kept = [each for each in drawn if (OPERATIONS["*"] in each["question"]) == multiply][
            :num_kept
        ]
        return "".join(json.dumps(each) + "\n" for each in kept)

    part: Part = "validation" if split == "validation" else "test"
    num_training, seed = readers.DEMO_NUM_PROBLEMS, readers.DEMO_SEED
    return {
        "recovery": lambda: problems(num_training, seed, "training", multiply=False, num_kept=None),
        "unseen-training": lambda: problems(
            num_training, seed, "training", multiply=True, num_kept=2000
        ),
        "unseen": lambda: problems(3000, 1, part, multiply=True, num_kept=NUM_PROBLEMS),
        "seen": lambda: problems(3000, 1, part, multiply=False, num_kept=NUM_PROBLEMS),
    }


def english_text() -> str:
    """English paragraphs with empty lines between them: docstrings of Python's standard library."""
    paragraphs: set[str] = set()
    for name in DOCUMENTED_MODULES.split():
        module = importlib.import_module(name)
        owners: list[Any] = [
            module,
            *(value for _, value in inspect.getmembers(module, inspect.isclass)),
        ]
        members = [
            value for owner in owners for _, value in inspect.getmembers(owner, inspect.isroutine)
        ]
        for text in map(inspect.getdoc, [*owners, *members]):
            paragraphs |= {
                " ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text or "")
            }
    # sentences, and no signatures, headings or examples
    english = (
        text
        for text in paragraphs
        if len(text) > 80 and re.match(r"[A-Z][a-z]+ [a-z]", text) and ">>>" not in text
    )
    # sorted by the last letters: an order that is always the same and mixes the modules
    return "\n\n".join(sorted(english, key=lambda text: text[::-1])) + "\n"


def _write_once(file: Path, make: Callable[[], str]) -> Path:
    """Write a file that is not there yet: a grid that goes on must read what it read before."""
    if not file.is_file():
        write_text(file, make())
    return file
