"""Write docs/options.md, the reference of all settings, from the fields of ptl_fast/config.

    python -m benchmarks.documents.options_table [--check]

A setting's text is its docstring, as in --help; a new field is a new row.
"""

import dataclasses
import re
import typing
from typing import Any

import docstring_parser

from benchmarks.documents.document import ROOT, document_parser, write_or_check
from benchmarks.harness.markdown import replace_sections, to_markdown
from ptl_fast.config.checking import flag
from ptl_fast.config.config import GROUPS, HINTS

DOCUMENT = ROOT / "docs" / "options.md"


def sections() -> dict[str, str]:
    """{group: its sentence and table of settings}."""
    return {name: _section(group) for name, group in GROUPS.items()}


def _section(group: Any) -> str:
    described = docstring_parser.parse_from_object(group)
    help_of = {item.args[1]: item.description or "" for item in described.params}
    rows = [
        [f"`{flag(each.name)}`", _default(each), _text(help_of.get(each.name, ""), each.name)]
        for each in dataclasses.fields(group)
    ]
    table = to_markdown([["setting", "default", "what it does"], *rows])
    return f"{described.short_description}\n\n{table}"


def _default(field: "dataclasses.Field[Any]") -> str:
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    if value is None:
        return ""
    if isinstance(value, list):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _text(text: str, name: str) -> str:
    """The help text in one line, and the choices of a setting that has some."""
    # what markdown would take for a table's border, a link, HTML or emphasis
    line = re.sub(r"([|\[<*])", r"\\\1", " ".join(text.split()))
    hint = HINTS[name]
    options = [hint, *typing.get_args(hint)]
    choices = next((typing.get_args(each) for each in options if _is_choice(each)), ())
    listed = ", ".join(f"`{each}`" for each in choices)
    return f"{line} Choices: {listed}." if choices else line


def _is_choice(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def main(arguments: list[str] | None = None) -> None:
    options = document_parser(__doc__, DOCUMENT).parse_args(arguments)
    text = replace_sections(
        options.document.read_text(), sections(), {name: name for name in GROUPS}
    )
    write_or_check(options, text)


if __name__ == "__main__":
    main()
