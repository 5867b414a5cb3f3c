"""``python -m ptl_fast``: lists and runs the subcommands, as the command ptl-fast does."""

import sys

from ptl_fast.run.subcommands import main

if __name__ == "__main__":
    sys.exit(main())
