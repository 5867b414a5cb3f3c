"""A rank that is killed or frozen ends the others in a line, and the same command goes on."""

import signal
from pathlib import Path

import pytest

from support.ranks import run_ranks, run_with_a_lost_rank
from support.runs import RUN

ROUND = {**RUN, "rounds": 1, "recovery_tokens": 4000}


@pytest.fixture(scope="module")
def undisturbed(tiny_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_ranks({**tiny_run, **ROUND, "output": "run"}, folder)
    return (folder / "run/final/model.safetensors").read_bytes()


@pytest.mark.parametrize("sign", [signal.SIGSTOP, signal.SIGKILL])
def test_the_others_end_and_the_same_command_goes_on(
    sign: int, tiny_run: dict[str, str], undisturbed: bytes, tmp_path: Path
) -> None:
    settings = {**tiny_run, **ROUND, "output": "run"}
    newest = "run/round-01/recovery/checkpoint-[5-9]*/complete"
    told = run_with_a_lost_rank(settings, tmp_path, newest, sign)
    assert "the same command continues from here" in told
    assert "Traceback" not in told
    run_ranks(settings, tmp_path)
    assert (tmp_path / "run/final/model.safetensors").read_bytes() == undisturbed
