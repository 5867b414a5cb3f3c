"""What do bytes buy: a pruned model, a quantized one, or one that is both?

    python -m benchmarks.inference.quantized DIR FILE.gguf ... --torchao int8 fp8 --data FILE

Each model folder is measured as it is and once for each scheme of torchao: its weights are
quantized, saved and loaded again. A GGUF file is read by transformers, which gives back the values
that it stands for; tokenizer and configuration are those of the folder that it lies in. The loss is
that of held-out answers, on the same text for all, in float32 arithmetic behind GGUF files and in
the folder's own type otherwise. Bytes are those of the files of weights.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness.environment import environment
from benchmarks.harness.markdown import to_markdown
from benchmarks.harness.results import errors_in_one_line, write_json
from ptl_fast.data import readers
from ptl_fast.data.documents import Form
from ptl_fast.evaluation.nll import NLL_MAX_LENGTH, answer_nll
from ptl_fast.evaluation.task_names import NLL
from ptl_fast.model import loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.documents import Document

COLUMNS = ["model", "weights", "MiB", "nll"]
# weights alone, which are what a CPU's memory is about; embeddings and the head stay as they are
TORCHAO = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}


def weights_bytes(folder: Path) -> int:
    """Bytes of a saved model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def variants(named: Path, schemes: list[str]) -> Iterator[tuple[str, int, "PreTrainedModel"]]:
    """Yield (name of the weights' form, bytes, model) for a folder or a GGUF file.

    Raises:
        ValueError: there is no such folder or file.
        OSError: the folder holds no model.
        ImportError: torchao is missing, and a scheme of it asked for.
    """
    # transformers takes seconds to import
    from transformers import AutoModelForCausalLM

    if named.is_file():
        model = AutoModelForCausalLM.from_pretrained(
            named.parent, gguf_file=named.name, dtype=torch.float32, trust_remote_code=False
        )
        yield named.stem.rpartition("-")[2], named.stat().st_size, model
        return
    if not named.is_dir():
        raise ValueError(f"there is no folder or file {named}")
    model = AutoModelForCausalLM.from_pretrained(named, dtype="auto", trust_remote_code=False)
    yield str(model.dtype).removeprefix("torch."), weights_bytes(named), model
    for scheme in schemes:
        yield (scheme, *quantized(named, scheme))


def quantized(folder: Path, scheme: str) -> tuple[int, "PreTrainedModel"]:
    """(bytes, model) of a folder whose weights torchao has quantized, saved and loaded again."""
    import torchao.quantization
    from transformers import AutoModelForCausalLM, TorchAoConfig

    how = TorchAoConfig(getattr(torchao.quantization, TORCHAO[scheme])())
    with tempfile.TemporaryDirectory() as saved:
        AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", quantization_config=how, trust_remote_code=False
        ).save_pretrained(saved)
        loaded = AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=False)
        return weights_bytes(Path(saved)), loaded


def measure(
    models: list[Path], schemes: list[str], documents: list["Document"], batch: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each form of each model."""
    for named in models:
        folder = named.parent if named.is_file() else named
        for form, num_bytes, model in variants(named, schemes):
            loss = answer_nll(
                model, loading.load_tokenizer(str(folder)), documents, batch, NLL_MAX_LENGTH
            )
            yield {"model": str(folder), "weights": form, "bytes": num_bytes, **loss}


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    return [row["model"], row["weights"], f"{row['bytes'] / 2**20:.1f}", f"{row[NLL]:.4f}"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, help="model folders and GGUF files")
    parser.add_argument("--torchao", nargs="*", choices=list(TORCHAO), default=[])
    parser.add_argument("--data", required=True, help="held-out questions and answers")
    parser.add_argument("--limit", type=int, default=32, help="how many of them, from the first")
    parser.add_argument("--batch", type=int, default=8, help="documents of a forward pass")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        documents = readers.load_documents(options.data, Form(), options.limit)
        about = {**environment("cpu"), "data": options.data, "limit": options.limit}
        rows: list[dict[str, Any]] = []
        # after each, as all of them may take an hour
        for row in measure(options.models, options.torchao, documents, options.batch):
            rows.append(row)
            if options.json:
                write_json(options.json, {**about, "rows": rows})
    by_bytes = sorted(rows, key=lambda row: -row["bytes"])
    print(to_markdown([COLUMNS, *map(cells, by_bytes)]))


if __name__ == "__main__":
    main()
