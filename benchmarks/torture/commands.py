"""The commands that read a finished run, some of which write a file of their own beside it."""

import re
from collections.abc import Callable
from pathlib import Path

# lines that say when a stage began and ended
NARRATION = re.compile(rb"^\d\d:\d\d:\d\d .*\n", re.MULTILINE)

# Stands for llama.cpp's converter: the weights in pieces, so that a kill finds half a file. Its
# output is what a killed one leaves, and so does not depend on the process.
CONVERTER = """\
import pathlib, sys, time
model, _, file, _, kind = sys.argv[1:]
content = (pathlib.Path(model) / "model.safetensors").read_bytes()
with open(file, "wb") as out:
    for start in range(0, len(content), len(content) // 40 + 1):
        out.write(content[start : start + len(content) // 40 + 1])
        out.flush()
        time.sleep(0.01)
"""
# {command: its words for a run in FOLDER/run, which write into FOLDER/made}
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "export": lambda folder: [
        *("export", str(folder / "run"), "--to", "gguf", "--no-check"),
        *("--output", str(folder / "made" / "model.gguf"), "--llama-cpp", str(folder / "tools")),
    ],
    "compare": lambda folder: [
        *("compare", str(folder / "run"), str(folder / "run")),
        *("--html", str(folder / "made" / "page.html")),
        *("--markdown", str(folder / "made" / "page.md")),
    ],
    "report": lambda folder: ["report", str(folder / "run")],
    "inspect": lambda folder: ["inspect", str(folder / "run"), "--layer", "0", "--neuron", "1"],
}


def make_tools(folder: Path) -> None:
    """Write what stands for llama.cpp's tools into FOLDER/tools."""
    (folder / "tools").mkdir()
    (folder / "tools" / "convert_hf_to_gguf.py").write_text(CONVERTER)


def contents(folder: Path) -> dict[str, bytes]:
    """{path: content} of the files in a folder, without those that are being written, and without
    the times at which a command was at its stages.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".tmp")
    found = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    return {
        name: NARRATION.sub(b"", content) if name == "stdout" else content
        for name, content in found.items()
    }
