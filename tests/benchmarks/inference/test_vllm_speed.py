"""vLLM is measured in a process of its own; here a stand-in with a clock of its own."""

import sys
import types
from typing import Any

import pytest

from benchmarks.harness import clock
from benchmarks.inference import vllm_speed
from benchmarks.inference.workloads import Workload


class FakeVllm(types.ModuleType):
    """vLLM as vllm_speed calls it; on its clock a step takes a second and a prompt two."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.clock, self.prompts = 0.0, []
        engine = types.SimpleNamespace(
            model_config=types.SimpleNamespace(get_vocab_size=lambda: 50)
        )
        outer = self

        class LLM:
            llm_engine = engine

            def __init__(self, **settings: Any) -> None:
                outer.settings = settings

            def generate(
                self, prompts: list[dict[str, list[int]]], sampling: Any, use_tqdm: bool
            ) -> None:
                outer.prompts.append(prompts)
                assert sampling.min_tokens == sampling.max_tokens
                outer.clock += 1.0 + sampling.max_tokens

        self.LLM, self.SamplingParams = LLM, types.SimpleNamespace


def test_vllm_times_are_those_of_a_step_and_of_a_whole_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeVllm()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(clock.CLOCKS, "wall", lambda: fake.clock)
    workloads = [
        Workload("prefill", 3, 8, 1).columns(),
        Workload("decode", 2, 4, 5).columns(),
        Workload("paper", 1, 4, 5).columns(),
    ]
    times = vllm_speed.measure(
        "folder", {"workloads": workloads, "samples": 2, "dtype": "bfloat16"}
    )
    assert times == [[2000.0] * 2, [1000.0] * 2, [6000.0] * 2]
    assert fake.settings["max_model_len"] == 9
    assert [len(prompt["prompt_token_ids"]) for prompt in fake.prompts[0]] == [8, 8, 8]
    row = vllm_speed.median_times({"dense": times, "compressed": [[500.0, 700.0], [1.0], [1.0]]}, 0)
    assert row["speedup"] == pytest.approx(2000 / 600)
