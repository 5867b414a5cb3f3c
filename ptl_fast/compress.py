"""The command line: ``python -m ptl_fast.compress``.

Do not import this module: it would replace the function ``ptl_fast.compress`` as an attribute of
the package. From Python, ``from ptl_fast import compress`` is the function, and
``compress.main(["--keep", "0.5"])`` is this command.
"""

import sys

from ptl_fast.run.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
