"""Make the model of one cell of benchmarks.methods.reasoning, and have it answer the problems.

Both go on where they were: pruning as ptl_fast.compress does, answering after the last batch.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ptl_fast.run.prepare  # noqa: F401  lets transformers load the types of models that runs make
from benchmarks.harness.environment import environment, short_commit
from benchmarks.methods import reasoning_results as results
from benchmarks.methods.reasoning_cells import CALIBRATIONS, DENSE, RECOVERIES, Cell, Method
from benchmarks.methods.reasoning_problems import Problems
from benchmarks.methods.reasoning_results import Result
from benchmarks.methods.setup import Settings
from ptl_fast import compress
from ptl_fast.base.progress import shown
from ptl_fast.config.model import ModelSettings
from ptl_fast.data.generation import Sampling, answer_batch, by_length
from ptl_fast.evaluation import chat
from ptl_fast.model import loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OutOfTime = Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all cells have in common."""

    model: str
    """Folder or hub name of the dense model."""
    problems: Mapping[str, Problems]
    exchanges: Mapping[str, Path]
    """Calibration data: "BENCHMARK-traces" and "BENCHMARK-written"."""
    base: Settings
    """Settings of every compression."""
    methods: Mapping[str, Method]
    width_multiple: int
    device: str
    dtype: str
    """Of the model that answers; it is pruned in float32."""
    batch_size: int
    max_tokens: int
    folder: Path
    """Receives a file for each cell."""
    work: Path
    """Receives what the models wrote."""
    runs: Path
    """Receives the runs of ptl_fast.compress."""
    keep_models: bool = False

    def settings(self, cell: Cell) -> Settings:
        """Settings of ptl_fast.compress for a cell that is not the dense model's."""
        at_share = self.methods[cell.method].at_share(self.base, cell.share, self.width_multiple)
        parts = CALIBRATIONS[cell.calibration].items()
        files = [self.exchanges[f"{name}-{kind}"] for name, kind in parts]
        return {
            **self.base,
            **at_share,
            **RECOVERIES[cell.recovery],
            # the same weight for each benchmark, however long its answers are
            "data": ",".join(f"{file}@1" for file in files),
            "seed": cell.seed,
        }

    def run(self, cell: Cell) -> Path:
        """The folder of a cell's run; other settings, or other data, give another folder."""
        setup = self.setup(cell)
        digest = _digest(json.dumps([setup["settings"], setup["data"]], sort_keys=True))
        return self.runs / f"{cell.name}-{digest[:8]}"

    def setup(self, cell: Cell) -> dict[str, Any]:
        """What must be equal for a cell's file to go on; names of folders do not count."""
        rows = {name: each.questions for name, each in self.problems.items()}
        common = {
            "model": Path(self.model).name,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "max_tokens": self.max_tokens,
            "num_problems": {name: len(each) for name, each in rows.items()},
            "problems": _digest(json.dumps(rows)),
        }
        if cell.method == DENSE:
            return common
        settings = self.settings(cell)
        data = [part.rpartition("@")[0] for part in settings["data"].split(",")]
        own = {
            name: value
            for name, value in settings.items()
            if name not in ("model", "data", "eval_tasks", "device")
        }
        return {**common, "settings": own, "data": _digest("".join(map(_text, data)))}


def run_cell(cell: Cell, bench: Bench, out_of_time: OutOfTime) -> Result:
    """Run or continue one cell; its file is complete if it is ``finished``.

    Raises:
        ValueError: its file was made with another setup, or the model cannot be made.
    """
    file, setup = bench.folder / f"{cell.name}.json", bench.setup(cell)
    result = results.read(file) or _new(cell, setup, bench)
    _check_setup(file, result["setup"], setup)
    if result["finished"] or out_of_time():
        return result
    result["commits"] = list(dict.fromkeys([*result["commits"], short_commit()]))
    path = bench.model if cell.method == DENSE else _compressed(cell, bench)
    model = loading.load_model(path, ModelSettings(dtype=bench.dtype, attn="sdpa"), bench.device)  # type: ignore[arg-type]
    result["size"] = size_of(model)
    tokenizer = loading.load_tokenizer(bench.model)
    for _ in _answer(model, tokenizer, bench, result, bench.work / cell.name):
        results.write(file, result)
        print(f"{cell.name}: {progress(result)}", flush=True)
        if out_of_time():
            return result
    result["finished"] = True
    results.write(file, result)
    if cell.method != DENSE and not bench.keep_models:
        shutil.rmtree(bench.run(cell))
    return result


def size_of(model: "PreTrainedModel") -> dict[str, int]:
    """Parameters (tied ones once), their bytes, FFN width and layers."""
    return {
        "num_parameters": sum(each.numel() for each in model.parameters()),
        "bytes": sum(each.nbytes for each in model.parameters()),
        "width": model.config.intermediate_size,
        "num_layers": model.config.num_hidden_layers,
    }


def progress(result: Result) -> str:
    """How many problems of each benchmark are answered, and how many of these are right."""
    parts = []
    for benchmark in result["answers"]:
        judged = results.answers(result, benchmark).values()
        right = sum(each.right for each in judged)
        total = result["setup"]["num_problems"][benchmark]
        parts.append(f"{benchmark} {right} right of {len(judged)} (of {total})")
    return ", ".join(parts)


def _new(cell: Cell, setup: dict[str, Any], bench: Bench) -> Result:
    return {
        "name": cell.name,
        "cell": {name: getattr(cell, name) for name in cell.__dataclass_fields__},
        "title": None if cell.method == DENSE else bench.methods[cell.method].title,
        "finished": False,
        "setup": setup,
        "environment": environment(bench.device.partition(":")[0]),
        "commits": [],
        "size": {},
        "answers": {},
        "batches": {},
    }


def _check_setup(file: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    # as JSON has it: tuples are lists there
    now = json.loads(json.dumps(now))
    differing = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    if differing:
        name = min(differing)
        raise ValueError(
            f"{file} was made with another setup: its {name} is {before.get(name)}, now it is"
            f" {now.get(name)}; give another --results, or delete the file"
        )


def _compressed(cell: Cell, bench: Bench) -> str:
    """The folder of the cell's compressed model, which is made if it is not there."""
    output = bench.run(cell)
    with shown():
        compress(**bench.settings(cell), output=str(output))
    return str(output / "final")


def _answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    bench: Bench,
    result: Result,
    work: Path,
) -> Iterator[None]:
    """Answer the problems that the result lacks, and yield after every batch.

    What the model wrote goes to answers.jsonl in the folder ``work``.
    """
    sampling = Sampling(max_new_tokens=bench.max_tokens)
    work.mkdir(parents=True, exist_ok=True)
    for benchmark, problems in bench.problems.items():
        prompts, done = problems.prompts(tokenizer), results.answers(result, benchmark)
        for indices in by_length(prompts, bench.batch_size):
            if set(indices) <= done.keys():
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            batch = [prompts[index] for index in indices]
            answers = answer_batch(model, tokenizer, batch, sampling)
            seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            judged = [
                chat.judge(tokenizer, problems.task, problems.rows[index], answer)
                for index, answer in zip(indices, answers, strict=True)
            ]
            with (work / "answers.jsonl").open("a") as stream:
                for index, answer, each in zip(indices, answers, judged, strict=True):
                    text = tokenizer.decode(answer.tokens, skip_special_tokens=True)
                    row = {"benchmark": benchmark, "problem": index, "text": text}
                    stream.write(json.dumps({**row, **each._asdict()}) + "\n")
            results.add_answers(result, benchmark, zip(indices, judged, strict=True), seconds)
            yield


def _text(file: str) -> str:
    return Path(file).read_text()


def _digest(text: str) -> str:
    """The first digits of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
