"""The model card: what the hub reads, what a stranger reads, and nothing of this machine."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptl_fast import compress
from ptl_fast.config.config import Config
from ptl_fast.run import model_card, start
from support.runs import RUN


@pytest.fixture(scope="module")
def report(tiny_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """report.json of a run, with its folder under "folder"."""
    folder = tmp_path_factory.mktemp("card") / "run"
    settings = {**tiny_run, **RUN, "rounds": 1, "recovery": "none", "output": folder}
    return {**compress(**settings), "folder": folder}


def front_matter(card: str) -> dict[str, Any]:
    start, text, _ = card.split("---\n", 2)
    assert not start
    return yaml.safe_load(text)


def card(report: dict[str, Any], **changed: Any) -> str:
    config = json.loads((report["folder"] / "final" / "config.json").read_text())
    arguments = {
        "model_name": "/somewhere/secret/Small-1B",
        "needed_import": None,
        "original": {"license": "mit", "language": ["en"]},
        "hub_name": None,
        "config": config,
    }
    return model_card.model_card(report, **{**arguments, **changed})


def test_the_hub_reads_base_model_licence_and_language(report: dict[str, Any]) -> None:
    assert front_matter(card(report, hub_name="Owner/Small-1B")) == {
        "base_model": "Owner/Small-1B",
        "language": ["en"],
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["pruned", "ptl"],
    }


def test_a_folder_is_no_base_model_and_no_folder_is_told(report: dict[str, Any]) -> None:
    text = card(report)
    assert "base_model" not in front_matter(text)
    assert "# Small-1B, compressed" in text
    published = (report["folder"] / "final" / "README.md").read_text()
    for path in ("/somewhere/secret", str(report["folder"].parent), str(Path.home())):
        assert path not in text
        assert path not in published
    assert not re.search(r"[\s`(=]/\w", published)


def test_every_metric_stands_beside_the_dense_models(report: dict[str, Any]) -> None:
    text = card(report)
    for task, values in report["dense"]["eval"].items():
        for metric, value in values.items():
            final = report["final"]["eval"][task][metric]
            row = next(
                line for line in text.splitlines() if task in line and f"{final:.4f}" in line
            )
            assert f"{value:.4f}" in row
            assert metric in text
    for title in ("Method", "Data", "Evaluation", "Limits", "How to reproduce", "Licence"):
        assert f"\n## {title}\n" in text


def test_a_run_without_evaluation_says_so(report: dict[str, Any]) -> None:
    nothing = {name: {**report[name], "eval": {}} for name in ("dense", "final")}
    assert model_card._evaluation({**report, **nothing}) == "Nothing was measured."


def test_hub_data_sets_are_named_and_files_are_not(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.jsonl").write_text("")
    data = "openai/gsm8k:main:train@2,own/a.jsonl@1,allenai/c4/en:train"
    config = {**report["config"], "data": data}
    text = card({**report, "config": config})
    assert front_matter(text)["datasets"] == ["allenai/c4", "openai/gsm8k"]


def test_the_command_repeats_the_settings() -> None:
    config = Config.from_flat(
        model="owner/name", data="owner/set", keep=0.5, compensate=False, eval_tasks=["nll=a b.txt"]
    )
    words = shlex.split(model_card.command(config.flat()))
    assert words[:3] == ["python", "-m", "ptl_fast.compress"]
    parsed = start.parse(words[3:]).flat()
    assert parsed == config.flat()
    # keep is what the goal was solved into, and beside it a goal is refused
    solved = config.changed(target_params="65%")
    assert model_card.command(solved.flat()) == model_card.command(config.flat())


def test_a_model_that_an_engine_misreads_says_so(report: dict[str, Any]) -> None:
    assert "llama.cpp" not in card(report)
    kinds = ["full_attention", "sliding_attention"]
    config = {"model_type": "gemma2", "sliding_window": 8, "layer_types": kinds}
    assert "llama.cpp cannot represent this model" in card(report, config=config)


def test_what_loads_only_after_an_import_says_so(report: dict[str, Any]) -> None:
    text = card(report, needed_import="ptl_fast.slicegpt")
    assert "after `import ptl_fast.slicegpt`" in text
    assert "inference engines do not know this model type" in text


def test_whole_experts_that_went_have_their_scorer(report: dict[str, Any]) -> None:
    assert "whole experts" not in card(report)
    rounds = [{**record, "kind": "experts"} for record in report["rounds"]]
    assert "layers by `residual`, whole experts by `reap`;" in card({**report, "rounds": rounds})
