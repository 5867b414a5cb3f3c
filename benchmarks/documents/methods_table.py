"""Write the sections of docs/paper.md on pruning methods, from the rows of
benchmarks.methods.compare.

    python -m benchmarks.documents.methods_table [--check]

The figures that a section shows are those that lie in --figures, where
``python -m benchmarks.methods.compare --render --json FILE --tables DIR`` writes them.
"""

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.documents.document import RESULTS, ROOT, document_parser, write_or_check
from benchmarks.harness.markdown import replace_sections
from benchmarks.methods.tables import HEADINGS, origin, sections_of

DOCUMENT = ROOT / "docs" / "paper.md"
ROWS, FIGURES = RESULTS / "compare_demo.json", RESULTS / "compare_demo"


def sections(results: dict[str, Any], figures: Path, document: Path) -> dict[str, str]:
    """By name, a section's text: figure if there is one, table, and where it was measured."""
    contents = {}
    for name, table in sections_of(results).items():
        file = figures / f"{name}.png"
        image = f"![{HEADINGS[name]}]({os.path.relpath(file, document.parent)})\n\n"
        picture = image if file.is_file() else ""
        contents[name] = f"{picture}{table}\n\n{origin(results)}"
    return contents


def main(arguments: list[str] | None = None) -> None:
    parser = document_parser(__doc__, DOCUMENT)
    parser.add_argument("--json", type=Path, default=ROWS, help="file of the rows")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder of the figures")
    options = parser.parse_args(arguments)
    contents = sections(json.loads(options.json.read_text()), options.figures, options.document)
    write_or_check(options, replace_sections(options.document.read_text(), contents, HEADINGS))


if __name__ == "__main__":
    main()
