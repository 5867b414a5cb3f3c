"""A loaded model and rows in memory, written to disk: a run reads, and resumes from, files."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ptl_fast.base.console import no_library_bars

INPUTS = "inputs"
"""The folder beside the run's has its name and this suffix."""


def on_disk(settings: dict[str, Any], tokenizer: Any = None) -> dict[str, Any]:
    """The settings with paths in the place of a loaded ``model`` and of ``data`` that is rows.

    They are written into OUTPUT.inputs, beside the run's folder. The same model and rows come to
    the same files, so that the same call continues a run.

    Args:
        tokenizer: of a loaded model; None takes that of the name it was loaded from.

    Raises:
        ValueError: --output is missing, or the model's tokenizer is not known.
    """
    model, data = settings.get("model"), settings.get("data")
    is_loaded = model is not None and not isinstance(model, str | os.PathLike)
    has_rows = isinstance(data, list | tuple)
    if not is_loaded and not has_rows:
        if tokenizer is not None:
            raise ValueError("tokenizer is for a loaded model; a folder or hub name has its own")
        return settings
    if settings.get("output") is None:
        raise ValueError(
            "a loaded model, and rows, need an output folder: compress(..., output='out')"
        )
    output = Path(os.path.expanduser(settings["output"]))
    folder = output.with_name(f"{output.name}.{INPUTS}")
    changed = dict(settings)
    if is_loaded:
        changed["model"] = str(_write_model(model, tokenizer, folder / "model"))
    if isinstance(data, list | tuple):
        changed["data"] = str(_write_rows(data, folder / "data.jsonl"))
    return changed


def _write_model(model: Any, tokenizer: Any, folder: Path) -> Path:
    from transformers import AutoTokenizer, PreTrainedModel

    from ptl_fast.model import companions
    from ptl_fast.model.auto_classes import has_parts

    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"model is a {type(model).__name__}; give a folder, a hub name or a loaded model of"
            " transformers"
        )
    if tokenizer is None:
        name = model.name_or_path
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # transformers raises many types
            raise ValueError(
                f"the loaded model's tokenizer is not found under {name!r}, where it was loaded"
                " from; give tokenizer=..."
            ) from error
    with _written(folder) as new, no_library_bars():
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        if has_parts(model.config):
            companions.write_processors(model.name_or_path, new)
    return folder


def _write_rows(rows: Sequence[Any], file: Path) -> Path:
    if not rows or not all(isinstance(row, dict | str) for row in rows):
        raise ValueError(
            "data is a list of rows: dicts such as {'question': ..., 'answer': ...}, or texts; at"
            " least one"
        )
    with _written(file) as new:
        lines = (json.dumps(row if isinstance(row, dict) else {"text": row}) for row in rows)
        new.write_text("".join(f"{line}\n" for line in lines))
    return file


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    _remove(new)
    yield new
    _remove(path)
    new.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
