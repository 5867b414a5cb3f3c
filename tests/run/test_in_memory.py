"""A loaded model and rows run as files do, and go on."""

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ptl_fast import CompressConfig, compress
from ptl_fast.demo.problems import generate
from ptl_fast.run.in_memory import on_disk
from support.runs import RUN, without_seconds
from support.wholes import make_whole

ROWS = generate(400, 9, "training")
SHORT: dict[str, Any] = {**RUN, "rounds": 2, "recovery_tokens": 3000, "eval_limit": 4}


def test_a_loaded_model_and_rows_are_compressed_quietly(
    tiny_run: dict[str, str],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_run["model"])
    called: list[tuple[int, int]] = []

    def told(record: dict[str, Any], model: PreTrainedModel) -> None:
        called.append((record["round"], model.config.intermediate_size))

    given = {**SHORT, "output": tmp_path / "run", "model": model, "data": ROWS}
    capfd.readouterr()
    report = compress(**given, tokenizer=tokenizer, callbacks=[told], quiet=True)
    assert capfd.readouterr() == ("", "")
    assert called == [(each["round"], each["width"]) for each in report["rounds"]]
    assert model.config.intermediate_size > called[-1][1], "the caller's model stays"
    from_files = compress(
        **{**SHORT, "model": tiny_run["model"], "data": tiny_run["data"]}, output=tmp_path / "files"
    )
    assert without_seconds(report) == without_seconds(from_files)
    # the tokenizer is found where the model came from, and the same call answers again
    again = compress(**given, callbacks=[told])
    assert again == report
    assert len(called) == 2


def test_what_is_no_model_and_no_rows_is_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    for settings, message in (
        ({"model": llama}, "need an output folder"),
        ({"model": 5, "output": output}, "model is a int; give a folder"),
        ({"model": llama, "output": output}, r"tokenizer is not found .*give tokenizer="),
        ({"data": [], "output": output}, "at least one"),
        ({"data": [1], "output": output}, "data is a list of rows"),
    ):
        with pytest.raises(ValueError, match=message):
            on_disk(settings)
    with pytest.raises(ValueError, match="tokenizer is for a loaded model"):
        on_disk({"model": "m"}, tokenizer)
    assert not output.exists()


def test_settings_come_as_a_config_or_one_by_one() -> None:
    config = CompressConfig.from_flat(model="m", data="d", keep=2.0)
    with pytest.raises(ValueError, match=r"--keep 2.0 is outside"):
        compress(config)
    with pytest.raises(ValueError, match="config holds all settings, and rounds is given beside"):
        compress(config, rounds=2)


def test_a_loaded_whole_is_written_with_its_processors(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    make_whole("gemma3").save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "preprocessor_config.json").write_text("{}")
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    given = on_disk({"model": whole, "output": str(tmp_path / "run")}, tokenizer)
    written = {file.name for file in Path(given["model"]).iterdir()}
    assert {"config.json", "tokenizer.json", "preprocessor_config.json"} <= written
