"""``ptl-fast report RUN``: print what a run has written about itself so far, or follow it."""

import argparse
from pathlib import Path

from ptl_fast.base import markdown
from ptl_fast.base.console import columns, tell_error, wrapped
from ptl_fast.base.run_files import RunFiles
from ptl_fast.config.checking import nearest_file
from ptl_fast.run import follow


def main(arguments: list[str]) -> int:
    """Print report.md, or follow the run; returns the exit code, 2 where there is none."""
    parser = argparse.ArgumentParser(
        prog="ptl-fast report",
        description="Print a run's report. A run writes it after every round.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder (--output)")
    parser.add_argument(
        "--follow", action="store_true", help="tell what a run in progress does, until it ends"
    )
    asked = parser.parse_args(arguments)
    if asked.follow:
        return follow.main([str(asked.run)])
    folder = asked.run
    report = RunFiles(folder).report_text
    if report.is_file():
        text, width = report.read_text(), columns()
        print(text if width is None else wrapped(markdown.fitted(text, width), width))
        return 0
    tell_error(why_none(folder))
    return 2


def why_none(folder: Path) -> str:
    """Why a folder has no report."""
    if not folder.is_dir():
        return f"no folder {folder}{nearest_file(folder)}"
    if RunFiles(folder).state_file.path.exists():
        return f"{folder} has no report yet: a run writes it after its first round"
    return f"{folder} holds no run of ptl_fast; give the folder that was --output"
