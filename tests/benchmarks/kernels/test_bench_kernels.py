"""The kernel benchmark runs, reports what it promises, and refuses a wrong result."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness.environment import dtype_name
from benchmarks.kernels import bench_kernels, cases, compaction_cases, ffn_cases
from ptl_kernels import gated_activation, reference

NUMBERS = ["time_ms", "peer_ms", "ratio_to_peer", "ratio_p20", "ratio_p80", "max_rel_error"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of one quick run on CPU."""
    path = tmp_path_factory.mktemp("bench") / "kernels_test.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction_cases, "ROWS_BYTES", 1_000_000)
        bench_kernels.main(["--quick", "--device", "cpu", "--json", str(path)])
    assert [file.name for file in path.parent.iterdir()] == [
        "kernels_test.json"
    ]  # no temporary file stays
    return json.loads(path.read_text())


def test_quick_run_has_a_row_for_every_op_and_peer(quick: dict[str, Any]) -> None:
    expected = [
        (
            case.op,
            str(case.setting.shape),
            dtype_name(case.setting.dtype),
            "cpu",
            peer,
        )
        for case in cases.cases("cpu", quick=True)
        for peer in case.peers
    ]
    assert [
        tuple(row[name] for name in ("op", "shape", "dtype", "device", "peer"))
        for row in quick["rows"]
    ] == expected
    assert {row["op"] for row in quick["rows"]} == set(cases.OPS)


def test_rows_have_numbers_or_a_reason(quick: dict[str, Any]) -> None:
    keys = {
        "op",
        "shape",
        "dtype",
        "device",
        "peer",
        *NUMBERS,
        "gbs",
        "percent_of_copy",
        "num_samples",
        "status",
    }
    for row in quick["rows"]:
        assert row.keys() == keys
        if row["status"] == "ok":
            assert all(row[name] >= 0 for name in NUMBERS)
            assert row["time_ms"] > 0
            assert row["ratio_p20"] <= row["ratio_to_peer"] <= row["ratio_p80"]
        else:
            assert row["status"].startswith("not measured: ")
            assert len(row["status"]) > len("not measured: ")
            assert all(row[name] is None for name in [*NUMBERS, "gbs", "percent_of_copy"])
    unmeasured = {(row["op"], row["peer"]) for row in quick["rows"] if row["status"] != "ok"}
    assert ("gated_activation", "Liger, no statistics") in unmeasured
    assert ("gated_activation", "eager, no statistics") not in unmeasured


def test_environment_names_device_versions_and_commit(quick: dict[str, Any]) -> None:
    known = quick["environment"]
    assert known["device"]
    assert known["torch"] == torch.__version__
    assert known["threads"] == torch.get_num_threads()
    assert known.keys() >= {"cpu_instruction_set", "triton", "liger_kernel", "commit", "dirty"}
    assert quick["ceilings"]["copy_gbs"] > 0


def _wrong_output(gate: Tensor, up: Tensor, *arguments: Any, **options: Any) -> Tensor:
    return reference.gated_activation(gate, up, "gelu_tanh")


def _wrong_statistics(
    gate: Tensor, up: Tensor, activation: Any, *, sums: Any, **options: Any
) -> Tensor:
    out = reference.gated_activation(gate, up, activation)
    reference.add_neuron_sums_(sums.tensors(), out[:-1])
    return out


def _not_a_number(
    gate: Tensor, up: Tensor, activation: Any, *, sums: Any, **options: Any
) -> Tensor:
    out = gated_activation(gate, up, activation, sums=sums, **options)
    out[3, 5] = torch.nan
    return out


@pytest.mark.parametrize("wrong", [_wrong_output, _wrong_statistics, _not_a_number])
def test_wrong_result_is_refused_and_not_timed(
    wrong: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(ffn_cases, "gated_activation", wrong)
    with pytest.raises(
        SystemExit,
        match=(
            r"refusing to time gated_activation \(quick T96 H64 I128, float32,"
            r" cpu\).*'ours'.*error"
        ),
    ):
        bench_kernels.main(
            [
                "--quick",
                "--device",
                "cpu",
                "--op",
                "gated_activation",
                "--json",
                str(tmp_path / "out.json"),
            ]
        )
    assert "float32" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_wrong_peer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(cases.cases("cpu", quick=True, op="residual_change"))
    right = case.peers["eager cosine and norms"].run
    wrong = bench_kernels.Contender(
        lambda inputs: {name: 1.01 * value for name, value in right(inputs).items()}
    )
    monkeypatch.setitem(case.peers, "eager cosine and norms", wrong)
    with pytest.raises(SystemExit, match="'eager cosine and norms' has relative error"):
        bench_kernels.check_all(case, case.make_inputs(), {})


def test_peer_that_fails_keeps_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(cases.cases("cpu", quick=True, op="residual_change"))

    def fail(inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setitem(case.peers, "eager cosine and norms", bench_kernels.Contender(fail))
    _, missing = bench_kernels.check_all(case, case.make_inputs(), {})
    assert missing == {"eager cosine and norms": "RuntimeError: no C++ compiler"}
