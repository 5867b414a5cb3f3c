"""The speed suite: counts agree with flops.py and by hand, measured and predicted numbers mean what
their names say, the documents match the raw results, and the GPU scripts run from end to end in
their rehearsals."""

import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.documents import plot, speed_table, targets
from benchmarks.harness import clock
from benchmarks.harness.models import SHAPES, random_model, resized, shape_config, tiny_twin
from benchmarks.harness.stopwatch import Stopwatch
from benchmarks.inference import roofline, speedup, vllm_speed, workloads
from benchmarks.inference import widths as widths_module
from benchmarks.inference.roofline import (
    Operation,
    Rates,
    Size,
    decode_operations,
    prefill_operations,
)
from benchmarks.inference.workloads import Times, Work
from benchmarks.methods import quality
from ptl_fast.pruning.width_multiple import excess, largest_multiple
from support.models import FAMILIES, make_model

ROOT = Path(__file__).parents[2]
BATCH, LENGTH = 3, 16
SHORT = (
    7  # inside the sliding window of the tests' models, beyond which a step sees only the window
)


@pytest.mark.parametrize("family", FAMILIES)
def test_counted_flops_are_those_of_flops_py(family: str) -> None:
    """SDPA computes the full square or its half; both count it whole, and so every token sees all
    LENGTH.
    """
    model = make_model(family)
    size = Size(model.config, model.dtype)
    head = 2 * model.config.hidden_size * model.config.vocab_size
    every_token = size.decode(BATCH * LENGTH, LENGTH)["flops"]
    counted = sum(operation.flops for operation in prefill_operations(model, BATCH, LENGTH))
    assert counted == every_token - (LENGTH - 1) * BATCH * head  # only the last position has logits
    step = decode_operations(model, BATCH, SHORT - 1)
    assert sum(operation.flops for operation in step) == size.decode(BATCH, SHORT)["flops"]


def test_size_by_hand() -> None:
    """Llama: 2 layers, hidden 64, width 256, 4 heads of 16, 2 key heads, vocabulary 512."""
    size = Size(shape_config("tiny"), torch.bfloat16)
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 256
    assert size.cache_bytes == 2 * 2 * 2 * 16 * 2
    assert size.weight_bytes == 2 * (
        2 * (layer + 2 * 64) + 64 + 512 * 64
    )  # norms; the embedding is looked up, the head is read
    decode = size.decode(batch_size=8, context=100)
    assert decode["flops"] == 8 * (2 * (2 * layer + 512 * 64) + 2 * 4 * 64 * 100)
    assert decode["num_bytes"] == size.weight_bytes + 8 * 100 * size.cache_bytes
    prefill = size.prefill(batch_size=3, length=10)
    assert prefill["flops"] == 3 * (10 * (2 * 2 * layer + 2 * 4 * 64 * 5) + 2 * 512 * 64)


def test_a_decode_step_reads_every_linear_weight_once() -> None:
    model = make_model("llama", intermediate_size=512, hidden_size=256, head_dim=64)
    weights = sum(
        module.weight.nbytes for module in model.modules() if isinstance(module, nn.Linear)
    )
    read = sum(
        operation.num_bytes
        for operation in decode_operations(model, 1, 4)
        if operation.kind == "gemm"
    )
    assert weights < read < 1.05 * weights


def _tiny(width: int | None = None) -> Any:
    return random_model(resized(shape_config("tiny"), width, None), "cpu", torch.float32)


def _known_rates() -> Rates:
    """1e9 FLOP/s in the up projection of 4 rows, 2e9 in attention of one shape, 1e7 byte/s where
    the output is a mebibyte.
    """
    rates = Rates(_tiny(), Stopwatch("cpu", 1 << 16))
    rates.measured.update(
        {
            "gemm 4 x 64 x 256, FLOP/s": 1e9,
            "gemm 4 x 64 x 64, FLOP/s": 5e8,
            "attention 1 x 4 heads of 16, 8 of 8, 2 key heads, FLOP/s": 2e9,
            f"elementwise of {1 << 20} bytes, byte/s": 1e7,
        }
    )
    return rates


@pytest.mark.parametrize(
    ("operation", "seconds"),
    [
        pytest.param(
            Operation("gemm", 3_000_000_000, 1, (4, 64, 256)), 3.0, id="gemm of the dense model"
        ),
        pytest.param(
            Operation("gemm", 3_000_000_000, 1, (4, 64, 96)),
            3.0,
            id="narrower gemm at the dense one's rate",
        ),
        pytest.param(
            Operation("gemm", 3_000_000_000, 1, (4, 64, 192)), 3.0, id="fused gate and up"
        ),
        pytest.param(
            Operation("gemm", 3_000_000_000, 1, (4, 64, 64)), 6.0, id="gemm beside the FFN"
        ),
        pytest.param(
            Operation("attention", 5_000_000_000, 1_000_000, (1, 4, 8, 16, 8, 2)),
            2.5,
            id="attention",
        ),
        pytest.param(Operation("other", 0, 20_000_000, (1 << 20,)), 2.0, id="other"),
    ],
)
def test_an_operation_takes_its_amount_over_the_rate_of_its_kind(
    operation: Operation, seconds: float
) -> None:
    rates = _known_rates()
    rates.measured["gemm 4 x 64 x 512, FLOP/s"] = 1e9
    assert rates.seconds([operation, operation], width=96) == pytest.approx(2 * seconds)


def test_rates_are_amounts_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call takes half a millisecond on this clock, however many follow one another."""
    stopwatch = Stopwatch("cpu", 1 << 20)
    calls = [0]

    weights = set()

    def count(*arguments: Any, **keywords: Any) -> None:
        calls[0] += 1
        weights.update(map(id, arguments[1:]))

    def time_ms(call: Any, warm: bool = False) -> float:
        before = calls[0]
        call()
        return 0.5 * (calls[0] - before)

    monkeypatch.setattr(stopwatch, "time_ms", time_ms)
    monkeypatch.setattr(roofline, "linear", count)
    monkeypatch.setattr(roofline, "scaled_dot_product_attention", count)
    rates = Rates(_tiny(), stopwatch)
    assert rates.gemm(4, 64, 256) == pytest.approx(2 * 4 * 64 * 256 / 5e-4)
    assert calls[0] == 2 + int(roofline.LAP_SECONDS / 5e-4) * roofline.NUM_TIMINGS
    assert len(weights) == 9, "as many as the model's 622,592 bytes hold"
    assert rates.attention(2, 4, 8, 16, 8, 2) == pytest.approx(4 * 2 * 4 * 8 * 8 * 16 / 5e-4)


def test_counted_products_have_the_projections_sizes() -> None:
    shapes = {
        operation.shape
        for operation in prefill_operations(_tiny(), 2, 8)
        if operation.kind == "gemm"
    }
    assert shapes >= {(16, 64, 64), (16, 64, 32), (16, 64, 256), (16, 256, 64), (1, 64, 512)}


@pytest.mark.parametrize("family", FAMILIES)
def test_twin_has_the_same_operations_and_next_to_no_arithmetic(family: str) -> None:
    model = make_model(family)
    twin = random_model(tiny_twin(model.config), "cpu", torch.float32)
    operations, of_twin = (prefill_operations(each, 1, 16) for each in (model, twin))
    assert [operation.kind for operation in of_twin] == [operation.kind for operation in operations]
    assert sum(each.flops for each in of_twin) < sum(each.flops for each in operations)


def test_host_follows_the_device_on_a_cpu_and_is_one_measurement_for_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter(range(1, 100))
    monkeypatch.setattr(speedup, "run", lambda model, work: Times(float(next(times)), 1.0, 1.0))
    monkeypatch.setattr(
        speedup, "device_ms", lambda model, work, rates: float(model.config.intermediate_size)
    )
    predicted = speedup.predict(
        {"dense": _tiny(), "compressed": _tiny(96)}, Work("prefill", 2, 8, 1), _known_rates()
    )
    host = 1 + (1 + speedup.HOST_SAMPLES) / 2  # the first one warms up
    assert predicted["dense"] == {"predicted_ms": 256 + host, "device_ms": 256.0, "host_ms": host}
    assert predicted["compressed"] == {
        "predicted_ms": 96 + host,
        "device_ms": 96.0,
        "host_ms": host,
    }


def test_process_clock_does_not_count_waiting_and_is_refused_with_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ValueError, match="OMP_NUM_THREADS=1"):
        clock.choose("process")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    stopwatch = Stopwatch("cpu", 1 << 10)
    clock.choose("process")
    try:
        assert stopwatch.time_ms(lambda: time.sleep(0.1)) < 50
    finally:
        clock.choose("wall")
    assert stopwatch.time_ms(lambda: time.sleep(0.1)) >= 100


def test_generation_times_by_hand() -> None:
    """Two sequences; new tokens are ready 1, 1.5, 2 and 2.5 seconds after the start."""
    ready = [11.0, 11.5, 12.0, 12.5]
    assert workloads.generation_times(Work("decode", 2, 8, 4), 10.0, ready) == Times(
        500.0, 1000.0, 4.0
    )
    assert workloads.generation_times(Work("paper", 2, 8, 4), 10.0, ready) == Times(
        2500.0, 1000.0, 2 * 4 / 2.5
    )


def test_work_counts_its_passes() -> None:
    size = Size(shape_config("tiny"), torch.float32)
    step = size.decode(1, 128 + 32)
    whole = speedup.counts(size, Work("paper", 1, 128, 64))
    assert whole == {name: size.prefill(1, 128)[name] + 63 * step[name] for name in step}
    assert speedup.counts(size, Work("decode", 1, 128, 64)) == step
    assert speedup.counts(size, Work("prefill", 1, 128, 1)) == size.prefill(1, 128)


def test_speedup_is_the_median_of_ratios_of_samples_that_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    times = {
        "dense": [10.0, 99.0, 40.0, 30.0, 90.0],
        "compressed": [9.0, 11.0, 20.0, 10.0, 10.0],
    }  # the first one warms up

    def run(model: Any, work: Work) -> Times:
        calls.append(model.name)
        return Times(times[model.name][calls.count(model.name) - 1], 1.0, 1.0)

    pair: Any = {}
    for name in times:
        pair[name] = random_model(shape_config("tiny"), "cpu", torch.float32)
        pair[name].name = name
    monkeypatch.setattr(speedup, "run", run)
    predicted = {"dense": (5.0, 4.0), "compressed": (2.0, 1.0)}
    monkeypatch.setattr(
        speedup,
        "predict",
        lambda *_: {
            name: {"predicted_ms": each[0], "device_ms": each[1]}
            for name, each in predicted.items()
        },
    )
    row = speedup.measure(pair, Work("prefill", 1, 8, 1), _known_rates(), num_samples=4)
    assert calls == ["dense", "compressed"] + ["dense", "compressed", "compressed", "dense"] * 2
    assert row["speedup"] == pytest.approx((3 + 9) / 2)  # of 9, 2, 3 and 9
    assert row["speedup_p20"] <= row["speedup"] <= row["speedup_p80"]
    assert row["predicted_speedup"] == 2.5
    assert row["of_predicted"] == pytest.approx(6 / 2.5)
    assert row["device_speedup"] == 4.0
    assert row["dense"]["time_ms"] == (40 + 90) / 2
    assert row["dense"]["peak_gib"] is None
    assert row["dense"]["joules_per_token"] is None


def test_narrower_model_is_predicted_to_be_faster_by_no_more_than_its_ffn() -> None:
    pair = {"dense": _tiny(), "compressed": _tiny(128)}
    rates = Rates(pair["dense"], Stopwatch("cpu", 1 << 20))
    for work in (Work("prefill", 2, 64, 1), Work("decode", 2, 16, 4)):
        predicted = speedup.predict(pair, work, rates)
        for part in ("predicted_ms", "device_ms"):
            assert 1 < predicted["dense"][part] / predicted["compressed"][part] < 2
        assert predicted["dense"]["host_ms"] == predicted["compressed"]["host_ms"] > 0


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results: a speedup of two saved models, and an alignment study, both tiny."""
    folder = tmp_path_factory.mktemp("results")
    dense = random_model(shape_config("tiny"), "cpu", torch.float32)
    dense.save_pretrained(folder / "dense")
    random_model(resized(dense.config, 96, 1), "cpu", torch.float32).save_pretrained(
        folder / "small"
    )
    models = ["--model", str(folder / "dense"), "--compressed", str(folder / "small")]
    sizes = ["--prefill", "2x16", "--decode", "2x8", "--new-tokens", "3", "--samples", "2"]
    speedup.main([*models, *sizes, "--device", "cpu", "--json", str(folder / "speedup_test.json")])
    sizes = [
        "--hidden",
        "32",
        "--centre",
        "512",
        "--reach",
        "256",
        "--num-tokens",
        "8",
        "--rounds",
        "2",
    ]
    widths_module.main([*sizes, "--device", "cpu", "--json", str(folder / "alignment_test.json")])
    return folder


def test_speedup_results_are_complete(measured: Path) -> None:
    results = json.loads((measured / "speedup_test.json").read_text())
    assert results["model"] == "dense"
    assert [results["sizes"]["compressed"][name] for name in ("width", "num_layers")] == [96, 1]
    assert {row["engine"]: row["status"] for row in results["rows"]} == {
        "transformers": "ok",
        "vllm": "not measured: vllm is not installed",
    }
    rows = [row for row in results["rows"] if row["engine"] == "transformers"]
    works = [
        (row["work"], row["batch_size"], row["prompt_length"], row["new_tokens"]) for row in rows
    ]
    assert works == [("prefill", 2, 16, 1), ("decode", 2, 8, 3), ("paper", 1, 128, 64)]
    for row in rows:
        assert row["device_speedup"] > 1, (
            "both models are predicted from the same rates, whatever these are"
        )
        for model in (row["dense"], row["compressed"]):
            assert model["predicted_ms"] == pytest.approx(model["device_ms"] + model["host_ms"])
        # with the host's time, which is measured, and at this size noise
        assert row["predicted_speedup"] == pytest.approx(
            row["dense"]["predicted_ms"] / row["compressed"]["predicted_ms"]
        )
        assert row["of_predicted"] == pytest.approx(row["speedup"] / row["predicted_speedup"])
        assert row["dense"]["flops"] > row["compressed"]["flops"] > 0
        assert row["dense"]["num_bytes"] > row["compressed"]["num_bytes"] > 0
        assert row["dense"]["tokens_per_second"] > 0
    assert results["environment"]["transformers"]
    assert any(name.startswith("gemm 32 x 64 x 256") for name in results["rates"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "tiny", "--compressed", "x"], "--compressed is a model of its own"),
        (["--shape", "tiny", "--model", "x"], "not allowed with"),
        (["--new-tokens", "1"], "must be at least 2"),
        (["--prefill", "8"], "invalid batch_and_length"),
    ],
)
def test_speedup_refuses_flags_that_do_not_go_together(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        speedup.main(arguments)
    assert message in capsys.readouterr().err


def test_width_above_the_dense_one_is_refused() -> None:
    with pytest.raises(ValueError, match="--width 257 is outside 1 to 256"):
        resized(shape_config("tiny"), 257, None)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    published = {
        "llama3-8b": 8_030_261_248,
        "gemma2-9b": 9_241_705_984,
        "qwen2.5-7b": 7_615_616_512,
        "tiny": 188_736,
    }
    assert Size(shape_config(name), torch.bfloat16).at_0["num_parameters"] == published[name]
    assert resized(shape_config(name), *SHAPES[name][2:]).intermediate_size % 128 == 0


class FakeVllm(types.ModuleType):
    """vLLM as vllm_speed calls it; a step of generation takes a second on its clock, a prompt two."""

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
    monkeypatch.setattr(vllm_speed.time, "perf_counter", lambda: fake.clock)
    works = [
        vars(Work("prefill", 3, 8, 1)),
        vars(Work("decode", 2, 4, 5)),
        vars(Work("paper", 1, 4, 5)),
    ]
    times = vllm_speed.measure("folder", {"works": works, "samples": 2, "dtype": "bfloat16"})
    assert times == [[2000.0] * 2, [1000.0] * 2, [6000.0] * 2]
    assert fake.settings["max_model_len"] == 9
    assert [len(prompt["prompt_token_ids"]) for prompt in fake.prompts[0]] == [8, 8, 8]
    row = vllm_speed.numbers({"dense": times, "compressed": [[500.0, 700.0], [1.0], [1.0]]}, 0)
    assert row["speedup"] == pytest.approx(2000 / 600)


def test_excess_and_rule_by_hand() -> None:
    """Time grows with the width; widths that are not multiples of 64 take a tenth longer, others of
    32 a fiftieth.
    """
    widths = range(512, 1025, 8)
    slower = {64: 1.0, 128: 1.0, 256: 1.0, 32: 1.015}
    times = {
        width: width * slower.get(largest_multiple(width, widths_module.MULTIPLES), 1.1)
        for width in widths
    }
    above = excess(times, 256)
    rows = [
        {"product": "up", "num_tokens": 8, "width": width, "excess": above[width]}
        for width in widths
    ]
    lines = {line["multiple"]: line for line in widths_module.summary(rows)}
    assert above[1024] == pytest.approx(0)
    assert lines[8]["median_excess"] == pytest.approx(0.1)
    assert lines[32]["median_excess"] == pytest.approx(0.015)
    assert {multiple: line["num_widths"] for multiple, line in lines.items()} == {
        8: 32,
        16: 16,
        32: 8,
        64: 4,
        128: 2,
        256: 3,
    }
    assert widths_module.chosen(list(lines.values())) == 32
    lines[128]["median_excess"] = 0.03  # 64 must not be chosen below a multiple that is slow
    assert widths_module.chosen(list(lines.values())) == 256


def test_alignment_results_hold_every_width(measured: Path) -> None:
    results = json.loads((measured / "alignment_test.json").read_text())
    assert [row["width"] for row in results["rows"] if row["product"] == "down"] == list(
        range(256, 769, 8)
    )
    assert all(row["time_ms"] > 0 for row in results["rows"])
    assert results["rule"] in widths_module.MULTIPLES


def test_committed_tables_are_what_the_raw_results_give() -> None:
    speed_table.main(["--check"])


def test_tables_show_measured_rows_and_keep_what_is_not(measured: Path, tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    marks = (
        "prefill",
        "decode",
        "paper",
        "resources",
        "throughput",
        "stages",
        "targets",
        "alignment",
        "devices",
    )
    document.write_text("".join(f"<!-- table:{mark} -->\nstale\n<!-- end -->\n" for mark in marks))
    flags = ["--document", str(document), "--results", str(measured)]
    with pytest.raises(SystemExit):
        speed_table.main([*flags, "--check"])
    speed_table.main(flags)
    text = document.read_text()
    row = json.loads((measured / "speedup_test.json").read_text())["rows"][0]
    assert (
        "| dense | 256 x 2 -> 96 x 1 | float32 | transformers | 2 | 16 | 1 |"
        f" {row['dense']['time_ms']:.1f} |"
    ) in text
    assert (
        f"| {row['device_speedup']:.2f} | {row['predicted_speedup']:.2f} |"
        f" {row['of_predicted']:.0%} |"
    ) in text
    assert "| dense | 256 x 2 -> 96 x 1 | float32 | vllm | 2 | 16 | 1 | not measured |" in text
    assert "| GPU | llama3-8b |  |  |  |  |  |  | not measured |" in text
    assert "stale" not in text
    assert "speedup_test.json" in text


def test_targets_say_how_many_rows_reach_them() -> None:
    """Two of three reach one target, none another that is an upper bound, and a third was not
    measured.
    """
    on_cpu, on_gpu = {"device_type": "cpu"}, {"device_type": "cuda"}
    kernels = [
        {"op": "compact_ffn", "peer": "three x[idx]", "status": status, "ratio_to_peer": ratio}
        for status, ratio in (("ok", 1.5), ("ok", 2.0), ("ok", 4.5), ("not measured: x", 9.0))
    ]
    everything: dict[str, list[dict[str, Any]]] = {
        "kernels": [
            {"environment": on_cpu, "rows": kernels},
            {"environment": on_gpu, "rows": kernels},
        ],
        "stages": [{"environment": on_cpu, "loop_overhead": 0.04, "not_recovery": 0.4}],
        "speedup": [],
        "scoring": [],
        "compaction": [],
    }
    rows = {row[0]: row[1:4] for row in targets.table(everything, "cpu")[1:]}
    assert rows["a layer loses 10%: three x[idx] / ours"] == [
        "at least 2.00",
        "1.50 to 4.50",
        "held in 2 of 3",
    ]
    assert rows["loop overhead of a run"] == ["at most 5.0%", "4.0%", "held"]
    assert rows["all of a run that is not recovery"] == ["at most 5.0%", "40.0%", "missed"]
    assert rows["scoring pass: plain forward pass / ours"] == ["at least 1.00", "not measured", ""]


def test_figures_come_from_the_results_and_are_the_same_each_time(
    measured: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    files = plot.draw(measured, tmp_path / "one")
    assert [file.name for file in files] == ["speedup_test.svg", "alignment_test.svg"]
    plot.draw(measured, tmp_path / "two")
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_quality_compares_final_models_and_names_unfinished_runs(tmp_path: Path) -> None:
    def report(num_parameters: int, nll: float, finished: bool) -> dict[str, Any]:
        size = {"num_layers": 2, "width": 8, "flops_per_token": 10}
        final = {**size, "num_parameters": num_parameters, "eval": {"nll": {"nll": nll}}}
        rounds = [
            {
                "recovery_tokens": 30,
                "seconds": {"recover": 2.0},
                "eval_pruned": {"nll": {"nll": 9.0}},
            }
        ] * 2
        dense = {**size, "num_parameters": 100, "eval": {"nll": {"nll": 1.0}}}
        return {
            "environment": {},
            "config": {"model": "/x/small"},
            "dense": dense,
            "rounds": rounds,
            "final": final if finished else None,
        }

    for name, content in (("ptl", report(80, 1.5, True)), ("slicegpt", report(70, 2.0, False))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(content))
    (tmp_path / "killed").mkdir()
    results = quality.collect(tmp_path)
    rows = {row["method"]: row for row in results["rows"]}
    assert rows["ptl"]["parameters"] == 0.8
    assert rows["ptl"]["recovery_tokens"] == 60
    assert (
        rows["slicegpt"]["status"]
        == rows["killed"]["status"]
        == "not measured: the run is not finished"
    )
    assert "| ptl | 80.0% | 100.0% | 60 | 1.5 |" in quality.to_markdown(results)


def _bash(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", *arguments], cwd=ROOT, env=variables, capture_output=True, text=True
    )


def test_gpu_suite_rehearsal_writes_every_part(tmp_path: Path) -> None:
    done = _bash(["benchmarks/gpu/suite.sh", "--rehearse", str(tmp_path)], NAME="dry")
    assert done.returncode == 0, done.stdout + done.stderr
    files = {file.name for file in tmp_path.iterdir()}
    parts = {
        "kernels_dry.json",
        "scoring_tiny_dry.json",
        "speedup_tiny_dry.json",
        "alignment_dry.json",
    }
    parts |= {"compaction_tiny_dry.json", "throughput_dry.json"}
    assert files == {"log.txt", *parts}
    for part in parts:
        assert (
            json.loads((tmp_path / part).read_text())["environment"]["torch"] == torch.__version__
        )
    assert "1 passed" in (tmp_path / "log.txt").read_text()


def test_gpu_quality_rehearsal_compares_the_methods_with_equal_tokens(tmp_path: Path) -> None:
    done = _bash(["benchmarks/gpu/quality.sh", "--rehearse", str(tmp_path)], NAME="dry")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "quality_smollm2_dry.json").read_text())["rows"]
    methods = {row["method"] for row in rows}
    assert methods - {"slicegpt"} == {"ptl", "prune-once", "shortgpt", "dense-same-training"}
    assert ("slicegpt" in methods) != ("slicegpt: not measured" in done.stdout)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["recovery_tokens"] for row in rows} == {512}
    ours = next(row for row in rows if row["method"] == "ptl")
    assert (ours["num_rounds"], ours["width"]) == (2, 384)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_gpu_suite_without_a_gpu_says_what_to_do(tmp_path: Path) -> None:
    done = _bash(["benchmarks/gpu/suite.sh", str(tmp_path)])
    assert done.returncode == 2
    assert "--rehearse runs everything on the CPU" in done.stdout


def test_a_failing_or_slow_part_does_not_stop_the_next(tmp_path: Path) -> None:
    script = tmp_path / "parts"
    script.write_text(
        f"out={tmp_path} rehearse=0 total_limit=60\nsource benchmarks/gpu/time_limited.sh\n"
        "part broken 5 bash -c 'echo reason; exit 3'\npart slow 1 sleep 20\npart good 5 echo fine\n"
        "total_limit=0\npart late 5 echo never\nfinish\n"
    )
    done = _bash([str(script)])
    assert done.returncode == 1
    assert "broken: FAILED with exit code 3" in done.stdout
    assert "slow: STOPPED after 1 s" in done.stdout
    assert "good: done" in done.stdout
    assert "late: not run" in done.stdout
    assert "3 parts failed" in done.stdout
    assert {"reason", "fine"} <= set((tmp_path / "log.txt").read_text().split())
