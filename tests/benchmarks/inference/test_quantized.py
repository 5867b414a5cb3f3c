"""The table of bytes and losses, with a tiny model."""

import json
from pathlib import Path

import pytest

from benchmarks.inference import quantized


def test_forms_are_measured_on_the_same_text(
    tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "held_out.jsonl"
    rows = [{"question": f"{n} + 1 = ", "answer": str(n + 1)} for n in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tiny_run["model"]
    words = [folder, folder, "--data", str(data), "--json", str(tmp_path / "out.json")]
    quantized.main(words)
    first, second = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert first == second
    assert first["weights"] == "float32"
    assert first["bytes"] == (Path(folder) / "model.safetensors").stat().st_size
    assert f"| {first['nll']:.4f} |" in capsys.readouterr().out


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    data = tmp_path / "held_out.jsonl"
    data.write_text('{"question": "1 + 1 = ", "answer": "2"}\n')
    with pytest.raises(SystemExit, match="there is no folder or file"):
        quantized.main([str(tmp_path / "none"), "--data", str(data)])
