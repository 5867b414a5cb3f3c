"""One self-contained HTML page: no network, no script, light or dark as the reader's system is."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c1e21;--soft:#5b6168;--rule:#d9dce0;--box:#f5f6f8;
--c0:#2563c4;--c1:#c2540a;--c2:#0f7f5a;--c3:#8b3fb0;--c4:#a8780a;--c5:#57606a}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--fg:#e6e8eb;--soft:#a2a9b2;--rule:#363b42;
--box:#1e2126;--c0:#7fb0ff;--c1:#ffab70;--c2:#5fd3a5;--c3:#d6a3f5;--c4:#e8c35a;--c5:#a2a9b2}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:70rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.2rem;margin-top:2rem}
h3{font-size:1rem;margin:0 0 .3rem}section>h3{margin-top:1.2rem}
p.how{color:var(--soft);font-size:.9rem;margin:.3rem 0}
.grid2{display:grid;gap:1rem;align-items:start;
grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr))}
.card{background:var(--box);border-radius:.5rem;padding:.8rem;min-width:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}
td.text{text-align:left}
svg{display:block;width:100%;max-width:30rem;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--fg)}
.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}
.guide{stroke:var(--fg);stroke-dasharray:4 3}.frame{fill:none;stroke:var(--rule)}
.line{fill:none;stroke-width:2}.cell{fill:var(--c1)}
.c0{stroke:var(--c0);color:var(--c0)}.c1{stroke:var(--c1);color:var(--c1)}
.c2{stroke:var(--c2);color:var(--c2)}.c3{stroke:var(--c3);color:var(--c3)}
.c4{stroke:var(--c4);color:var(--c4)}.c5{stroke:var(--c5);color:var(--c5)}
.dot,.fill{fill:currentColor}.fill{stroke:none}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0;margin:.3rem 0;
font-size:.85rem}
.key{display:inline-block;width:.8em;height:.8em;border-radius:.2em;margin-right:.4em}
.dashed{height:0;width:1.6em;border-top:2px dashed var(--fg);border-radius:0;vertical-align:middle}
.k0{background:var(--c0)}.k1{background:var(--c1)}.k2{background:var(--c2)}
.k3{background:var(--c3)}.k4{background:var(--c4)}.k5{background:var(--c5)}
pre.said{white-space:pre-wrap;padding:0;margin:0}
pre{overflow-x:auto;background:var(--box);padding:.6rem;border-radius:.5rem;font-size:.85rem}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of these parts, which are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A section with a heading; nothing if it has no content."""
    content = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else ""


def subsection(title: str, content: str) -> str:
    """A part of a section, with a smaller heading."""
    return f"<h3>{escape(title)}</h3>\n{content}"


def quoted(title: str, text: str) -> str:
    """A card with somebody's text, its lines as they are or folded."""
    return f'<div class="card"><h3>{escape(title)}</h3><pre class="said">{escape(text)}</pre></div>'


def card(title: str, chart: str, how: str) -> str:
    """A chart with its name, and a line that says how to read it."""
    return f'<div class="card"><h3>{escape(title)}</h3>{chart}{note(how)}</div>'


def cards(parts: Sequence[str]) -> str:
    """Cards side by side where there is room."""
    there = [part for part in parts if part]
    return f'<div class="grid2">{"".join(there)}</div>' if there else ""


def note(text: str) -> str:
    """A line in small print."""
    return f'<p class="how">{escape(text)}</p>'


def paragraphs(lines: Sequence[str]) -> str:
    """A list of sentences."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if lines else ""


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is too wide; ``rows[0]`` is the header."""
    header, *others = rows
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in others
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """Content that opens by a click, without a script."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def preformatted(text: str) -> str:
    """Text as it is, such as a report in markdown."""
    return f"<pre>{escape(text)}</pre>"
