"""Write the tables of docs/paper.md: our counts beside the FLOPs and hours that arXiv 2602.04919
prints.

    python -m benchmarks.documents.flops_table [--check]

The paper prints FLOPs per sample (T) of the original and the compacted models, but neither the
samples' lengths nor the compacted shapes. A length is therefore solved from the original's number,
and the same length then tested on the compacted shape.
"""

from types import SimpleNamespace
from typing import Any

from benchmarks.documents.document import ROOT, document_parser, write_or_check
from benchmarks.harness.markdown import Table, TableMakers, fill_tables
from ptl_fast.config.config import Config
from ptl_fast.config.presets import shipped_config
from ptl_fast.model import flops
from ptl_fast.pruning.schedule import Round
from ptl_fast.run import dry_run, gpus
from ptl_fast.run.rounds import make_schedule
from ptl_fast.run.start import parse

DOCUMENT = ROOT / "docs" / "paper.md"
# {preset: {benchmark: (original, PTL-5B, ShortGPT)}}, FLOPs per sample in T, as the paper prints
# them
PAPER: dict[str, dict[str, tuple[float, float, float | None]]] = {
    "llama3-8b-paper": {
        "GSM8K": (9.1, 6.3, 6.4),
        "Minerva Math": (8.5, 5.9, 6.0),
        "MATH-500": (8.5, 5.9, 6.0),
    },
    "llama3-8b-code-paper": {"MBPP": (2.8, 1.9, 2.0)},
    "gemma2-9b-paper": {
        "GSM8K": (11.5, 6.1, 7.6),
        "Minerva Math": (10.5, 5.6, 6.8),
        "MATH-500": (10.4, 5.5, 6.7),
    },
    "qwen2.5-7b-rl-paper": {
        "GSM8K": (9.0, 4.9, None),
        "Minerva Math": (8.2, 4.5, None),
        "MATH-500": (8.2, 4.5, None),
    },
}
PAPER_HOURS = {"llama3-8b-paper": 12, "gemma2-9b-paper": 20, "qwen2.5-7b-rl-paper": 64}
# (width, layers) beside the preset's own that also comes near the published numbers
OTHER_SHAPES = {"gemma2-9b-paper": (9336, 30), "qwen2.5-7b-rl-paper": (8944, 28)}


def dry_run_of(preset: str) -> tuple[Config, Any, list[Round]]:
    """A preset's settings, its model's config and its schedule."""
    settings = parse(["--preset", preset, "--dry-run"])
    assert settings.model.model is not None
    config: Any = shipped_config(settings.model.model)
    return settings, config, make_schedule(settings, config)


def sample_length(config: SimpleNamespace, tera_flops: float, lm_head: bool) -> int:
    """The number of tokens whose forward pass comes nearest to this many FLOPs."""

    def distance(length: int) -> float:
        return abs(flops.flops_per_sample(config, length, lm_head=lm_head) - tera_flops * 1e12)  # type: ignore[arg-type]

    # FLOPs grow with the length, so the nearest is unique; 4095 is longer than any sample
    return min(range(1, 4096), key=distance)


def flops_table() -> Table:
    """A row for each model, benchmark and shape; two counts of it, each at the length that its
    count of the original gives.
    """
    counts = [
        f"{what}, {how}"
        for how in ("no head", "with head")
        for what in ("tokens", "original", "compacted", "difference")
    ]
    table = [["model", "benchmark", "paper: original", "compacted", "shape", *counts]]
    for preset, benchmarks in PAPER.items():
        _, config, schedule = dry_run_of(preset)
        shapes = [(schedule[-1].width, schedule[-1].num_layers)]
        shapes += [OTHER_SHAPES[preset]] if preset in OTHER_SHAPES else []
        for benchmark, (original, compacted, _) in benchmarks.items():
            for width, num_layers in shapes:
                smaller = flops.resized(config, width, num_layers)
                cells = [
                    preset.removesuffix("-paper"),
                    benchmark,
                    f"{original}",
                    f"{compacted}",
                    f"{width} x {num_layers}",
                ]
                for lm_head in (False, True):
                    length = sample_length(config, original, lm_head)
                    ours = [
                        flops.flops_per_sample(each, length, lm_head=lm_head) / 1e12
                        for each in (config, smaller)
                    ]
                    cells += [
                        str(length),
                        *(f"{count:.2f}" for count in ours),
                        f"{ours[1] / compacted - 1:+.1%}",
                    ]
                table.append(cells)
    return table


def shortgpt_table() -> Table:
    """ShortGPT only drops layers: the whole number of layers that comes nearest to its printed
    FLOPs, and what that gives.
    """
    table = [
        [
            "model",
            "benchmark",
            "paper: ShortGPT",
            "no head",
            "difference",
            "with head",
            "difference",
        ]
    ]
    for preset, benchmarks in PAPER.items():
        _, config, _ = dry_run_of(preset)
        for benchmark, (original, _, dropped) in benchmarks.items():
            if dropped is None:
                continue
            cells = [preset.removesuffix("-paper"), benchmark, f"{dropped}"]
            for lm_head in (False, True):
                count, num_layers = _nearest_layers(config, original, dropped, lm_head)
                cells += [f"{num_layers} layers: {count:.2f}", f"{count / dropped - 1:+.1%}"]
            table.append(cells)
    return table


def _nearest_layers(
    config: Any, original: float, dropped: float, lm_head: bool
) -> tuple[float, int]:
    """(FLOPs in T, layers)"""
    length = sample_length(config, original, lm_head)
    counts = []
    for num_layers in range(1, config.num_hidden_layers):
        smaller = flops.resized(config, config.intermediate_size, num_layers)
        counts.append((flops.flops_per_sample(smaller, length, lm_head=lm_head) / 1e12, num_layers))
    return min(counts, key=lambda each: abs(each[0] - dropped))


def hours_table() -> Table:
    """Recovery hours: the paper's beside the dry run's."""
    table = [
        [
            "model",
            "GPUs",
            "recovery tokens",
            "paper: hours",
            "dry run",
            "utilisation that gives the paper's",
        ]
    ]
    for preset, paper in PAPER_HOURS.items():
        settings, config, schedule = dry_run_of(preset)
        rounds = dry_run.predict_rounds(config, settings, schedule)
        predicted, total = (
            sum(row[name] for row in rounds) for name in ("recovery_hours", "recovery_tokens")
        )
        # hours go with 1 / utilisation
        needed = f"{gpus.UTILISATION * predicted / paper:.0%}"
        row = [
            preset.removesuffix("-paper"),
            settings.run.dry_run_gpus,
            f"{total / 1e6:.0f} M",
            f"{paper}",
            f"{predicted:.1f}",
            needed,
        ]
        table.append(row)
    return table


TABLES: TableMakers = {"flops": flops_table, "shortgpt": shortgpt_table, "hours": hours_table}


def main(arguments: list[str] | None = None) -> None:
    options = document_parser(__doc__, DOCUMENT).parse_args(arguments)
    write_or_check(options, fill_tables(options.document.read_text(), TABLES))


if __name__ == "__main__":
    main()
