"""The command line: ``python -m ptl_fast.compress``.

From Python, ``from ptl_fast import compress`` is the function, and ``compress.main(["--keep", "0.5"])``
this command; do not import this module, or the function is hidden behind it.
"""

import sys

from ptl_fast.run.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
