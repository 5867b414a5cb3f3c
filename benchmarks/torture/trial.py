"""What a disturbed run must come to: the undisturbed result, or one line of ours."""

import hashlib
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.torture import child

# Two rounds of a tiny random model, in a second or two.
COMMON = {
    "device": "cpu",
    "keep": 0.5,
    "rounds": 2,
    "width-multiple": 8,
    "sequence-length": 64,
    "global-batch": 4,
    "micro-batch": 2,
    "recovery-tokens": 4000,
    "recovery-split": "equal",
    "learning-rate": 1e-3,
    "calibration-tokens": 1000,
    "checkpoint-minutes": 0.0,
    "gradient-checkpointing": "false",
}
# {what is trained and kept: its flags beside COMMON; a model by its folder among the inputs}
RUNS: dict[str, dict[str, Any]] = {
    "cpt": {},
    "optimizer state": {"keep-optimizer-state": "true"},
    "distill": {"recovery": "distill"},
    "experts": {"model": "mixture", "keep-experts": 0.5, "rounds": 1},
    "guard": {"gate": "nll:nll", "max-drop": 0.5},
    # a random model seldom ends an answer: hot, and with room for it
    "traces": {
        "traces": "true",
        "traces-number": 12,
        "traces-max-tokens": 200,
        "traces-temperature": 3.0,
        "traces-batch": 4,
        "traces-prompt": "",
        "recovery-tokens": 800,
    },
    "grpo": {
        "final-recovery": "grpo",
        "grpo-prompt-tokens": 48,
        "grpo-response-tokens": 16,
    },
}
LINE = "error: "


@dataclass(frozen=True)
class Inputs:
    """Tiny models and arithmetic problems on disk."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Inputs":
        """Write them into ``folder``."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from ptl_fast.demo.problems import generate
        from ptl_fast.model.checkpoint import DEMO, bundled

        tokenizer = AutoTokenizer.from_pretrained(bundled(DEMO), trust_remote_code=False)
        shape: dict[str, Any] = {
            "vocab_size": 384,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        }
        experts = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
        for name, kind, own in (("model", "llama", {}), ("mixture", "qwen3_moe", experts)):
            config = AutoConfig.for_model(kind, **shape, **own)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            model.save_pretrained(folder / name, max_shard_size="40KB")
            tokenizer.save_pretrained(folder / name)
        for name, number, seed in (("data", 300, 9), ("test", 4, 10)):
            lines = [json.dumps(row) + "\n" for row in generate(number, seed, "training")]
            (folder / f"{name}.jsonl").write_text("".join(lines))
        return cls(folder)

    def flags(self, kind: str, **changed: Any) -> list[str]:
        """The command line of a run of RUNS, without its output folder."""
        own = {
            "model": "model",
            "data": self.folder / "data.jsonl",
            "eval-tasks": f"nll={self.folder / 'test.jsonl'}",
        }
        settings = {**own, **COMMON, **RUNS[kind], **changed}
        settings["model"] = self.folder / settings["model"]
        return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def result(folder: Path) -> str:
    """A digest of what a run in ``folder`` published, without times; empty if it is not whole."""
    final = folder / "run" / "final"
    if not (folder / "run" / "report.json").exists() or not final.is_dir():
        return ""
    digest = hashlib.sha256()
    for file in sorted(final.glob("*")):
        if file.name != "README.md":
            digest.update(file.name.encode() + file.read_bytes())
    report = json.loads((folder / "run" / "report.json").read_text())
    rounds = [{k: v for k, v in each.items() if k != "seconds"} for each in report["rounds"]]
    digest.update(json.dumps([report["final"], rounds], sort_keys=True).encode())
    return digest.hexdigest()


def fault_of(ended: child.Ended) -> str:
    """What is wrong with how a run ended, whatever it computed; empty if nothing is."""
    if ended.timed_out:
        return "it did not end"
    if ended.code == 0:
        return ""
    last = (ended.told.strip().splitlines() or [""])[-1]
    if "Traceback (most recent call last)" in ended.told:
        return f"a traceback: {last}"
    if ended.code not in (1, 2) or not last.startswith(LINE) or len(last) < len(LINE) + 10:
        return f"exit code {ended.code}, and the last line is {last!r}"
    return ""


def empty(folder: Path) -> Path:
    """The folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def shuffled(items: list[Any], seed: int) -> list[Any]:
    """The items in an order of the seed's: a part that is cut short has tried some of all kinds."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order
