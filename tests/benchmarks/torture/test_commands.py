"""The commands that are killed are the package's, and write where the harness looks."""

from pathlib import Path

from benchmarks.torture import commands
from ptl_fast.run import export
from ptl_fast.run.subcommands import SUBCOMMANDS


def test_commands_are_subcommands() -> None:
    for name, words_of in commands.COMMANDS.items():
        assert words_of(Path("folder"))[:2] == [name, "folder/run"]
        assert name in SUBCOMMANDS


def test_what_stands_for_the_converter_writes_all_weights(tmp_path: Path) -> None:
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    (tmp_path / "made").mkdir()
    (final / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}')
    (final / "model.safetensors").write_bytes(bytes(range(203)))
    commands.make_tools(tmp_path)
    assert export.main(commands.COMMANDS["export"](tmp_path)[1:]) == 0
    (tmp_path / "made" / "page.md.tmp").touch()  # as a kill leaves it
    (tmp_path / "made" / "stdout").write_text("14:40:11 writing gguf\nmodel.gguf: 0.1 MiB\n")
    found = commands.contents(tmp_path / "made")
    assert found == {"model.gguf": bytes(range(203)), "stdout": b"model.gguf: 0.1 MiB\n"}
