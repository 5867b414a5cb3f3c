"""What the site has beside the pages: files that they link to, and the page of the API."""

import re
from pathlib import Path

from benchmarks.documents import site

ROOT = Path(__file__).parents[3]


def test_links_out_of_the_pages_lead_to_copies_in_the_site() -> None:
    page = "[a](../examples/own_loop.py) [b](../README.md) [c](../benchmarks/results) [d](goals.md)"
    assert site.on_page_markdown(page) == (
        "[a](source/examples/own_loop.py.txt) [b](index.md) c [d](goals.md)"
    )
    assert site.linked_outside(page) == ["examples/own_loop.py"]


def test_the_reference_names_what_is_there() -> None:
    names = re.findall(r"^::: (.+)$", site.reference(), flags=re.MULTILINE)
    assert len(names) >= 10
    for name in names:
        module, _, attribute = name.rpartition(".")
        file = ROOT / f"{module.replace('.', '/')}.py"
        file = file if file.is_file() else ROOT / module.replace(".", "/") / "__init__.py"
        assert re.search(rf"^(def|class) {attribute}\b", file.read_text(), flags=re.MULTILINE), name
