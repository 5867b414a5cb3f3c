"""Write docs/models.md from the rows of benchmarks.families.run.

python -m benchmarks.documents.models_table [--check]
"""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.documents.document import ROOT, commit_cell, document_parser, write_or_check
from benchmarks.families.configs import LEFT_OUT, NUM_LAYERS
from benchmarks.families.run import FILE, UNTRIED
from benchmarks.harness.markdown import Table, to_markdown

DOCUMENT = ROOT / "docs" / "models.md"
EXACT = "exact"
# What a message says besides its reason, for whoever meets it in a run.
AROUND = (
    r"^\w+ \(model_type [\w-]+\)( is not supported)?:( neurons cannot be removed:)? ",
    r"^--model tiny \(model_type [\w-]+\) is not supported:( whole experts cannot be removed:)? ",
    r"^it is a mixture of experts \([^)]*\): ",
    r"; docs/models.md lists the types whose experts can go$",
    r"^--drop-layers 1: layers of this model \(model_type [\w-]+\) cannot go: ",
    r"; whole layers may go with --keep 1 --drop-layers N$",
)


def reason(message: str) -> str:
    """A message without what is the same in all."""
    for pattern in AROUND:
        message = re.sub(pattern, "", message)
    return message.replace("|", "\\|")


def tables(rows: list[dict[str, Any]]) -> tuple[Table, Table]:
    """(the configurations that were tried, those of which there is no tiny model)."""
    tried: Table = [["model type", "neurons", "layers", "experts", "remarks"]]
    untried: Table = [["model type", "why"]]
    for row in rows:
        if row["neurons"].startswith(UNTRIED):
            untried.append([row["label"], reason(row["neurons"].removeprefix(UNTRIED))])
        else:
            neurons, layers, experts = (
                reason(row.get(kind, "")) for kind in ("neurons", "layers", "experts")
            )
            if neurons == layers != EXACT:
                layers = "likewise"
            if neurons == experts != EXACT:
                experts = "likewise"
            tried.append([row["label"], neurons, layers, experts, row["generation"]])
    untried += [[name, why] for name, why in sorted(LEFT_OUT.items())]
    return tried, untried


INTRODUCTION = """# Which models

Tried on tiny random models ({num_layers} layers) of the causal language model types of transformers
{version}, and of variants of them: {tried} configurations. Neurons go exactly from {neurons} of
them, layers from {layers}, and whole experts from {experts} of the {mixtures} that have some; from
the others they do not go at all, and a run says why.
`make families` tries all again ({minutes} minutes on a busy core) and writes this page from
[{file}](../benchmarks/results/{file}) (commit {commit}{again}).

*exact*: the compacted model computes what the original does with the removed neurons' activations
set to zero, with the layer skipped, or with no token routed to the experts that are gone; saved,
and loaded by plain transformers with no weight missing or left over, it still does; and it
generates the same tokens with a cache and without. Otherwise the cell says why a run refuses. Of a
mixture of experts the neurons are those of every expert, and of what has the experts' width beside
them, such as shared experts. Experts are those that the router chooses from ([what is lost without
them](experts.md)).
"""


def document(results: dict[str, Any]) -> str:
    """The whole of docs/models.md."""
    tried, untried = tables(results["rows"])
    neurons, layers, experts = (
        sum(row[column] == EXACT for row in tried[1:]) for column in (1, 2, 3)
    )
    again = results.get("experts")
    introduction = INTRODUCTION.format(
        num_layers=NUM_LAYERS,
        version=results["environment"]["transformers"],
        tried=len(tried) - 1,
        neurons=neurons,
        layers=layers,
        experts=experts,
        mixtures=sum(row[3] != "" for row in tried[1:]),
        again=f"; experts: {commit_cell(again['environment'])}" if again else "",
        minutes=max(1, round(results["seconds"] / 60)),
        file=FILE.name,
        commit=commit_cell(results["environment"]),
    )
    others = "Not tried, as no tiny model of it could be made, or it is no text model:"
    return f"{introduction}\n{to_markdown(tried)}\n\n{others}\n\n{to_markdown(untried)}\n"


def main(arguments: list[str] | None = None) -> None:
    parser = document_parser(__doc__, DOCUMENT)
    parser.add_argument("--json", type=Path, default=FILE, help="file of the rows")
    options = parser.parse_args(arguments)
    if not options.document.exists():
        options.document.touch()
    write_or_check(options, document(json.loads(Path(options.json).read_text())))


if __name__ == "__main__":
    main()
