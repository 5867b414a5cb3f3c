"""What a small mixture of experts loses without half of its experts' neurons, without half of its
experts, and without both, before and after a recovery.

    python -m benchmarks.experts.study --output DIR [--json FILE]

The mixture is the bundled model, upcycled and trained briefly (upcycle.py); all is done on one CPU
core in about half an hour. Interrupted, the same command goes on where it was.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.harness.environment import ROOT, environment
from benchmarks.harness.results import write_json
from ptl_fast import compress
from ptl_fast.base.console import quiet_libraries
from ptl_fast.config.command_line import preset_settings

FILE = ROOT / "benchmarks" / "results" / "experts_demo_cpu.json"
TASK = "demo_arithmetic"
NEURONS: dict[str, Any] = {"keep": 0.5, "rounds": 1}
EXPERTS: dict[str, Any] = {"keep": 1.0, "rounds": None, "keep_experts": 0.5}
ROWS: dict[str, dict[str, Any]] = {
    "half of every expert's neurons": NEURONS,
    "half of the experts, reap": EXPERTS,
    "half of the experts, frequency": {**EXPERTS, "expert_scorer": "frequency"},
    "half of the experts, random": {**EXPERTS, "expert_scorer": "random"},
    "half of the experts (reap), then half of the others' neurons": {**EXPERTS, **NEURONS},
    "half of the experts, output": {**EXPERTS, "expert_scorer": "output"},
}


def make_mixture(folder: Path, num_steps: int) -> dict[str, float]:
    """The trained mixture in ``folder/mixture``, and its training's record; made once."""
    record = folder / "training.json"
    if not record.exists():
        from benchmarks.experts.upcycle import save_tokenizer, train, upcycled

        mixture = upcycled()
        trained = train(mixture, num_steps, batch_size=16, peak=1e-3)
        mixture.save_pretrained(folder / "mixture")
        save_tokenizer(folder / "mixture")
        # last, as it says that the model is there
        write_json(record, trained)
    return json.loads(record.read_text())


def settings(folder: Path, limit: int, tokens: int) -> dict[str, Any]:
    """What all rows have in common: the demo's settings, with as many tokens for each."""
    demo = preset_settings("demo")
    return {
        **{name: value for name, value in demo.items() if name not in ("preset", "output")},
        "model": str(folder / "mixture"),
        "recovery_tokens": tokens,
        "recovery_split": "growing",
        "recovery_growth": 1.0,
        "eval_tasks": [TASK],
        "eval_limit": limit,
        "device": "cpu",
    }


def row(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """A run's sizes and accuracies, in per cent, after each of its rounds."""
    dense, final = report["dense"], report["final"]

    def accuracy(evaluated: dict[str, Any]) -> float:
        return next(iter(evaluated[TASK].values()))

    return {
        "name": name,
        "num_experts": final["num_experts"],
        "width": final["width"],
        "parameters": final["num_parameters"] / dense["num_parameters"],
        "flops_per_token": final["flops_per_token"] / dense["flops_per_token"],
        "dense": accuracy(dense["eval"]),
        "pruned": [accuracy(record["eval_pruned"]) for record in report["rounds"]],
        "recovered": [accuracy(record["eval"]) for record in report["rounds"]],
        "recovery_tokens": [record["recovery_tokens"] for record in report["rounds"]],
        "seconds": round(sum(sum(each["seconds"].values()) for each in report["rounds"])),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="for the models")
    parser.add_argument("--json", type=Path, default=FILE, help="where to write the rows")
    parser.add_argument("--steps", type=int, default=400, help="of the mixture's training")
    parser.add_argument("--limit", type=int, default=200, help="test problems")
    parser.add_argument("--tokens", type=int, default=40_000, help="recovery tokens of a row")
    options = parser.parse_args(arguments)
    quiet_libraries()
    options.output.mkdir(parents=True, exist_ok=True)
    trained = make_mixture(options.output, options.steps)
    common = settings(options.output, options.limit, options.tokens)
    rows = []
    for number, (name, changes) in enumerate(ROWS.items()):
        output = options.output / f"row-{number}"
        report = json.loads((output / "report.json").read_text()) if _is_done(output) else None
        rows.append(row(name, report or compress(**{**common, **changes, "output": str(output)})))
        content = {"training": trained, "num_problems": options.limit, "rows": rows}
        # after each row, so that an interruption loses none
        write_json(options.json, {"environment": environment("cpu"), **content})


def _is_done(output: Path) -> bool:
    return (output / "final").exists() and (output / "report.json").exists()


if __name__ == "__main__":
    main()
