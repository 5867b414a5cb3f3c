"""Recovery's throughput and a run's stages are measured as their documents say, and Liger is
refused where it cannot run.
"""

import copy
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.recovery import stages, throughput
from benchmarks.recovery.throughput import Steps
from ptl_fast.config.config import Config
from ptl_fast.recovery import trainer
from support.models import make_model
from support.runs import main


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("recovery") / "throughput_test.json"
    sizes = ["--sequence-length", "128", "--batch", "2", "--steps", "2", "--rounds", "2"]
    throughput.main([*sizes, "--device", "cpu", "--json", str(file)])
    return json.loads(file.read_text())


def test_every_way_trains_or_says_why_not(measured: dict[str, Any]) -> None:
    rows = {row["way"]: row for row in measured["rows"]}
    ok = {"ours", "ours, fused FFN", "ours, without packing", "TRL"}
    assert {name for name, row in rows.items() if row["status"] == "ok"} == ok
    assert rows["ours, Liger"]["status"] == "not measured: a GPU and --liger are needed"
    assert rows["TRL"]["vs_trl"] == 1
    for name in ok:
        assert rows[name]["tokens_per_second"] > 0
        assert 0 < rows[name]["utilisation"] < 1.5
    # packed sequences of 128 tokens, two a step, against documents of about 66
    assert 150 < rows["ours"]["tokens_per_step"] <= 256
    for name in ("ours, without packing", "TRL"):
        assert rows[name]["tokens_per_step"] == pytest.approx(
            rows["ours"]["tokens_per_step"], rel=0.4
        )
    assert rows["ours"]["first_loss"] == pytest.approx(
        rows["ours, fused FFN"]["first_loss"], rel=1e-3
    )


def test_rate_leaves_out_the_first_step() -> None:
    assert throughput.rate(Steps([50.0, 2.0, 4.0, 3.0], [], 30.0)) == 10.0


def test_another_loss_is_refused() -> None:
    throughput.check_losses({"ours": 2.0, "ours, fused FFN": 2.01, "TRL": 9.0})
    with pytest.raises(
        SystemExit, match=r"'ours, fused FFN': its first loss is 2\.1000, and ours 2\.0000"
    ):
        throughput.check_losses({"ours": 2.0, "ours, fused FFN": 2.1})


def test_liger_is_refused_on_a_cpu_and_where_it_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--device", "cpu", "--liger", "--output", str(tmp_path / "out")]
    assert main(flags) == 2
    assert "--liger trains on kernels that run on GPUs only" in capsys.readouterr().err
    with pytest.raises(ValueError, match="GPUs only"):
        throughput.main(["--device", "cpu", "--liger"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match="pip install liger-kernel"):
            trainer.check_liger("cuda")
        patch.setattr(trainer.importlib.util, "find_spec", lambda name: name)
        trainer.check_liger("cuda:1")
    with pytest.raises(ValueError, match="--liger is about training"):
        Config(model="x", data="x", liger=True, recovery="none").check()


@pytest.mark.parametrize(
    ("settings", "ffn"),
    [({}, True), ({"fused_ffn": True}, False), ({"score_during_recovery": True}, False)],
)
def test_trainer_gets_liger_with_the_ffn_that_is_not_ours(
    settings: dict[str, Any], ffn: bool
) -> None:
    model = make_model("llama")
    arguments = trainer.common_arguments(
        model, Path("x"), Config(model="x", data="x", liger=True, **settings)
    )
    assert arguments["use_liger_kernel"]
    assert (
        arguments["liger_kernel_config"]["swiglu"]
        is arguments["liger_kernel_config"]["geglu"]
        is ffn
    )
    assert not arguments["liger_kernel_config"]["cross_entropy"]
    assert not trainer.common_arguments(model, Path("x"), Config(model="x", data="x"))[
        "use_liger_kernel"
    ]


def test_what_liger_patches_is_undone(llama: Any, input_ids: torch.Tensor) -> None:
    """As Liger does it: new forwards in the modules' own dictionaries, and other classes and
    functions for the family.
    """
    expected = llama(input_ids).logits
    namespace = sys.modules[type(llama).__module__]
    names = ("LlamaRMSNorm", "apply_rotary_pos_emb")
    before = {name: getattr(namespace, name) for name in names}
    with trainer.unpatched_afterwards(llama):
        for module in llama.modules():
            if isinstance(module, before["LlamaRMSNorm"]):
                module.__dict__["forward"] = types.MethodType(
                    lambda self, hidden: hidden * 0, module
                )
                module.offset = 1.0
        for name in names:
            setattr(namespace, name, nn.Identity)
    assert {name: getattr(namespace, name) for name in names} == before
    assert torch.equal(llama(input_ids).logits, expected)
    assert not any(hasattr(module, "offset") for module in llama.modules())


def test_real_liger_is_undone(llama: Any, input_ids: torch.Tensor) -> None:
    liger = pytest.importorskip("liger_kernel.transformers")
    expected = llama(input_ids).logits
    undone = copy.deepcopy(llama)
    with trainer.unpatched_afterwards(undone):
        liger._apply_liger_kernel_to_instance(
            undone, **trainer.liger_kernels(Config(model="x", data="x"))
        )
        assert undone.model.layers[0].mlp._get_name() == "LigerSwiGLUMLP"
    assert torch.equal(undone(input_ids).logits, expected)


def test_shares_by_hand() -> None:
    rounds = [
        {"seconds": {"calibrate": 1.0, "compact": 0.5, "recover": 20.0, "evaluate": 4.0}},
        {"seconds": {"calibrate": 2.0, "compact": 0.5, "recover": 40.0, "evaluate": 6.0}},
    ]
    seconds = stages.summed(rounds)
    assert seconds == {"calibrate": 3.0, "compact": 1.0, "recover": 60.0, "evaluate": 10.0}
    assert stages.shares(seconds, 100.0) == {
        "loop_overhead": 4 / 64,
        "not_recovery": pytest.approx(0.4),
    }


def test_stages_of_a_run_add_up(tmp_path: Path) -> None:
    file = tmp_path / "stages_test.json"
    flags = (
        "--rounds 1 --keep 0.5 --recovery-tokens 2000 --calibration-tokens 500 --eval-tasks"
        " nll --eval-limit 4 --device cpu"
    )
    stages.main(["--json", str(file), "--name", "short", "--", *flags.split()])
    result = json.loads(file.read_text())
    assert (result["name"], result["num_rounds"]) == ("short", 1)
    assert sum(result["seconds"].values()) == pytest.approx(result["total"])
    assert all(value > 0 for value in result["seconds"].values())
    assert 0 < result["loop_overhead"] < result["not_recovery"] < 1
