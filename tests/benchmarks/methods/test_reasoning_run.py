"""One cell: made, answered batch by batch, continued, and refused where the setup is another."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.methods import reasoning, reasoning_results, reasoning_run
from benchmarks.methods.reasoning_cells import Cell
from benchmarks.methods.reasoning_run import Bench
from support.reasoning import SETTINGS


@pytest.fixture
def bench(reasoning_world: Path, traces: list[str], tmp_path: Path) -> Bench:
    world = ["--model", str(reasoning_world / "model"), "--data", str(reasoning_world / "data")]
    folders = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    return reasoning.make_bench(reasoning.parse([*world, *traces, *folders, *SETTINGS]))


def never() -> bool:
    return False


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in result if name not in ("batches", "environment")}


def test_a_killed_cell_goes_on_behind_its_last_batch(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(share=0.8)
    asked: list[int] = []
    answer = reasoning_run.answer_batch

    def dies(*arguments: Any) -> Any:
        asked.append(len(arguments[2]))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answer(*arguments)

    monkeypatch.setattr(reasoning_run, "answer_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        reasoning_run.run_cell(cell, bench, never)
    half = reasoning_results.read(bench.folder / f"{cell.name}.json")
    assert half is not None
    assert not half["finished"]
    assert reasoning_run.progress(half).startswith("gsm8k")
    weights = bench.run(cell) / "final" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    monkeypatch.setattr(reasoning_run, "compress", lambda **settings: None)
    done = reasoning_run.run_cell(cell, bench, lambda: bool(weights.stat().st_mtime_ns != made))
    # four problems of each benchmark, three at once; the third batch was asked twice
    assert asked == [3, 1, 3, 3, 1]
    assert done["finished"]
    assert not bench.run(cell).exists(), "a finished cell needs its model no more"
    texts = (bench.work / cell.name / "answers.jsonl").read_text().splitlines()
    assert (
        len(texts)
        == len({(json.loads(each)["benchmark"], json.loads(each)["problem"]) for each in texts})
        == 8
    )
    monkeypatch.undo()
    reasoning_results.write(bench.folder / "kept.json", done)
    (bench.folder / f"{cell.name}.json").unlink()
    assert without_times(reasoning_run.run_cell(cell, bench, never)) == without_times(done)


def test_sizes_and_settings_are_those_of_the_cell(bench: Bench) -> None:
    dense = reasoning_run.run_cell(Cell(method="dense"), bench, never)
    random = reasoning_run.run_cell(Cell(method="random", share=0.8), bench, never)
    assert dense["size"]["bytes"] == 4 * dense["size"]["num_parameters"]
    share = random["size"]["num_parameters"] / dense["size"]["num_parameters"]
    assert share == pytest.approx(0.8, abs=0.01)
    settings = random["setup"]["settings"]
    assert (settings["scorer"], settings["compensate"], settings["dtype"]) == (
        "random",
        False,
        "float32",
    )
    assert settings["template"] == "chat", "calibration text is in the model's own template"
    assert dense["setup"]["problems"] == random["setup"]["problems"]
    assert reasoning_results.answers(dense, "gsm8k").keys() == {0, 1, 2, 3}


def test_another_setup_is_refused(bench: Bench) -> None:
    cell = Cell(share=0.8)
    setup = json.loads(json.dumps(bench.setup(cell)))
    result = {"name": cell.name, "finished": True, "setup": {**setup, "max_tokens": 7}}
    reasoning_results.write(bench.folder / f"{cell.name}.json", result)
    with pytest.raises(ValueError, match="its max_tokens is 7, now it is 30; give another"):
        reasoning_run.run_cell(cell, bench, never)


def test_each_calibration_reads_its_own_text(bench: Bench) -> None:
    def data(calibration: str) -> list[str]:
        files = bench.settings(Cell(share=0.8, calibration=calibration))["data"].split(",")
        return [Path(file).name for file in files]

    assert data("own") == ["gsm8k-traces.jsonl@1", "mbpp-traces.jsonl@1"]
    assert data("own-math") == ["gsm8k-traces.jsonl@1"]
    assert data("written") == ["gsm8k-written.jsonl@1", "mbpp-written.jsonl@1"]
    assert bench.run(Cell(share=0.8)) != bench.run(Cell(share=0.8, calibration="written"))
