"""The command ``ptl-fast``, also ``python -m ptl_fast``: a subcommand for each thing to do.

A subcommand is a module with ``main(arguments) -> exit code``, which is imported when it is asked
for: the list of them answers at once.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from ptl_fast.base import console
from ptl_fast.base.ending import leave
from ptl_fast.config.checking import nearest
from ptl_fast.run import failures


@dataclass(frozen=True, kw_only=True)
class Subcommand:
    """Something that ptl-fast does."""

    module: str
    """Its module; in it ``function``."""
    help: str
    """What it does, in one line."""
    arguments: str
    """What it takes, for the list."""
    function: str = "main"


SUBCOMMANDS = {
    "compress": Subcommand(
        module="ptl_fast.run.command",
        arguments="--model NAME --data FILE ...",
        help="make a model smaller, or go on with a run",
    ),
    "estimate": Subcommand(
        module="ptl_fast.run.command",
        function="estimate",
        arguments="--model NAME ...",
        help="what compress would do: sizes, memory, hours; reads no weights",
    ),
    "report": Subcommand(
        module="ptl_fast.run.show_report",
        arguments="RUN [--follow]",
        help="print a run's report, or tell what one in progress does until it ends",
    ),
    "compare": Subcommand(
        module="ptl_fast.run.compare",
        arguments="RUN RUN ...",
        help="put runs side by side: size, quality and settings of every round",
    ),
    "inspect": Subcommand(
        module="ptl_fast.run.inspect",
        arguments="RUN --layer L [--neuron N]",
        help="say why a neuron went or stayed, or what a layer lost",
    ),
    "export": Subcommand(
        module="ptl_fast.run.export",
        arguments="RUN --to gguf",
        help="write a result for llama.cpp, and compare its tokens",
    ),
    "completion": Subcommand(
        module="ptl_fast.run.completion",
        arguments="bash|zsh",
        help='complete subcommands and flags with TAB: eval "$(ptl-fast completion bash)"',
    ),
}


def command(arguments: Sequence[str] | None = None) -> NoReturn:
    """``main`` in a process that is this and nothing else, which it ends: the installed command
    ptl-fast, ``python -m``, and each rank of a launcher.
    """
    leave(main(arguments))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; list them without one.

    Args:
        arguments: None takes the command line's.

    Returns:
        The exit code: 2 where there is no such subcommand.
    """
    console.open_streams()
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = _run(name, rest)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        console.lost_output()
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # compress tells its own, unless it was to show their tracebacks
        if "--debug" in rest:
            raise
        console.tell_error(failures.told_by_reader(error))
        return 2 if failures.is_mendable(error) else 1


def _run(name: str, rest: list[str]) -> int:
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"ptl-fast {version()}")
        return 0
    subcommand = SUBCOMMANDS.get(name)
    if subcommand is None:
        hint = nearest(name, SUBCOMMANDS)
        console.tell_error(f"there is no ptl-fast {name}; choose {', '.join(SUBCOMMANDS)}{hint}")
        return 2
    module = importlib.import_module(subcommand.module)
    run: Callable[[list[str]], int] = getattr(module, subcommand.function)
    return run(rest)


def overview() -> str:
    """The list of subcommands."""
    widest = max(len(f"{name} {each.arguments}") for name, each in SUBCOMMANDS.items())
    lines = [
        f"  {f'{name} {each.arguments}':<{widest}}  {each.help}"
        for name, each in SUBCOMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: ptl-fast SUBCOMMAND ...",
            "",
            "Make a language model smaller for reasoning, gradually.",
            "",
            *lines,
            "",
            "ptl-fast SUBCOMMAND --help says more; ptl-fast --version says which one this is.",
        ]
    )


def version() -> str:
    """The installed package's version."""
    try:
        return importlib.metadata.version("ptl_fast")
    except importlib.metadata.PackageNotFoundError:
        return "from its sources, not installed"
