"""A run with --stream is the run without it: plans, statistics and weights, also after a kill."""

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ptl_fast import compress
from ptl_fast.base.run_files import StreamedFolder
from ptl_fast.model import loading
from ptl_fast.run import checks, loop, recover_step, save_streamed, streamed, weights
from ptl_fast.run.start import make_config
from support.ranks import run_ranks
from support.runs import RUN, plans

# two rounds, so that the second reads what the first has left; recovery in between
TWO = {**RUN, "rounds": 2, "recovery_tokens": 3000, "eval_tasks": "none", "ridge": "auto"}


@pytest.fixture(scope="module")
def in_memory(tiny_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("in_memory") / "run"
    compress(**{**tiny_run, **TWO}, output=output)
    return output


def assert_same(one: Path, other: Path) -> None:
    assert plans(one) == plans(other)
    for name in (
        "round-01/statistics.safetensors",
        "round-02/statistics.safetensors",
        "final/model.safetensors",
    ):
        own, others = load_file(one / name), load_file(other / name)
        assert own.keys() == others.keys()
        for key in own:
            assert torch.equal(own[key], others[key]), (name, key)


def test_the_result_is_that_of_the_run_in_memory(
    in_memory: Path, tiny_run: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    load = weights.load_weights
    monkeypatch.setattr(
        weights,
        "load_weights",
        lambda context, number: loaded.append(number) or load(context, number),
    )
    compress(**{**tiny_run, **TWO}, stream=True, output=tmp_path)
    assert_same(in_memory, tmp_path)
    # nothing is evaluated, so nothing has asked for the whole model
    assert not loaded
    assert not list(tmp_path.glob("round-*/streamed"))


def test_a_killed_run_goes_on_and_makes_again_what_was_damaged_meanwhile(
    in_memory: Path, tiny_run: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    compensate_ = streamed.compensate_

    def die_in_round_2(*args: Any) -> None:
        fitted.append(1)
        # two of five layers of the second round are written
        if len(fitted) == 8:
            raise KeyboardInterrupt
        compensate_(*args)

    monkeypatch.setattr(streamed, "compensate_", die_in_round_2)
    again = functools.partial(compress, **{**tiny_run, **TWO}, stream=True, output=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        again()
    shards = sorted((tmp_path / "round-02" / "streamed").glob("model-*"))
    assert len(shards) == 2
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    # it goes on with the layers that are missing, and is killed before it loads them
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_prune", _die)
        with pytest.raises(KeyboardInterrupt):
            again()
    assert len(fitted) == 8 + 4
    assert StreamedFolder(shards[0].parent).is_complete()
    shards[1].unlink()
    again()
    assert len(fitted) == 8 + 4 + 1
    assert_same(in_memory, tmp_path)


@pytest.fixture
def no_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a whole model is loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(loading, "load_stored", refuse)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        key: each for file in folder.glob("*.safetensors") for key, each in load_file(file).items()
    }


def test_without_recovery_no_whole_model_is_loaded_and_the_result_is_the_same(
    tiny_run: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # saved in another type than that of the computation, so it is tried in both
    given = {**tiny_run, **TWO, "recovery": "none", "save_dtype": "bfloat16"}
    compress(**given, output=tmp_path / "memory")
    request.getfixturevalue("no_whole_model")
    compress(**given, stream=True, output=tmp_path / "disk")
    for result in ("final", "sizes/round-01"):
        one, other = tmp_path / "memory" / result, tmp_path / "disk" / result
        own, others = tensors(one), tensors(other)
        assert own.keys() == others.keys()
        for key in own:
            assert own[key].dtype == others[key].dtype
            assert torch.equal(own[key], others[key]), (result, key)
        # the same files beside the weights, with the same content, the card apart: it has seconds
        for file in one.glob("*"):
            if file.suffix not in (".safetensors", ".md"):
                assert (other / file.name).read_text() == file.read_text()
        assert len((other / "README.md").read_text().splitlines()) > 20
    assert not list(tmp_path.glob("disk/round-*/streamed"))


@pytest.mark.usefixtures("no_whole_model")
@pytest.mark.parametrize("place", ["save", "write_result"])
def test_a_killed_run_goes_on_without_a_whole_model(
    place: str, tiny_run: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**tiny_run, **TWO, "recovery": "none", "rounds": 1, "stream": True}
    compress(**given, output=tmp_path / "whole")
    module: Any = save_streamed if place == "save" else recover_step
    with monkeypatch.context() as patch:
        patch.setattr(module, place, _die)
        with pytest.raises(KeyboardInterrupt):
            compress(**given, output=tmp_path / "killed")
    # what is complete is not pruned again
    monkeypatch.setattr(streamed, "prune_layers", _die)
    compress(**given, output=tmp_path / "killed")
    own, others = (tensors(tmp_path / name / "final") for name in ("whole", "killed"))
    assert own.keys() == others.keys()
    assert all(torch.equal(own[key], others[key]) for key in own)


@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles with g++")
def test_two_ranks_with_zero3_never_have_a_whole_model_and_come_to_the_same(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """The tokens are divided, and the weights before and after their training."""
    given = {**tiny_run, **TWO, "deepspeed": "zero3", "rounds": 1}
    for name, stream in (("whole", False), ("divided", True)):
        (tmp_path / name).mkdir()
        output = str(tmp_path / name / "run")
        own = {**given, "stream": stream, "output": output}
        run_ranks(own, tmp_path / name)
    runs = [tmp_path / name / "run" for name in ("whole", "divided")]
    assert plans(runs[0]) == plans(runs[1])
    taken = [load_file(each / "round-01" / "statistics.safetensors") for each in runs]
    for key in taken[0]:
        torch.testing.assert_close(taken[1][key], taken[0][key], rtol=1e-4, atol=1e-4)
    whole, divided = (tensors(each / "final") for each in runs)
    assert whole.keys() == divided.keys()
    for key in whole:
        torch.testing.assert_close(divided[key], whole[key], rtol=0, atol=1e-6)
    record = json.loads((runs[1] / "round-01" / "recovery.json").read_text())
    assert record["recovery_steps"] > 0
    # as they were written, a file for each layer: nobody has saved a whole model
    assert len(list((runs[1] / "final").glob("*.safetensors"))) > 2


def _die(*args: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"scorer": "gradient"}, "--scorer gradient"),
        ({"scorer": "random"}, "--scorer random"),
        ({"threshold": 0.1, "scorer": "activation"}, "--threshold"),
        ({"drop_layers": 1}, "--drop-layers"),
        ({"protect": "text.txt"}, "--protect"),
        ({"compensate_inputs": "pruned"}, "--compensate-inputs pruned"),
        ({"token_weights": "divergence"}, "--token-weights"),
        ({"anticipate": 0.1}, "--anticipate"),
    ],
)
def test_what_needs_the_whole_model_is_refused_by_name(given: dict[str, Any], named: str) -> None:
    config = make_config(model="ptl-demo", data="x.jsonl", stream=True, **given)
    original: Any = SimpleNamespace()
    with pytest.raises(ValueError, match=f"--stream .*{named}"):
        checks.check_stream(config, original)
