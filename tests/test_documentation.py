"""The pages: every link leads somewhere, each has its place, and what they quote is in the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.documents import site

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def links(page: Path) -> Iterator[tuple[str, str]]:
    """(file, anchor) of each link that is not on the web; an empty file is the page itself."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for match in LINK.finditer(text):
        target = match[1] or match[2]
        if not target.startswith(("http:", "https:", "mailto:")):
            name, _, anchor = target.partition("#")
            yield name, anchor


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.stem
)
def test_every_link_leads_somewhere(page: Path) -> None:
    for name, anchor in links(page):
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {name}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {name}#{anchor}"


def test_every_page_has_a_place_in_the_site() -> None:
    def names(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [name for part in parts for name in names(part)]  # type: ignore[attr-defined]

    placed = names(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(placed) == sorted([*(page.name for page in PAGES), site.REFERENCE])


def test_readme_names_every_page() -> None:
    named = {name for name, _ in links(ROOT / "README.md")}
    missing = {page.name for page in PAGES} - {Path(name).name for name in named}
    assert missing == {"index.md"}


def templates() -> list[str]:
    """Every text in the code, with … for what is filled in."""
    found = []
    for file in (ROOT / "ptl_fast").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = node.values
                found.append(
                    "".join(
                        str(each.value) if isinstance(each, ast.Constant) else "…" for each in parts
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_that_are_explained_are_printed() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    assert len(messages) > 25
    printed = templates()
    for message in messages:
        pattern = ".*".join(re.escape(part.strip()) for part in message.split("…"))
        assert any(re.search(pattern, each, re.DOTALL) for each in printed), message
