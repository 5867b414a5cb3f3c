"""The command line: ``python -m ptl_fast.compress``.

From Python, ``ptl_fast.compress`` is the function, whether this module was imported or not:
``compress(keep=0.5)`` runs, and ``compress.main(["--keep", "0.5"])`` is the command line.
"""

import sys

import ptl_fast
from ptl_fast.run import subcommands

if __name__ == "__main__":
    subcommands.command(["compress", *sys.argv[1:]])
# the import system binds what stands here to ptl_fast.compress: the function, not this module
sys.modules[__name__] = ptl_fast.compress  # type: ignore[assignment]
