"""Small settings, traces and made-up results of benchmarks.methods.reasoning."""

from pathlib import Path
from typing import Any

from benchmarks.methods.reasoning_results import Result
from ptl_fast.demo.problems import generate
from ptl_fast.evaluation.chat import gsm8k_question
from support.files import write_rows

# Four problems of each benchmark, and little of all else.
SETTINGS = [
    *("--problems", "4", "--batch", "3", "--max-tokens", "30", "--dtype", "float32"),
    *("--calibration-tokens", "600", "--recovery-tokens", "2000", "--width-multiple", "8"),
    "--allow-code-execution",
]


def write_traces(folder: Path) -> list[str]:
    """The flag --traces with as many own answers as the models need, made up."""
    rows: dict[str, list[dict[str, Any]]] = {
        "gsm8k": [
            {"messages": chat(gsm8k_question(row), row["answer"])}
            for row in generate(60, 9, "training")
        ],
        "mbpp": [
            {"messages": chat(f"Add {number}, please.", f"def f(x): return x + {number}")}
            for number in range(60)
        ],
    }
    files = {name: write_rows(folder / f"{name}.jsonl", *each) for name, each in rows.items()}
    return ["--traces", *(f"{name}={file}" for name, file in files.items())]


def chat(question: str, answer: str) -> list[dict[str, str]]:
    """The messages of one exchange."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def fake_result(name: str, right: str, **cell: Any) -> Result:
    """A finished cell that has answered a problem of gsm8k for each digit but the last two, and two
    of mbpp: 1 for right.
    """
    rows = [[index, int(digit), 10 + index, 1, 0] for index, digit in enumerate(right)]
    gsm8k, mbpp = rows[:-2], [[index, *row[1:]] for index, row in enumerate(rows[-2:])]
    return {
        "name": name,
        "cell": {
            "method": "default",
            "share": 1.0,
            "calibration": "own",
            "recovery": "none",
            "seed": 0,
            **cell,
        },
        "title": cell.get("method", "default"),
        "finished": True,
        "setup": {
            "model": "m",
            "dtype": "bfloat16",
            "batch_size": 2,
            "max_tokens": 30,
            "num_problems": {"gsm8k": len(gsm8k), "mbpp": 2},
        },
        "environment": {"device_type": "cpu", "device": "a CPU", "torch": "2.13", "threads": 1},
        "commits": ["abc"],
        "size": {"num_parameters": 800, "bytes": 1600, "width": 64, "num_layers": 4},
        "answers": {"gsm8k": gsm8k, "mbpp": mbpp},
        "batches": {
            "gsm8k": [{"num_answers": len(gsm8k), "wall": 9.0, "cpu": 4.0}],
            "mbpp": [{"num_answers": 2, "wall": 1.0, "cpu": 2.0}],
        },
    }
