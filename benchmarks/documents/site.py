"""What mkdocs does beside its own work for the site of docs/ (mkdocs.yml, ``make docs``).

Pages link to files of the repository as ``../path``, which a site would not have: those files go
into it too, as source/path. The page of the API is made here, since its directives say nothing in a
repository.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+)(#[^)]*)?\)")
INDEX = "README.md"
AS_TEXT = (".py", ".md")  # which browsers would save instead of showing
API = {
    "Whole runs": ("ptl_fast.compress", "ptl_fast.planned_sizes", "ptl_fast.config.config.Config"),
    "A round by hand": (
        "ptl_fast.run.library.collect_statistics",
        "ptl_fast.run.library.make_plan",
        "ptl_fast.run.library.compact_",
    ),
    "Methods of your own": (
        "ptl_fast.run.library.register_scorer",
        "ptl_fast.scoring.evidence.Evidence",
        "ptl_fast.run.library.register_recovery",
        "ptl_fast.recovery.task.RecoveryTask",
        "ptl_fast.recovery.task.RecoveryResult",
    ),
}
REFERENCE = "reference.md"


def on_files(files: Any, config: Any) -> Any:
    """Add the files that pages link to, and the page of the API."""
    from mkdocs.structure.files import File

    names = {
        name for page in files.documentation_pages() for name in linked_outside(page.content_string)
    }
    for name in sorted(names):
        place = str(ROOT / name)
        files.append(File.generated(config, place_in_site(name), abs_src_path=place))
    files.append(File.generated(config, REFERENCE, content=reference()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links lead to what the site has."""
    return OUTSIDE.sub(_moved, markdown)


def linked_outside(markdown: str) -> list[str]:
    """The files of the repository, outside docs/, that a page links to."""
    names = [match[2] for match in OUTSIDE.finditer(markdown)]
    return [name for name in names if name != INDEX and (ROOT / name).is_file()]


def place_in_site(name: str) -> str:
    """Where a file of the repository is in the site."""
    return f"source/{name}{'.txt' if name.endswith(AS_TEXT) else ''}"


def _moved(match: re.Match[str]) -> str:
    text, name, anchor = match[1], match[2], match[3] or ""
    if name == INDEX:
        return f"[{text}](index.md)"
    # of a folder the site has no list
    return f"[{text}]({place_in_site(name)}{anchor})" if (ROOT / name).is_file() else text


def reference() -> str:
    """The page of the API, for mkdocstrings."""
    parts = [
        f"## {title}\n\n"
        + "\n\n".join(f"::: {name}\n    options:\n      heading_level: 3" for name in names)
        for title, names in API.items()
    ]
    introduction = (
        "What `from ptl_fast import ...` gives is supported; it is shown where it is written, from"
        " its docstrings. [Guide and examples](api.md)."
    )
    return "\n\n".join(["# API reference", introduction, *parts]) + "\n"
