"""Write a finished run's model in the format of another engine, such as GGUF.

llama.cpp's own converter and quantizer do the work; what is added is that a model which llama.cpp
would misread is refused, and that its greedy tokens are compared with transformers' afterwards.
"""

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ptl_fast.base import progress
from ptl_fast.base.atomic_files import sync
from ptl_fast.base.console import say, tell_error
from ptl_fast.base.disk import check_space
from ptl_fast.base.restricted_child import die_with_parent
from ptl_fast.model import engines, parts
from ptl_fast.run import engine_tokens, failures

# one line, as messages are
INSTALL = (
    "llama.cpp's converter is needed, once:"
    " git clone --depth 1 https://github.com/ggml-org/llama.cpp &&"
    " pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt;"
    " for llama-quantize also: cmake -S llama.cpp -B llama.cpp/build &&"
    " cmake --build llama.cpp/build --target llama-quantize;"
    " then give its folder: --llama-cpp llama.cpp (or set LLAMA_CPP)"
)
# What a model's own type is called by the converter; it has no other for what it does not know.
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Quantization:
    """How a quantized file is made."""

    by_converter: bool
    """Whether the converter writes it itself; else llama-quantize does, from the exact file."""


QUANTIZATIONS = {
    "q8_0": Quantization(by_converter=True),
    # groups of 32, so that it fits widths that q4_k_m's 256 do not divide
    "q4_0": Quantization(by_converter=False),
    "q4_k_m": Quantization(by_converter=False),
}


def main(arguments: list[str]) -> int:
    """Export what the arguments say.

    Returns:
        The exit code: 0; 1 if the engine's tokens are not transformers'; 2 for what the user can
        mend, told in one message.
    """
    options = _parser().parse_args(arguments)
    run = Path(options.run)
    try:
        with progress.shown():
            with progress.stage(f"writing {options.to}"):
                file = export(run, options.to, options.quantize, options.output, options.llama_cpp)
            if options.no_check:
                return 0
            with progress.stage("comparing tokens"):
                is_right = engine_tokens.check(
                    model_folder(run), file, options.quantize is not None
                )
        return 0 if is_right else 1
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        tell_error(failures.told(error))
        return 2


def export(
    run: Path, to: str, quantize: str | None, output: str | None, llama_cpp: str | None
) -> Path:
    """Write a run's result as a file of another engine, and return the file.

    Args:
        run: the run's folder, or a model's.
        to: the format; a key of FORMATS.
        quantize: a key of QUANTIZATIONS; None keeps the model's own type.
        output: the file to write; default: beside the model's folder, named by the type.
        llama_cpp: llama.cpp's source folder; None: $LLAMA_CPP, or what is on PATH.

    Raises:
        ValueError: there is no model, the engine cannot represent it, or tools are missing.
        subprocess.CalledProcessError: a tool failed.
    """
    return FORMATS[to](model_folder(run), quantize, output, llama_cpp)


def model_folder(run: Path) -> Path:
    """The folder of a run's result; the folder itself if it is a model's.

    Raises:
        ValueError: it is neither.
    """
    for folder in (run / "final", run):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"{run} has neither final/ nor a config.json: give a finished run's folder")


def to_gguf(model: Path, quantize: str | None, output: str | None, llama_cpp: str | None) -> Path:
    """Write a model folder as a GGUF file; arguments as in ``export``."""
    config = parts.saved_fields(model)
    _check_representable(SimpleNamespace(**{"model_type": "", **config}))
    own = OUTTYPES.get(str(config.get("dtype", config.get("torch_dtype"))), "f16")
    name = model.parent.resolve().name if model.name == "final" else model.resolve().name
    file = Path(output) if output else model.parent / f"{name}-{quantize or own}.gguf"
    # found before the conversion, which may take an hour
    if file.is_dir() or not file.parent.is_dir():
        raise ValueError(f"{file} is a folder, or in none: give --output a file's name")
    converter = _tool("convert_hf_to_gguf.py", llama_cpp, ("",))
    by_converter = quantize is None or QUANTIZATIONS[quantize].by_converter
    quantizer = None if by_converter else _tool("llama-quantize", llama_cpp, ("build/bin", ""))
    partial = file.with_name(f"{file.name}.tmp")
    converted = partial if by_converter else file.with_name(f"{file.name}.{own}.tmp")
    outtype = quantize if by_converter and quantize else own
    if outtype == own:
        check_space(file, sum(each.stat().st_size for each in model.glob("*.safetensors")))
    try:
        _run([sys.executable, converter, model, "--outfile", converted, "--outtype", outtype])
        if quantizer is not None:
            _run([quantizer, converted, partial, str(quantize).upper()])
        # without, a power failure may leave the name and not the content
        sync(partial)
        os.replace(partial, file)
        sync(file.parent)
    finally:
        for left in (partial, converted):
            left.unlink(missing_ok=True)
    say(f"{file}: {file.stat().st_size / 2**20:,.1f} MiB")
    return file


def _check_representable(config: SimpleNamespace) -> None:
    """Raise ValueError if llama.cpp would compute something else, or its converter stop."""
    if found := engines.misread_layers(config, "llama.cpp"):
        raise ValueError(
            f"{found[0]} Compress again with --keep-attention-pattern true and a"
            " --layers-per-round of the pattern's period, or with --layers that keep it"
        )
    for told, remedy in engines.misrouted(config, "llama.cpp"):
        raise ValueError(f"{told} {remedy}")


FORMATS = {"gguf": to_gguf}


def _tool(name: str, llama_cpp: str | None, places: tuple[str, ...]) -> Path:
    """Where a tool of llama.cpp is: in its source folder, or on PATH."""
    folder = llama_cpp or os.environ.get("LLAMA_CPP")
    if folder is not None:
        for place in places:
            if (Path(folder) / place / name).is_file():
                return Path(folder) / place / name
        raise ValueError(f"there is no {name} in {folder}. {INSTALL}")
    on_path = shutil.which(name)
    if on_path is None:
        raise ValueError(f"{name} is not on PATH. {INSTALL}")
    return Path(on_path)


def _run(command: list[Any]) -> None:
    """Run a tool, and show its output only if it fails."""
    words = [str(word) for word in command]
    # a killed export leaves no tool behind that goes on to write where the next one does
    result = subprocess.run(
        words, capture_output=True, text=True, check=False, preexec_fn=die_with_parent
    )
    if result.returncode:
        last = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["no message"]
        raise ValueError(
            f"{Path(words[1]).name if words[0] == sys.executable else words[0]}: {last[0]}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ptl-fast export", description=__doc__)
    parser.add_argument("run", help="a finished run's folder, or a model's")
    parser.add_argument("--to", choices=list(FORMATS), required=True, help="the format")
    parser.add_argument("--quantize", choices=list(QUANTIZATIONS), help="quantize the weights")
    parser.add_argument("--output", metavar="FILE", help="the file to write")
    parser.add_argument("--llama-cpp", metavar="DIR", help="llama.cpp's source folder")
    parser.add_argument(
        "--no-check", action="store_true", help="do not compare greedy tokens with transformers"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
