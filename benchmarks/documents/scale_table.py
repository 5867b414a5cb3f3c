"""Write the tables of docs/scale.md: what is computed for large models on known devices, what a
model of 8B took within 6 GiB, and the estimate beside measured runs.

    python -m benchmarks.documents.scale_table [--check]

The first is from the models' shapes and ``ptl_fast.run.stage_costs`` alone: nothing of it is
measured. The others are from the raw results.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.documents.document import ROOT, Results, load, write_tables
from benchmarks.harness.markdown import Table, TableMakers
from ptl_fast.base.memory import GIB
from ptl_fast.run import dry_run, stage_costs
from ptl_fast.run.gpus import GPUS
from ptl_fast.run.rounds import make_schedule
from ptl_fast.run.start import parse
from ptl_fast.run.tables import show_hours

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DOCUMENT = ROOT / "docs" / "scale.md"
# from the models' published config.json files
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (kind, dict(zip(FIELDS, shape, strict=True)))
    for FIELDS in [
        (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
        )
    ]
    for name, kind, shape in (
        ("Llama 3.1 8B", "llama", (4096, 14336, 32, 32, 8, 128256)),
        ("Qwen2.5 32B", "qwen2", (5120, 27648, 64, 40, 8, 152064)),
        ("Llama 3.1 70B", "llama", (8192, 28672, 80, 64, 8, 128256)),
        ("Llama 3.1 405B", "llama", (16384, 53248, 126, 128, 8, 128256)),
    )
}
DEVICES = {"1 x 24 GB": (1, "RTX-4090")}
DEVICES |= {f"{number} x 80 GB": (number, "H100-80GB") for number in (1, 8, 64)}
MORE = [2**power for power in range(1, 11)]
DEVICES_A_MACHINE = 8
# CUDA's context and what the allocator loses: assumed
LOST_GIB = 1
SETTINGS = (
    "--keep 0.65 --rounds 1 --width-multiple 128 --recovery-tokens 100000000 --micro-batch 1"
    " --eval-tasks none"
)
PRUNING = {"in memory": [], "`--stream`": ["--stream"]}
ZERO = {"one process": [], "`zero2`": ["--deepspeed", "zero2"], "`zero3`": ["--deepspeed", "zero3"]}
PARTS = {
    "load": "reading the weights",
    "statistics": "statistics (forward pass)",
    "gram": "Gram matrix",
    "score": "elimination",
    "compensate": "compensation",
    "compact": "compaction",
    "save": "writing the shard",
}


class Need(NamedTuple):
    """What a part of a run needs in one way of doing it."""

    way: str
    costs: list[stage_costs.Cost]

    @property
    def device_bytes(self) -> int:
        return max(each.device_bytes for each in self.costs)

    @property
    def hours(self) -> float:
        return sum(each.seconds or 0 for each in self.costs) / 3600

    def host_bytes(self, num_devices: int) -> int:
        """Of one machine, with a rank for each of its devices; one rank saves."""
        ranks = min(num_devices, DEVICES_A_MACHINE)
        return max(
            each.host_bytes * (1 if each.stage == stage_costs.SAVING else ranks)
            for each in self.costs
        )


def make_tables(folder: Path) -> TableMakers:
    return {
        "sizes": sizes_table,
        "layers": lambda: layers_table(folder / "layer_by_layer_8b_cpu.json"),
        "planner": lambda: planner_table(load(folder, "planner")),
    }


def sizes_table() -> Table:
    """A row for each model and group of devices."""
    of_device = "GiB a device"
    header = ["model", "devices", "pruning", of_device, "GiB of a host", "hours"]
    table = [[*header, "recovery", of_device, "hours"]]
    for name, (kind, shape) in MODELS.items():
        original = _config(kind, shape)
        for title, (number, device) in DEVICES.items():
            group = f"{number}x{device}"
            left = (GPUS[device].memory_gib - LOST_GIB) * GIB
            pruning = [_pruning(original, group, way) for way in PRUNING]
            way, cells = _chosen(pruning, left)
            least = min(each.device_bytes for each in pruning) / GIB
            remedy = f"a device of {least:.0f} GiB, or `--device cpu`"
            host = pruning[list(PRUNING).index(way)].host_bytes(number) / GIB if way else 0
            row = [name, title, way or f"does not fit: {remedy}", cells[0]]
            row += [f"{host:.0f}" if way else "", cells[1]]
            training = [_recovery(original, group, way) for way in _ways(number)]
            way, cells = _chosen(training, left)
            table.append([*row, way or _more_devices(original, device, left), *cells])
    return table


def _config(kind: str, shape: dict[str, Any]) -> "PretrainedConfig":
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **shape, tie_word_embeddings=False)


def _ways(number: int) -> list[str]:
    return [way for way in ZERO if (number > 1) == bool(ZERO[way])]


def _chosen(needs: list[Need], left: float) -> tuple[str, list[str]]:
    """The first way that fits, "" if none does; GiB a device, of the least otherwise; hours."""
    for need in needs:
        if need.device_bytes <= left:
            return need.way, [f"{need.device_bytes / GIB:.0f}", show_hours(need.hours)]
    least = min(each.device_bytes for each in needs)
    return "", [f"{least / GIB:.0f}", ""]


def _more_devices(original: "PretrainedConfig", device: str, left: float) -> str:
    """How many of these devices would do."""
    for number in MORE:
        for way in _ways(number):
            if _recovery(original, f"{number}x{device}", way).device_bytes <= left:
                return f"does not fit: {way} on {number}"
    return f"does not fit on {MORE[-1]} either"


def _pruning(original: "PretrainedConfig", devices: str, way: str) -> Need:
    """Everything but recovery."""
    return Need(way, _costs(original, devices, [*PRUNING[way], "--recovery", "none"]))


def _recovery(original: "PretrainedConfig", devices: str, way: str) -> Need:
    costs = _costs(original, devices, ["--stream", *ZERO[way]])
    return Need(way, [each for each in costs if each.stage == stage_costs.RECOVERY])


def _costs(original: "PretrainedConfig", devices: str, flags: list[str]) -> list[stage_costs.Cost]:
    model = ["--model", "a folder", "--dry-run-gpus", devices]
    config = parse([*model, *SETTINGS.split(), *flags])
    return stage_costs.of_run(dry_run.costed(original, config, make_schedule(config, original)))


def layers_table(file: Path) -> Table:
    """A row for each part of a layer."""
    found = json.loads(file.read_text())
    measured, computed = found["measured"], found["computed"]
    few, many = computed.values()
    names = list(computed)
    table = [
        [
            "part",
            "measured seconds of the clock, mean layer",
            "of the processor",
            *(f"computed processor hours, 32 layers, {name}" for name in names),
        ]
    ]
    mean, rates = measured["mean_layer"], measured["tokens_per_second_and_layer"]["processor"]
    for part, title in PARTS.items():
        rate = f" ({rates[part]:.0f} tokens/s)" if part in rates else ""
        seconds = [mean["wall"][part], mean["processor"][part]]
        hours = [each[part] / 3600 for each in (few, many)]
        table.append(
            [title, *(f"{each:.1f}" for each in seconds), *(f"{each:.2f}" for each in hours)]
        )
        table[-1][2] += rate
    embed = [each["embed"] / 3600 for each in (few, many)]
    table.append(["embedding the tokens", "", "", *(f"{each:.2f}" for each in embed)])
    sums = [f"{sum(mean[clock][part] for part in PARTS):.0f}" for clock in ("wall", "processor")]
    total = [f"{each['total'] / 3600:.1f}" for each in (few, many)]
    return [*table, ["all", *sums, *total]]


def planner_table(results: Results) -> Table:
    """A row for each stage of each run."""
    table = [
        [
            "run",
            "stage",
            "processor seconds",
            "estimated",
            "error",
            "peak GiB",
            "estimated",
            "error",
            "seconds of the clock",
        ]
    ]
    for each in results:
        rows = each["stages"]
        for stage, row in rows.items():
            cells = [each["name"], stage] if stage == next(iter(rows)) else ["", stage]
            for name in ("processor", "peak_gib"):
                measured, estimated = row[name], row[f"estimated_{name}"]
                cells += [f"{measured:.1f}", f"{estimated:.1f}", f"{estimated / measured - 1:+.0%}"]
            table.append([*cells, f"{row['wall']:.0f}"])
    return table


def main(arguments: list[str] | None = None) -> None:
    write_tables(arguments, __doc__, DOCUMENT, make_tables)


if __name__ == "__main__":
    main()
