"""What the command line does with its flags, and how it tells what went wrong."""

import signal
import sys

from ptl_fast.base import console, distributed, interruption, progress
from ptl_fast.base.errors import NotJoined, OutOfMemory
from ptl_fast.base.memory import is_out_of_memory
from ptl_fast.run import failures, start
from ptl_fast.run.subcommands import version


def main(arguments: list[str]) -> int:
    """Run what the flags say.

    Returns:
        The exit code: 2 for what the user can mend and 1 for any other failure, told in one line;
        128 and the signal's number for an interruption.
    """
    if "--version" in arguments:
        print(f"ptl-fast {version()}")
        return 0
    debug = "--debug" in arguments
    with interruption.handling():
        try:
            config = start.parse(arguments)
            debug = config.run.debug
            with console.silent() if config.run.quiet else progress.shown():
                start.run(config, quiet=not debug)
        except Exception as error:
            if debug:
                raise
            lacks_memory = is_out_of_memory(error) or isinstance(error, OutOfMemory)
            # the other ranks say the same, but may alone have had too little memory, or no group
            is_alone = lacks_memory or isinstance(error, NotJoined)
            if distributed.launched_rank() == 0 or is_alone:
                console.tell_error(failures.told(error))
            return 2 if lacks_memory or failures.is_mendable(error) else 1
        except KeyboardInterrupt:
            return _interrupted("interrupted", signal.SIGINT)
        except interruption.Stopped as stopped:
            return _interrupted(str(stopped), stopped.number)
    return 0


def estimate(arguments: list[str]) -> int:
    """The same flags, of which only the plan is printed."""
    return main([*arguments, "--dry-run"])


def _interrupted(what: str, number: int) -> int:
    print(f"{what}; {interruption.GO_ON}", file=sys.stderr)
    return 128 + number
