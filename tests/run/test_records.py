"""A round's record is what its files say, extensions and all."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig

from ptl_fast.base.run_files import SECONDS
from ptl_fast.run import records, sizes
from ptl_fast.run.folder import RoundFolder
from support.models import DEMO_MODEL
from support.plans import neuron_plan
from support.settings import settings


def written(folder: Path, num_extensions: int = 0) -> RoundFolder:
    files = RoundFolder(folder)
    files.plan.write(asdict(neuron_plan([[0, 1, 5]] * 4)))
    files.pruned.write({"nll": {"nll": 2.0}})
    files.seconds.write({**dict.fromkeys(SECONDS, 0.0), "recover": 3.0})
    for extension in range(num_extensions + 1):
        files.recovery(extension).write({"recovery_tokens": 100 + extension, "recovery_steps": 1})
        files.recovered(extension).write({"nll": {"nll": 1.0 - extension / 10}})
    return files


def test_record_by_hand(tmp_path: Path) -> None:
    original = AutoConfig.from_pretrained(DEMO_MODEL)
    context: Any = SimpleNamespace(original=original, config=settings(sequence_length=128))
    record = records.of_round(context, written(tmp_path))
    plan = neuron_plan([[0, 1, 5]] * 4)
    assert record == {
        **sizes.predicted_size(original, plan, 128),
        "round": 1,
        "kind": "neurons",
        "eval_pruned": {"nll": {"nll": 2.0}},
        "eval": {"nll": {"nll": 1.0}},
        "seconds": {**dict.fromkeys(SECONDS, 0.0), "recover": 3.0},
        "recovery_tokens": 100,
        "recovery_steps": 1,
        "num_redundant": None,
        "dropped_layers": [],
        "highest_removed": None,
        "lowest_kept": None,
    }


def test_what_became_of_dropped_layers_is_in_the_record(tmp_path: Path) -> None:
    original = AutoConfig.from_pretrained(DEMO_MODEL)
    context: Any = SimpleNamespace(original=original, config=settings(sequence_length=128))
    files, folded = written(tmp_path), [{"layers": [2], "into": 1}]
    files.folded_layers.write(folded)
    assert records.of_round(context, files)["folded_layers"] == folded


def test_the_last_extension_is_what_the_round_measures(tmp_path: Path) -> None:
    original = AutoConfig.from_pretrained(DEMO_MODEL)
    context: Any = SimpleNamespace(original=original, config=settings(sequence_length=128))
    record = records.of_round(context, written(tmp_path, num_extensions=2))
    assert record["eval"] == {"nll": {"nll": 0.8}}
    assert record["recovery_tokens"] == 100, "of the round's own recovery"
    assert record["extra_recovery"] == [
        {"recovery_tokens": number, "recovery_steps": 1} for number in (101, 102)
    ]
