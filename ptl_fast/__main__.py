"""``python -m ptl_fast``: lists and runs the subcommands, as the command ptl-fast does."""

from ptl_fast.run.subcommands import command

if __name__ == "__main__":
    command()
